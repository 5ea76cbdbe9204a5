"""The acceptance of a GPU, on a CPU with tiny models: its code runs, and what is wrong fails it."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from benchmarks import gpu_acceptance
from benchmarks.acceptance import findings, groups
from benchmarks.acceptance.bench import Bench, run_checks
from benchmarks.acceptance.comparing import compared
from benchmarks.acceptance.findings import Check, Finding, Outcome, State, judged, not_run
from benchmarks.acceptance.models import random_base
from benchmarks.acceptance.profile import Interval, idle_share, part_of, parts
from benchmarks.acceptance.shapes import MIXTURE_24_LAYERS, active_share
from benchmarks.acceptance.speed import active_parameters
from tests.trainer.processes import together
from transformers import AutoConfig, AutoModelForCausalLM

from lora_trainer.model import attention
from lora_trainer.model.device import Device
from lora_trainer.training.loop import Training

REPOSITORY = Path(__file__).parents[2]
ONE_OF_EACH = (
    *("llama: as alone", "gpt_oss: as alone", "gemma2: sees no other"),
    *("NF4: weights and products", "INT8: training", "fp16 with scaled losses"),
    *("PiSSA: starts as the base", "mixture, experts: training"),
    "SIGTERM and resume, AdamW",
)
"""Of parts that ask the same of many kinds."""
pytestmark = [
    # Of configurations that name positions which tiny models do not have, and of libraries about a CPU.
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture
def bench(cpu: Device) -> Bench:
    """Tiny models on the CPU."""
    return Bench(device=cpu, tiny=True)


def found(part: str, bench: Bench) -> dict[str, Finding]:
    """What a part finds, by the names of its checks; of parts with many, one of each kind."""
    checks = list(importlib.import_module(f"benchmarks.acceptance.{part}").checks(bench))
    some = [check for check in checks if check.name in ONE_OF_EACH] or checks
    return {finding.check: finding for finding in run_checks(part, some, bench)}


@pytest.mark.parametrize("part", [part for part in gpu_acceptance.PARTS if part not in {"device", "groups"}])
def test_a_part_passes_on_a_cpu_or_says_that_it_has_not_run(part: str, bench: Bench) -> None:
    """Each with at least one check that does run."""
    states = {check: (finding.state, finding.said) for check, finding in found(part, bench).items()}
    assert [state for state in states.values() if state[0] is State.FAILED] == []
    assert {State.PASSED, State.MEASURED} & {state for state, _ in states.values()}, states


def test_the_device_is_told_and_the_compiler_is_tried(bench: Bench) -> None:
    """Where a machine has the compiler and the headers that Triton needs, and only there."""
    has_all = (Path(sysconfig.get_path("include")) / "Python.h").exists() and (
        shutil.which("gcc") or shutil.which("clang")
    )
    device = found("device", bench)
    states = {check: finding.state for check, finding in device.items()}
    assert states == {
        "packages": State.MEASURED,
        "GPU": State.NOT_RUN,
        "extension by Triton's compiler": State.PASSED if has_all else State.FAILED,
        "Triton kernel": State.NOT_RUN,
    }
    assert device["packages"].figures["torch"] == torch.__version__.partition("+")[0]


def test_two_processes_train_as_one_whole_and_divided(bench: Bench, tmp_path: Path) -> None:
    """What a GPU each would do, over gloo."""
    random_base(tmp_path, "llama", bench.sizes, bench.device)
    results = together(2, groups.program, bench, tmp_path)
    for result in results:
        assert not isinstance(result, Exception), result
        assert (result["sum"], result["divided_share"]) == ("right", 0.5)
        assert max(result["whole_apart"], result["divided_apart"]) < 1e-4


def test_rows_that_see_each_other_fail_the_acceptance(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel for packs that takes all rows for one, where the model's own trial is deceived."""
    chosen = attention.Attention(kernel="sdpa", packs=True)

    def deceived(model: torch.nn.Module, device: Device) -> attention.Attention:
        attention.choose_attention(model, device)
        return chosen

    part = importlib.import_module("benchmarks.acceptance.attention")
    monkeypatch.setattr(part, "choose_attention", deceived)
    whole = lambda lengths, device: attention.segments_of((sum(lengths),), device)  # noqa: E731
    monkeypatch.setattr(part, "segments_of", whole)
    checks = [check for check in part.checks(bench) if check.name.startswith("llama")]
    assert [finding.state for finding in run_checks("attention", checks, bench)] == [State.FAILED, State.FAILED]


