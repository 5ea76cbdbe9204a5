"""FlexAttention's kernels fit the GPUs that we name, and compute rightly, as far as that shows without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.flex_program import SHARED_MEMORY

REPOSITORY = Path(__file__).parents[2]
SHAPE: dict[str, Any] = {"dtype": "bfloat16", "softcap": None, "sinks": False, "small": False, "machine_code": True}
GEMMA_2 = {**SHAPE, "heads": [8, 4, 4], "size": 256, "softcap": "50.0"}
GPT_OSS = {**SHAPE, "heads": [64, 8, 8], "size": 64, "sinks": True}
SMALL = {**SHAPE, "heads": [2, 1, 1], "size": 16, "dtype": "float32", "softcap": "2.0", "sinks": True}


def answer(what: str, capability: int, shape: dict[str, Any], folder: Path, **environment: str) -> Any:
    """Of `flex_program`, with what it compiles in `folder`."""
    caches = {"TRITON_CACHE_DIR": str(folder / "triton"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainer.flex_program", what, str(capability), json.dumps(shape), str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, **caches, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("capability", "shape"),
    [(86, {**GEMMA_2, "small": True}), (90, GPT_OSS)],
    ids=["Gemma 2 on an A10", "gpt-oss on an H100"],
)
def test_its_kernels_become_machine_code_that_fits_the_gpu(
    tmp_path: Path, capability: int, shape: dict[str, Any]
) -> None:
    """Forward and backward, for packs of any length."""
    kernels = answer("compiled", capability, shape, tmp_path)
    names = [name for name, _ in kernels if "_tem_" in name]
    assert (len(names), "backward" in names[0], "backward" in names[1]) == (2, False, True)
    assert {name: shared for name, shared in kernels if shared > SHARED_MEMORY[capability]} == {}


def test_its_kernels_compute_what_attention_that_is_written_out_computes(tmp_path: Path) -> None:
    """In Triton's interpreter: results, gradients, and no gradient at another row."""
    assert answer("compiled", 90, {**SMALL, "machine_code": False}, tmp_path) == []
    for found in answer("computed", 90, SMALL, tmp_path, TRITON_INTERPRET="1"):
        assert found.pop("leaked") == 0
        assert max(found.values()) < 1e-5, found
