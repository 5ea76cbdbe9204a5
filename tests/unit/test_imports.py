"""Who may import whom: the operator and the trainer meet in the contract, and nowhere else."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"lora_operator": ROOT / "operator", "lora_trainer": ROOT / "trainer_image"}
# Each layer of the operator with the layers that it may import from; the first three are the pure core.
LAYERS = {
    "views": {"views"},
    "rendering": {"views", "rendering"},
    "decision": {"views", "rendering", "decision"},
    "cluster": {"views", "cluster"},
    "running": {"views", "rendering", "decision", "cluster", "running"},
}
PURE = ("views", "rendering", "decision")
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
        timeout=60,
    )
    loaded = set(result.stdout.split()) - sys.stdlib_module_names - {"__main__", "__mp_main__"}
    # What site-packages put into every interpreter by a .pth file is not the contract's doing.
    bare = subprocess.run(
        [sys.executable, "-I", "-c", "import sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert loaded - {name.split(".")[0] for name in bare.stdout.split()} == {"lora_trainer"}


def layers() -> list[tuple[str, str]]:
    """Every module of the operator's layers by its dotted name, with its layer."""
    return [(name, name.split(".")[1]) for name in modules("lora_operator") if name.count(".") > 1]


def test_every_module_of_the_operator_is_in_a_layer() -> None:
    """Beside the command line nothing lies outside."""
    assert {layer for _, layer in layers()} == set(LAYERS)
    outside = {name for name in modules("lora_operator") if name.count(".") == 1}
    assert outside == {"lora_operator.__main__", *(f"lora_operator.{layer}" for layer in LAYERS)}


@pytest.mark.parametrize(("name", "layer"), layers())
def test_a_layer_imports_from_those_below_it_alone(name: str, layer: str) -> None:
    """So no circle of packages can form, and the core stays free of the shell."""
    own = {i.split(".")[1] for i in imports(modules("lora_operator")[name]) if i.startswith("lora_operator.")}
    assert own <= LAYERS[layer]


@pytest.mark.parametrize("name", [name for name, layer in layers() if layer in PURE and name != READS_A_FILE])
def test_a_deciding_module_has_neither_clock_nor_client(name: str) -> None:
    """What it is told is all that it knows."""
    path = modules("lora_operator")[name]
    allowed = {
        "lora_operator",
        "lora_trainer",
        "collections",
        "copy",
        "dataclasses",
        "datetime",
        "decimal",
        "enum",
        "math",
        "re",
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
