"""What installs without PyTorch or kopf loads neither, seen in fresh processes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "lora_client": ROOT / "operator",
    "lora_trainer.spec": ROOT / "trainer_image",
    "lora_trainer.plan": ROOT / "trainer_image",
}


def modules(package: str) -> list[str]:
    """Every module of a package by its dotted name."""
    folder = FOLDERS[package]
    paths = sorted((folder / package.replace(".", "/")).rglob("*.py"))
    return [".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__") for path in paths]


def loaded(*names: str) -> set[str]:
    """The packages that a process has which has imported these modules."""
    folders = [str(folder) for folder in FOLDERS.values()]
    program = f"import sys; sys.path[:0] = {folders!r}; import {', '.join(names)}; print(*sys.modules)"
    command = [sys.executable, "-I", "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_the_whole_client_loads_neither_pytorch_nor_kopf() -> None:
    """Its own packages are few."""
    found = loaded(*modules("lora_client"))
    assert not {"torch", "kopf", "transformers", "peft", "aiohttp", "numpy"} & found


@pytest.mark.parametrize("package", ["lora_trainer.spec", "lora_trainer.plan"])
def test_importing_what_operator_and_trainer_share_loads_no_library(package: str) -> None:
    """Both import it at no cost; what site-packages put into each interpreter is not its doing."""
    found = loaded(*modules(package)) - loaded("sys") - sys.stdlib_module_names
    assert found == {"lora_trainer"}
