"""Who may import whom: the operator and the trainer meet in the contract, and nowhere else."""

import ast
import graphlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "lora_client": ROOT / "operator",
    "lora_operator": ROOT / "operator",
    "lora_trainer": ROOT / "trainer_image",
}
FOLDERS = tuple(dict.fromkeys(PACKAGES.values()))
# Of the operator: without clock and client.
PURE = ("lora_operator.views.", "lora_operator.rendering.", "lora_operator.decision.")
READS_A_FILE = "lora_operator.views.config"


def modules(package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    folder = PACKAGES[package]
    return {
        ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((folder / package).rglob("*.py"))
    }


def imports(path: Path) -> Iterator[str]:
    """Everything that a file imports, wherever in it; of `from a import b` both a and a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_the_operator_knows_the_contract_of_the_trainer_and_nothing_else_of_it() -> None:
    """It must install without torch."""
    for name, path in modules("lora_operator").items():
        foreign = {i for i in imports(path) if i.split(".")[0] == "lora_trainer"}
        assert all(f"{i}.".startswith("lora_trainer.contract.") or i == "lora_trainer" for i in foreign), name
        assert "lora_trainer" not in foreign or foreign == {"lora_trainer", "lora_trainer.contract"}, name


def test_the_trainer_does_not_know_the_operator() -> None:
    """It runs without a cluster."""
    for name, path in modules("lora_trainer").items():
        assert not any(i.split(".")[0] == "lora_operator" for i in imports(path)), name


def test_kopf_is_used_by_its_public_interface() -> None:
    """A next release may change all else, and its range is open to it."""
    for name, path in modules("lora_operator").items():
        assert not re.search(r"\bkopf\._|\b(from|import) kopf\.|from kopf import _", path.read_text()), name


SHARED_WITH_THE_CLIENT = (
    "lora_trainer.contract.",
    # YAML as people write it, what a run takes of which GPU, the login of a proxy: none needs PyTorch.
    "lora_trainer.errors.",
    "lora_trainer.manifest_file.",
    "lora_trainer.places.network.",
    "lora_trainer.places.volumes.",
    "lora_trainer.plan.",
    "lora_trainer.plan_table.",
    "lora_operator.decision.",
    "lora_operator.running.explain.",
    "lora_operator.views.",
)


def test_the_client_shares_the_contract_and_what_is_pure_of_the_operator() -> None:
    """It must install without torch and without kopf."""
    for name, path in modules("lora_client").items():
        foreign = {i for i in imports(path) if i.split(".")[0] in ("lora_operator", "lora_trainer")}
        assert all(f"{i}.".startswith(SHARED_WITH_THE_CLIENT) for i in foreign), (name, foreign)


def test_importing_the_whole_client_loads_neither_pytorch_nor_kopf() -> None:
    """Seen in a fresh process, with all that is imported late."""
    late = {i for path in modules("lora_client").values() for i in imports(path)}
    names = [*modules("lora_client"), *(name for name in late if name in modules("lora_trainer"))]
    program = f"import {', '.join(names)}, kubernetes.stream.ws_client, sys; print(*sys.modules)"
    folders = [str(folder) for folder in FOLDERS]
    result = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path[:0] = {folders!r}; {program}"],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not {"torch", "kopf", "transformers", "peft", "aiohttp", "numpy"} & set(result.stdout.split())


def test_the_contract_needs_the_standard_library_alone() -> None:
    """Both sides import it at no cost."""
    contract = {
        name: path for name, path in modules("lora_trainer").items() if name.startswith("lora_trainer.contract")
    }
    assert len(contract) > 5
    for name, path in contract.items():
        for imported in imports(path):
            known = imported.split(".")[0] in sys.stdlib_module_names
            assert known or imported.startswith("lora_trainer.contract"), f"{name} imports {imported}"


def test_importing_the_contract_loads_no_library() -> None:
    """Seen in a fresh process: neither torch nor kopf nor yaml."""
    names = [name for name in modules("lora_trainer") if name.startswith("lora_trainer.contract")]
    program = f"import {', '.join(names)}, sys; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    folders = str(PACKAGES["lora_trainer"])
    result = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {folders!r}); {program}"],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    loaded = set(result.stdout.split()) - sys.stdlib_module_names - {"__main__", "__mp_main__"}
    # What site-packages put into every interpreter by a .pth file is not the contract's doing.
    bare = subprocess.run(
        [sys.executable, "-I", "-c", "import sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert loaded - {name.split(".")[0] for name in bare.stdout.split()} == {"lora_trainer"}


def lint(folder: Path) -> "subprocess.CompletedProcess[str]":
    """Hold the packages in `folder` against the floors that pyproject.toml lists."""
    paths = os.pathsep.join(str(folder / path.name) for path in FOLDERS)
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "200"},
    )


def test_each_floor_imports_from_those_below_it_alone() -> None:
    """So no circle of folders can form, and the operator's core stays free of the shell."""
    found = lint(ROOT)
    assert found.returncode == 0, found.stdout + found.stderr


# File, what is written at its end, and what is said of it.
FROM_ABOVE = (
    (
        "trainer_image/lora_trainer/places/volumes.py",
        "def late() -> None:\n    from lora_trainer.host import lock\n",
        "lora_trainer.places.volumes -> lora_trainer.host.lock",
    ),
    (
        "trainer_image/lora_trainer/artifact/files.py",
        "if TYPE_CHECKING:\n    from lora_trainer.training.listener import Step\n",
        "lora_trainer.artifact.files -> lora_trainer.training.listener",
    ),
    ("trainer_image/lora_trainer/attic.py", "", "- lora_trainer.attic"),
    ("operator/lora_operator/attic/__init__.py", "", "- lora_operator.attic"),
    ("operator/lora_client/attic.py", "", "- lora_client.attic"),
    (
        "operator/lora_client/views/words.py",
        "import lora_client.cluster.connection\n",
        "lora_client.views.words -> lora_client.cluster.connection",
    ),
    (
        "operator/lora_client/verbs/logs.py",
        "import lora_operator.cluster.login\n",
        "lora_client.verbs.logs -> lora_operator.cluster.login",
    ),
    (
        "operator/lora_operator/views/jobs.py",
        "import lora_client.errors\n",
        "lora_operator.views.jobs -> lora_client.errors",
    ),
    (
        "operator/lora_operator/views/observe.py",
        "import lora_operator.decision.decide\n",
        "lora_operator.views.observe -> lora_operator.decision.decide",
    ),
    (
        "operator/lora_operator/cluster/api.py",
        "import lora_operator.rendering.render\n",
        "lora_operator.cluster.api -> lora_operator.rendering.render",
    ),
)


def test_each_import_from_above_is_found(tmp_path: Path) -> None:
    """Wherever in a file it stands; and each module that is on no floor."""
    for path in FOLDERS:
        shutil.copytree(path, tmp_path / path.name, ignore=shutil.ignore_patterns("__pycache__"))
    for file, text, _ in FROM_ABOVE:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        with (tmp_path / file).open("a") as stream:
            stream.write(text)
    found = lint(tmp_path)
    assert found.returncode == 1
    assert [complaint for _, _, complaint in FROM_ABOVE if complaint not in found.stdout] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_is_a_package(package: str) -> None:
    """Else its modules would be imported, and on no floor."""
    folder = PACKAGES[package] / package
    missing = {path.parent for path in folder.rglob("*.py")} - {path.parent for path in folder.rglob("__init__.py")}
    assert not missing


@pytest.mark.parametrize("name", [n for n in modules("lora_operator") if n.startswith(PURE) and n != READS_A_FILE])
def test_a_deciding_module_has_neither_clock_nor_client(name: str) -> None:
    """Its arguments are all that it knows."""
    path = modules("lora_operator")[name]
    allowed = {
        "lora_operator",
        "lora_trainer",
        "bisect",
        "collections",
        "copy",
        "dataclasses",
        "datetime",
        "decimal",
        "enum",
        "functools",
        "math",
        "re",
        "sys",
        "typing",
    }
    assert {imported.split(".")[0] for imported in imports(path)} <= allowed
    text = path.read_text()
    for word in ("datetime.now", "utcnow", "date.today", "open(", "print("):
        assert word not in text


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_form_no_cycle(package: str) -> None:
    """So that each can be read after those it builds on."""
    known = modules(package)
    graph = {
        name: {i for i in imports(path) if i in known and i not in {name, package}} for name, path in known.items()
    }
    assert list(graphlib.TopologicalSorter(graph).static_order())
