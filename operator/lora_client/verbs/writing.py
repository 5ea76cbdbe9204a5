"""`lora init`, `convert`, `plan`: what needs no cluster."""

import os.path
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_client.documents import load_document, read_file
from lora_client.errors import ClientError
from lora_client.foreign.convert import convert as converted
from lora_client.foreign.convert import text_of
from lora_client.foreign.mapping import NOT_GIVEN
from lora_client.foreign.reading import FOREIGN
from lora_client.output import Form, data, note, put, say, show
from lora_client.views.checked import own_problems, shown
from lora_client.yaml_text import yaml_text
from lora_trainer.errors import AccessDeniedError, TrainerError, TransientError
from lora_trainer.spec.manifest import API_VERSION, KIND, ManifestError, RunOptions, train_config

if TYPE_CHECKING:
    from lora_trainer.plan.answer import Plan, PlanByWeights

_DEFAULT_CLAIM = "of the chart's defaults.checkpointClaim"
"""In the place of a name that only the cluster knows."""
_NO_CLAIM = (
    "neither checkpoint.volumeClaimName nor output.uri names a claim, and a plan asks no cluster: this one "
    "counts on the chart's defaults.checkpointClaim, without which a run starts over when its pod is lost"
)
_KEYED = ("hf://", "s3://", "oci://")
"""Addresses with credentials, of each kind under other keys."""
_QUESTIONS = {
    "model": "Base model (hf://organisation/name, s3://bucket/folder or pvc://claim/folder): ",
    "dataset": "Training data (hf://, s3://, pvc://claim/file.jsonl or configmap://name/key): ",
    "output": "Where the adapter goes (pvc://claim/folder, s3://, hf:// or oci://): ",
}
_BY_CONFIG = "name a copy of the model's config.json by --config"
_FLAGS = {"model": "--model", "dataset": "--dataset", "output": "--to"}


def init(
    path: str,
    *,
    name: str | None,
    answers: dict[str, str | None],
    rank: int | None,
    gpus: int | None,
    secret: str | None,
    form: Form,
) -> None:
    """Write to a new file, or for `-` to standard output. Asks for what no flag says. Raises `ClientError`."""
    _require_new(path)
    spec: dict[str, Any] = {}
    asked = [field for field in _QUESTIONS if not answers.get(field)]
    for field, question in _QUESTIONS.items():
        spec[field] = {"uri": answers.get(field) or _asked(field, question)}
    if secret:
        _give(secret, spec)
    if rank is not None:
        spec["lora"] = {"rank": rank}
    if gpus is not None:
        spec["resources"] = {"gpus": gpus}
    name = name or _name_of(spec["output"]["uri"])
    manifest = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}
    problems = own_problems(manifest)
    if problems:
        raise ClientError("\n".join(map(shown, problems)))
    _write(path, yaml_text(manifest), form, manifest)
    if asked and not secret and spec["model"]["uri"].startswith("hf://"):
        note("A gated or private model needs a Secret with the key HF_TOKEN: secretRef: {name: SECRET} beside its uri")


def _give(secret: str, spec: Mapping[str, dict[str, Any]]) -> None:
    """To every address that takes one. Raises `ClientError` where no Secret would fit all of them."""
    takers = {field: kind for field in _QUESTIONS for kind in _KEYED if spec[field]["uri"].startswith(kind)}
    kinds = [kind for kind in _KEYED if kind in takers.values()]
    if len(kinds) > 1:
        raise ClientError(
            f"--secret is {secret}, but the addresses are {' and '.join(kinds)}, of which each needs other keys: leave "
            "it out, and write secretRef: {name: SECRET} beside each uri of the file that needs one"
        )
    for field in takers:
        spec[field]["secretRef"] = {"name": secret}


def _asked(field: str, question: str) -> str:
    """An answer that can be taken; of another one it is said at once why. Raises `ClientError` for none."""
    flag = _FLAGS[field]
    if not sys.stdin.isatty():
        raise ClientError(f"{flag} is missing: name it, or run this in a terminal, where it is asked for")
    while True:
        sys.stderr.write(question)
        sys.stderr.flush()
        answer = sys.stdin.readline().strip()
        if not answer:
            raise ClientError(f"{flag} is missing: name it, or answer the question")
        problems = own_problems({"spec": {field: {"uri": answer}}})
        wrong = [shown(problem) for problem in problems if problem.path == f"spec.{field}.uri"]
        if not wrong:
            return answer
        note("\n".join(wrong))