def test_a_state_that_is_not_whole_fails_the_acceptance(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights alone, without the optimizer's."""
    restore = Training.restore
    monkeypatch.setattr(Training, "restore", lambda training, state: restore(training, state, weights_only=True))
    assert found("resume", bench)["SIGTERM and resume, AdamW"].state is State.FAILED


def test_a_result_is_judged_by_plain_pytorchs_own_error() -> None:
    """1 % more than right is wrong, and NaN passes nothing; what errs as plain PyTorch does passes."""
    right = torch.linspace(1, 2, 100, dtype=torch.float64)
    plain = right * (1 + 1e-4)

    def state(values: torch.Tensor) -> State:
        return compared([values], [plain], [right], names=["x"], dtype=torch.float32).state

    assert [state(right * (1 + error)) for error in (0, 1.4e-4, 1.6e-4, 0.01)] == [
        *(State.PASSED, State.PASSED, State.FAILED, State.FAILED)
    ]
    assert state(torch.where(right > 1.99, torch.nan, right)) is State.FAILED


def test_a_check_that_raises_has_failed_and_the_others_run(bench: Bench) -> None:
    """With its sentence; what no time is left for has not run."""

    def fail() -> Outcome:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    checks = [Check(name="one", run=fail), Check(name="other", run=lambda: judged(True, "well"))]
    assert [finding.state for finding in run_checks("x", checks, bench)] == [State.FAILED, State.PASSED]
    late = Bench(device=bench.device, tiny=True, ends=0.0)
    assert [finding.state for finding in run_checks("x", checks, late)] == [State.NOT_RUN] * 2


def test_the_time_without_a_kernel_is_what_no_kernel_covers() -> None:
    """Kernels that overlap count once; the order in which they are told is no matter."""
    kernels = [Interval(name="nvjet_gemm", start=6, end=10), Interval(name="flash_fwd", start=0, end=4)]
    assert idle_share(kernels) == pytest.approx(0.2)
    assert idle_share([*kernels, Interval(name="add", start=3, end=7)]) == 0
    assert idle_share([]) == 0
    assert parts(kernels) == {"matrix products": 0.5, "attention": 0.5}
    names = ("kDequantizeBlockwise", "Memcpy HtoD", "vectorized_elementwise_kernel", "multi_tensor_apply_kernel")
    assert [part_of(name) for name in names] == ["dequantization", "copies", "element by element", "optimizer"]


def test_a_mixture_counts_the_experts_that_a_token_meets() -> None:
    """Qwen1.5-MoE-A2.7B: 14.3 thousand million parameters, of which 2.7 are active."""
    shape = dict(MIXTURE_24_LAYERS)
    config = AutoConfig.for_model(str(shape.pop("model_type")), **shape)
    with torch.device("meta"):
        factory: Any = AutoModelForCausalLM
        model = factory.from_config(config)
    model.requires_grad_(False)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(14.3e9, rel=0.01)
    assert active_parameters(model, MIXTURE_24_LAYERS) == pytest.approx(2.7e9, rel=0.02)
    assert active_share("model.layers.0.mlp.experts.down_proj", {"model_type": "llama"}) == 1


def test_a_finding_comes_back_from_a_process_as_it_was() -> None:
    """Beside lines that libraries print."""
    finding = Finding(part="fit", check="1B", state=State.PASSED, said="well", figures={"bytes": 1.5}, seconds=2.0)
    assert findings.from_json(findings.to_json(finding)) == finding
    assert findings.from_json("Loading weights") is None
    assert findings.from_json("[1]") is None
    assert "not run" in findings.summary([finding])


def test_the_command_ends_with_what_is_wrong_where_there_is_no_gpu() -> None:
    """One sentence, no part beyond the first, and no success."""
    command = [sys.executable, str(REPOSITORY / "benchmarks/gpu_acceptance.py"), "--json", "-"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 1
    found = json.loads(done.stdout[done.stdout.index("\n{") :])["findings"]
    assert [(one["part"], one["state"]) for one in found] == [("device", "failed")]
    assert "sees no usable GPU" in found[0]["said"]


@pytest.mark.parametrize(
    ("program", "said"), [("import os; os.abort()", "exit code -6"), ("import time; time.sleep(60)", "took longer")]
)
def test_a_part_whose_process_ends_or_hangs_has_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, said: str
) -> None:
    """What it had found by then is kept."""
    kept = Finding(part="fit", check="1B", state=State.PASSED)
    file = tmp_path / "part.py"
    file.write_text(f"print({findings.to_json(kept)!r}, flush=True)\n{program}\n")
    monkeypatch.setattr(gpu_acceptance, "__file__", str(file))
    monkeypatch.setattr(gpu_acceptance, "_GRACE_S", 1.0)
    first, last = gpu_acceptance.in_process("fit", "cpu", tiny=True, seconds=0.5)
    assert (first, last.state) == (kept, State.FAILED)
    assert said in last.said


def test_a_part_computes_where_a_training_does(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With its allocator, and at its speed: on the fast paths that it takes."""
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    file = tmp_path / "part.py"
    wanted = Finding(part="fit", check="1B", state=State.PASSED, said="expandable_segments:True")
    file.write_text(
        f"import os\nprint({findings.to_json(wanted)!r}.replace({wanted.said!r}, os.environ['PYTORCH_ALLOC_CONF']))"
    )
    monkeypatch.setattr(gpu_acceptance, "__file__", str(file))
    assert list(gpu_acceptance.in_process("fit", "cpu", tiny=True, seconds=60)) == [wanted]
    assert "recomputed-swiglu" in str(found("speed", bench)["tiny, NF4, 64"].figures["kernels"])


def test_no_time_is_no_failure() -> None:
    """Parts that are not reached say so."""
    states = [(finding.part, finding.state) for finding in gpu_acceptance.accept(["fit"], "cpu", tiny=True, minutes=0)]
    assert states == [("fit", State.NOT_RUN)]
    assert not_run("why").state is State.NOT_RUN


def test_the_job_runs_as_a_training_does() -> None:
    """As its user, on a root that nothing can be written to, with bounded folders for what is written."""
    job = yaml.safe_load((REPOSITORY / "examples/gpu-acceptance.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsNonRoot"]) == (10001, True)
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert all(volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"])
    assert (REPOSITORY / container["command"][-1].removeprefix("/app/")).exists()
    written = {mount["mountPath"] for mount in container["volumeMounts"]}
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    caches = [value for value in variables.values() if value.startswith("/")]
    assert all(any(Path(cache).is_relative_to(place) for place in written) for cache in caches)
