"""Published files mean what is reported to those who have PEFT and nothing of this project."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.trainer import tiny
from tests.trainer.families import make_family
from tests.trainer.matrix import OPTIONS, Cell, config_of, lay_out, name_of, train_cell

SCRIPT = Path(__file__).with_name("peft_alone.py")
PLAIN: Cell = {name: next(iter(values)) for name, values in OPTIONS.items()}
HELD_OUT = {"validationUri": "pvc://data/held-out.jsonl", "validationFraction": None}
CELLS: tuple[Cell, ...] = tuple(
    {**PLAIN, **changes}
    for changes in (
        {"family": "mistral", "whole": "head", "layers": "QueryValue"},
        {"family": "qwen2", "init": "PiSSA", "only": "layer 1"},
        {"family": "qwen3", "scaling": "RankStabilized", "quantization": "NF4"},
        {"family": "phi3", "quantization": "INT8", "layers": "QueryValue"},
        {"family": "llama", "quantization": "FP4", "precision": "BF16", "variant": "DoRA"},
        {"family": "gemma2", "precision": "BF16"},
        {"family": "gpt2", "scaling": "RankStabilized"},
        {"family": "gpt_neox", "precision": "BF16", "whole": "head"},
        {"family": "mixtral", "variant": "DoRA"},
        {"family": "gpt_oss", "dropout": "0.1"},
        {"family": "gemma3", "init": "OLoRA"},
        {"family": "mamba"},
    )
)
"""Cells of the matrix that train, each option that changes what the files hold among them."""


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_peft_alone_reproduces_the_reported_losses(tmp_path: Path) -> None:
    """Of every cell, over rows in a file of their own, in one process that imports nothing of ours; a report that is
    off by little more than the tolerance is found."""
    claims = lay_out(tmp_path / "claims")
    rows = tiny.write_jsonl(claims / "data/held-out.jsonl", talks())
    arguments: list[Path] = []
    for cell in CELLS:
        model, folder = claims / "models" / cell["family"], tmp_path / name_of(cell)
        if not model.exists():
            make_family(model, cell["family"])
        folder.mkdir()
        outcome = train_cell(config_of(cell, HELD_OUT), claims, folder)
        assert outcome.adapter is not None, outcome.refusal
        arguments += [outcome.adapter, model, rows]
    arguments += [spoilt(arguments[0], tmp_path / "spoilt"), *arguments[1:3]]
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, len(done.stdout.splitlines())) == (1, len(CELLS) + 1), done.stdout + done.stderr
    for cell, line in zip(CELLS, done.stdout.splitlines(), strict=False):
        loss, reported, before, tolerance = map(float, re.findall(r"(\d[\d.e-]*)[,:]", line.partition(": ")[2]))
        assert abs(before - reported) > 2 * tolerance, f"{name_of(cell)}: it changed too little to tell: {line}"
        assert abs(loss - reported) <= tolerance, f"{name_of(cell)}: {line}"
        assert line.endswith(": agrees")
    assert done.stdout.endswith(": DIFFERS\n")


def spoilt(adapter: Path, copy: Path) -> Path:
    """A copy that reports another loss."""
    shutil.copytree(adapter, copy)
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    manifest["measured"]["eval_loss_after"] += 0.0015
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return copy


def talks() -> list[dict[str, Any]]:
    """Rows of one and of two answers, which no training row is."""
    rows = tiny.chats(32)[24:]
    first, second = rows[0]["messages"], rows[1]["messages"]
    return [*rows, {"messages": [*first, *second]}]


def test_the_script_imports_nothing_of_ours() -> None:
    """So that it stands for a stranger's."""
    names = {
        name
        for node in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert {name.partition(".")[0] for name in names} <= {*sys.stdlib_module_names, "torch", "transformers", "peft"}
