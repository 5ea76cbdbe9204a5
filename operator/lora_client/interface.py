"""The Python interface, with the verbs of the command line.

    from lora_client import ClientError, LoRAClient
    run = LoRAClient(namespace="team-a").run(spec).wait()
    folder = run.pull()

Failures raise `ClientError`, whose text is the sentence that the command line would print.
"""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_client.errors import ClientError
from lora_client.foreign.convert import Converted, convert
from lora_client.local import LocalRuns
from lora_client.runs import ClusterRuns, Run, Runs
from lora_client.spec import Manifest, Spec
from lora_client.verbs.writing import planned
from lora_client.views.given import mapping, plain, whole
from lora_client.views.resources import part
from lora_trainer.spec.manifest import API_VERSION, KIND

__all__ = ["ClientError", "LoRAClient", "Run"]


class LoRAClient:
    """Runs of one namespace of a cluster or, with the backend `local`, of an installed `lora-trainer` on this machine.

    `folder` is where a local run's claims lie, each in a folder of its name; ConfigMaps are in `config_maps`.
    """

    def __init__(
        self,
        *,
        context: str | None = None,
        namespace: str | None = None,
        backend: str = "kubernetes",
        folder: Path | str = "lora-volumes",
        config_maps: Path | str = "configmaps",
    ) -> None:
        if backend not in ("kubernetes", "local"):
            raise ClientError(f"backend is {backend}: must be kubernetes or local")
        self._runs: Runs = (
            ClusterRuns(context, namespace) if backend == "kubernetes" else LocalRuns(Path(folder), Path(config_maps))
        )

    def run(self, spec: Spec | Manifest, *, name: str | None = None) -> Run:
        """Start a run: `spec` as in the manifest, or the whole manifest. The same one that is running is returned.
        Raises `ClientError` with every problem."""
        manifest = _manifest(spec, name)
        return self._runs.start(manifest)

    def validate(self, spec: Spec | Manifest, *, name: str | None = None) -> tuple[str, ...]:
        """A sentence for every problem; none where the run would be taken."""
        return self._runs.problems(_manifest(spec, name))

    def get(self, name: str) -> Run:
        """A run that exists."""
        return self._runs.get(name)

    def list(self) -> Sequence[Run]:
        """All runs of the namespace."""
        return self._runs.all()

    @staticmethod
    def plan(
        spec: Spec | Manifest, *, config: Path | str | None = None, gpus: Sequence[str] = (), tokens: int | None = None
    ) -> Mapping[str, Any]:
        """What a run takes of which GPU, as `lora plan -o json` prints it. Needs neither GPU nor cluster.

        `config` is the model's config.json, `tokens` those of the data set. Raises `ClientError`.
        """
        from lora_trainer.plan.show import document  # noqa: PLC0415 - tables of models, which others do without

        gpus = [gpus] if isinstance(gpus, str) else gpus
        tokens = None if tokens is None else whole("tokens", tokens)
        found = planned(_manifest(spec, None), config=str(config) if config else None, gpus=gpus, tokens=tokens)
        return dict(document(found))

    @staticmethod
    def convert(text: str, *, name: str, tool: str | None = None, gpus: int | None = None) -> Converted:
        """The run that a configuration or a command line of TRL, Axolotl or LLaMA-Factory describes, and what has no
        field. `gpus` are those that the tool was started on, if the text does not say. Needs no cluster.
        Raises `ClientError`."""
        return convert(text, name=name, tool=tool, gpus=gpus)


def _manifest(spec: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    given = plain(dict(mapping("spec", spec, "such as yaml.safe_load(text) of a file, or convert(text).manifest")))
    if "spec" in given:  # a whole manifest
        return {**given, "metadata": {**part(given, "metadata"), "name": name}} if name else given
    name = name or f"run-{secrets.token_hex(4)}"
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": given}
