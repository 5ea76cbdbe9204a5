"""A newcomer types what README.md shows, in its order, and gets an adapter.

Nothing is typed beside it. What is typed instead of what is shown is declared in one list; `make demo` and the tests
are left out, since the one is the quickstart's test and the others are these.
"""

import contextlib
import dataclasses
import hashlib
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tests.e2e.conftest import Installed
from tests.e2e.support import MODEL
from tests.pages.blocks import BLOCKS, REPOSITORY
from tests.pages.executed import Substitution, execute, substituted

from demoflow.run import RELEASE, RELEASE_NAMESPACE
from hub.server import HubServer
from localcluster import images, lifecycle, settings
from localcluster.client import Client
from localcluster.console import Console
from localcluster.imagespec import OPERATOR, PREFLIGHT, TRAINER, stage

PREFIX = settings.IMAGE_PREFIX
SHOWN = [block for block in BLOCKS if block.page == "README.md"]
_CLONE = ("pyproject.toml", "README.md", "LICENSE", "operator", "trainer_image", "benchmarks", "examples", "helm")


def substitutions(buildah: str, registry_port: int, endpoint: str, tag: str, venv: Path) -> tuple[Substitution, ...]:
    """All that is typed otherwise, in the order in which it is replaced."""
    shared = (
        f"{venv}/bin/pip uninstall --quiet --yes setuptools && "
        f"echo {sysconfig.get_path('purelib')} > $(echo {venv}/lib/python*/site-packages)/shared.pth && "
    )
    host = images.build_arguments(OPERATOR, "", images.base_image(), Path())
    flags = " ".join(word for word in host[1:-1] if not word.startswith(("--file=", "--tag=")))
    pushed = "lora-$image:0.1.0"
    away = f"--tls-verify=false {' '.join(images.PACKING)}"
    small = (
        f"--set config.hubEndpoint={endpoint} --set config.allowCPU=true --set config.progressIntervalSeconds=2 "
        "--set defaults.cpuPerGPU=500m --set defaults.memoryPerGPU=3Gi "
        f"--set image.tag={tag} --set trainer.image.tag={tag}"
    )
    last = "--values examples/values/small.yaml"
    return (
        Substitution(shown="docker build", typed=f"{buildah} build {flags}", why="Docker is Buildah"),
        Substitution(
            shown=f"docker push registry.example.com/{pushed}",
            typed=f"{buildah} push {away} {PREFIX}/{pushed} docker://127.0.0.1:{registry_port}/{pushed}",
            why="Docker is Buildah; nodes and host have different names for the local cluster's registry",
        ),
        Substitution(
            shown=last, typed=f"{last} {small}", why="a stand-in for the Hub; a small node, whose GPU is none; tags"
        ),
        Substitution(shown="registry.example.com/", typed=f"{PREFIX}/", why="the local cluster's registry"),
        Substitution(shown="HF_TOKEN=...", typed="HF_TOKEN=hf_newcomer", why="the token is one's own"),
        Substitution(shown="hf://meta-llama/Llama-3.1-8B-Instruct", typed=MODEL, why="a model of seconds"),
        # The same in examples/quickstart.yaml, which the README runs without a cluster.
        Substitution(shown="hf://HuggingFaceTB/SmolLM2-135M-Instruct", typed=MODEL, why="a model of seconds"),
        Substitution(
            shown="hf://acme/support-chats",
            typed="configmap://support-desk/train.jsonl",
            why="the data that examples/quickstart-inputs.yaml makes",
        ),
        Substitution(
            shown="python3 -m venv ~/.venvs/lora && ",
            typed=f"python3 -m venv {venv} && {shared}",
            why="what the client and its build need is among the tests' packages, and is not downloaded again",
        ),
        Substitution(shown="~/.venvs/lora", typed=str(venv), why="nothing is left in the home"),
        Substitution(
            shown="pip install '.[client]'",
            typed="pip install --no-index --no-build-isolation '.[client]'",
            why="it finds those packages; one that they lack is an error",
        ),
        Substitution(shown="--timeout=24h", typed="--timeout=14m", why="it takes half a minute"),
        Substitution(shown="make demo\n", typed=": make demo\n", why="the quickstart's test"),
        Substitution(shown="make test\n", typed=": make test\n", why="this is one of them"),
        Substitution(shown="0.1.0", typed=tag, why="a node keeps the image that it once pulled by a name"),
        Substitution(shown="make venv\n", typed=": make venv\n", why="the tests run in what it makes"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Newcomer:
    """A clone, a namespace on a cluster, and what the environment of the tests brings along."""

    client: Client
    folder: Path
    variables: Mapping[str, str]
    replaced: tuple[Substitution, ...]

    def enter(self, commands: str) -> str:
        """What is printed."""
        typed = substituted(commands, self.replaced)
        return execute(typed, {**self.client.environment, **self.variables}, self.folder, timeout_s=1200)


def clone(folder: Path) -> None:
    """The files that the README's commands read, as Git lays them out; times and modes that Buildah knows layers by."""
    folder.mkdir()
    for name in _CLONE:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        else:
            shutil.copy2(source, folder / name)
    for image in (OPERATOR, TRAINER, PREFLIGHT):
        stage(image, REPOSITORY, folder)


@pytest.fixture
def newcomer(installed: Installed, namespace: str, tiny_model: Path, tmp_path: Path) -> Iterator[Newcomer]:
    """Somebody in front of a cluster with a GPU and without the chart, which is there again afterwards."""
    client, folder = installed.client, tmp_path / "lora-finetune-operator"
    clone(folder)
    config = yaml.safe_load(client.kubeconfig.read_text())
    for context in config["contexts"]:
        context["context"]["namespace"] = namespace
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(config))
    record = lifecycle.load_record(settings.places(settings.DEFAULT_NAME))
    assert record is not None
    assert record.registry_port is not None
    builder = images.LocalBuilder(cache=settings.cache_directory(), console=Console())
    # What the registry has the storage may lack, after a build of other content: there would be no layers to find.
    images.build_all([each.name for each in (OPERATOR, TRAINER, PREFLIGHT)], builder)
    # There is Python, and no client before the README's commands install one.
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (programs / "python3").chmod(0o755)
    path = ":".join([str(programs), *(each for each in client.path.split(":") if not Path(each, "lora").exists())])
    (folder / ".venv/bin").mkdir(parents=True)
    trainer = folder / ".venv/bin/lora-trainer"
    trainer.write_text(f'#!/bin/sh\nPYTHONPATH={folder}/trainer_image exec {sys.executable} -m lora_trainer.cli "$@"\n')
    trainer.chmod(0o755)
    local = tmp_path / "hub/models" / MODEL.removeprefix("hf://")
    shutil.copytree(tiny_model, local)
    with HubServer(tmp_path / "hub").start() as hub, contextlib.ExitStack() as afterwards:
        afterwards.callback(installed.upgrade)
        tag = "v" + hashlib.sha256(repr(installed.images).encode()).hexdigest()[:12]
        made = " ".join(f"{PREFIX}/lora-{name}:{tag}" for name in ("operator", "trainer", "preflight"))
        afterwards.callback(
            execute, f"{' '.join(builder.command)} rmi {made} || true", client.environment, folder, errors=True
        )
        afterwards.callback(installed.offer_gpus, 0)
        installed.offer_gpus(1)
        client.helm("uninstall", RELEASE, f"--namespace={RELEASE_NAMESPACE}", "--wait")
        caches = {"HF_HOME": str(tmp_path / "huggingface"), "TMPDIR": str(builder.folder / "tmp")}
        yield Newcomer(
            client=dataclasses.replace(client, kubeconfig=kubeconfig, path=path),
            folder=folder,
            variables={**caches, "PYTHONPATH": "", "HF_ENDPOINT": hub.url},
            replaced=substitutions(
                " ".join(builder.command), record.registry_port, installed.endpoint, tag, tmp_path / "venv"
            ),
        )


@pytest.mark.soak
def test_a_newcomer_gets_an_adapter_by_typing_the_readme(newcomer: Newcomer) -> None:
    """On the cluster, with the client, and without a cluster; each answer is what the README says of it."""
    shown, folder = "\n".join(block.text for block in SHOWN), newcomer.folder
    assert [each for each in newcomer.replaced if each.shown not in shown] == []
    run = substituted(next(block.text for block in SHOWN if block.language == "yaml"), newcomer.replaced)
    (folder / "run.yaml").write_text(run)
    for name in ("quickstart.yaml", "values/small.yaml"):
        file = folder / "examples" / name
        file.write_text(substituted(file.read_text(), newcomer.replaced))
    printed = [newcomer.enter(block.commands) for block in SHOWN if block.language == "sh"]
    # The layers of the cluster's own images are found: another PyTorch takes minutes, and the disk of this machine.
    assert [text for text in printed if "\nCollecting torch" in text] == []
    uri = "pvc://adapters/support-tone\n"
    assert [text.endswith(uri) for text in printed].count(True) == 1
    status = newcomer.client.get("lft", "support-tone")["status"]
    manifest = (folder / "support-tone/manifest.json").read_bytes()
    assert f"sha256:{hashlib.sha256(manifest).hexdigest()}" == status["artifact"]["digest"]
    assert (folder / "support-tone/adapter_model.safetensors").is_file()
    assert status["resolved"]["quantization"] == "None"
    (asked,) = (text for text in printed if "How do I dry a wet sail?" in text)
    assert "support-tone" in asked
    assert (folder / "out/adapters/support-tone/adapter_model.safetensors").is_file()
    assert any("Memory of a GPU at the peak" in text for text in printed)