def _name_of(output: str) -> str:
    last = output.rpartition("/")[2].partition(":")[0].lower()
    name = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in last)[:52].strip("-")
    return name if name and name[0].isalpha() else f"run-{name}"[:52].rstrip("-")


def _write(path: str, text: str, form: Form, manifest: Mapping[str, Any]) -> None:
    """To a new file, for `-` to standard output, and the answer in its form: of the two only one is printed."""
    if path == "-":
        put(text) if form is Form.TEXT else show(form, [manifest], ())
        return
    _create(path, text)
    show(form, [manifest], [f"{path} is written: lora validate -f {shlex.quote(path)} asks the cluster about it"])


def _require_new(path: str) -> None:
    """Raises `ClientError` where the file exists."""
    if not path:
        raise ClientError("--file is empty: name a new file, or - for standard output")
    if path != "-" and os.path.lexists(path):
        raise ClientError(f"{path} exists already: name another file with -f, or remove it")


def _create(path: str, text: str) -> None:
    _require_new(path)
    try:
        with Path(path).open("x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise ClientError(f"{path} cannot be written ({error.strerror}): name another file with -f") from error


def convert(path: str, *, name: str, tool: str | None, gpus: int | None, output: str, form: Form) -> None:
    """Write the run that another tool's configuration describes. Raises `ClientError`."""
    found = converted(read_file(path, FOREIGN), name=name, tool=tool, gpus=gpus)
    problems = [problem for problem in own_problems(found.manifest) if problem.path == "metadata.name"]
    if problems:
        raise ClientError(f"--name: {shown(problems[0])}")
    if form in (Form.JSON, Form.YAML):
        if output != "-":
            _create(output, text_of(found))
        data(form, found.document())
        return
    _write(output, text_of(found), form, found.manifest)
    for option, field in found.mapped:
        note(f"{option} -> spec.{field}")
    for option, value, why in found.left:
        unsaid = value == NOT_GIVEN
        note(f"{option} is not given: {why}" if unsaid else f"{option} ({value}) is not taken over: {why}")
    for entry in found.to_fill:
        note(f"Fill in {entry}")


def plan(path: str, *, config: str | None, gpus: list[str], tokens: int | None, form: Form) -> None:
    """Print what a run takes of which GPU. Raises `ClientError`."""
    resource = load_document(path).resource
    found = planned(resource, config=config, gpus=gpus, tokens=tokens)
    if form is Form.NAME:
        show(form, [resource], ())
        return
    from lora_trainer.plan.show import show as table  # noqa: PLC0415 - as below

    say(table(found, form if form in (Form.JSON, Form.YAML) else "table", shutil.get_terminal_size((100, 24)).columns))


def planned(
    resource: Mapping[str, Any], *, config: str | None, gpus: Sequence[str], tokens: int | None
) -> "Plan | PlanByWeights":
    """What a run takes of which GPU. Raises `ClientError`."""
    from lora_trainer.plan.answer import Asked  # noqa: PLC0415
    from lora_trainer.plan_run import plan_run  # noqa: PLC0415
    from lora_trainer.storage.volumes import Volumes  # noqa: PLC0415 - tables of models, which other verbs do without

    options = RunOptions(uid="plan", allow_cpu=True, strict=True, checkpoint_claim=_DEFAULT_CLAIM)
    try:
        run = train_config(resource, options)
        volumes = Volumes()
        if config is None and run.model.uri.startswith("pvc://") and not volumes.claims.is_dir():
            raise ClientError(f"spec.model.uri is {run.model.uri}, which a pod alone can read: {_BY_CONFIG}")
        asked = Asked(config_file=Path(config) if config else None, gpus=tuple(gpus), tokens=tokens)
        found = plan_run(run, volumes, asked)
    except ManifestError as error:
        raise ClientError("\n".join(map(shown, error.problems))) from error
    except (AccessDeniedError, TransientError) as error:
        raise ClientError(f"{error}; or {_BY_CONFIG}") from error
    except TrainerError as error:
        raise ClientError(str(error)) from error
    except ImportError as error:
        libraries = "Models on the Hub and in buckets are read with libraries that the client does not bring"
        raise ClientError(f"{libraries}: {_BY_CONFIG}") from error
    if run.checkpoint.claim == _DEFAULT_CLAIM:
        found = replace(found, notes=(*found.notes, _NO_CLAIM))
    return found
