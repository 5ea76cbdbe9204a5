"""Every Triton kernel that a run or the acceptance of a GPU starts becomes machine code of the GPUs that we name."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
GPUS = {"T4": "75", "A10": "86", "H100": "90"}
KERNELS = [
    *("_add", "_rms_norm_backward_kernel", "_rms_norm_forward_kernel", "_swiglu_backward_kernel"),
    *("_swiglu_forward_kernel", "_triton_rope"),
]


def test_each_kernel_compiles_for_each_gpu(tmp_path: Path) -> None:
    """By the compiler and the assembler that come with Triton, without such a GPU."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainer.triton_program", *GPUS.values()],
        cwd=REPOSITORY,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    compiled = {capability: sorted(set(kernels)) for capability, kernels in found.items()}
    assert compiled == dict.fromkeys(GPUS.values(), KERNELS)
