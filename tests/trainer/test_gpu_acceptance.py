"""The acceptance of a GPU, on a CPU with tiny models: its code runs, and what is wrong fails it."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import torch
import yaml
from benchmarks import gpu_acceptance, memory
from benchmarks.acceptance import findings, groups
from benchmarks.acceptance.bench import Bench, run_checks
from benchmarks.acceptance.comparing import compared
from benchmarks.acceptance.findings import Check, Finding, Outcome, State, judged, not_run
from benchmarks.acceptance.models import adapter_for, random_base
from benchmarks.acceptance.profile import Interval, idle_share, part_of, parts
from benchmarks.acceptance.shapes import MIXTURE_24_LAYERS, active_share
from benchmarks.acceptance.speed import active_parameters
from benchmarks.acceptance.steps import timed
from benchmarks.memory_simulation import Step
from tests.trainer.processes import together
from tests.trainer.test_self_check import changed, failing, no_number_in_one_row
from transformers import AutoConfig, AutoModelForCausalLM

from lora_trainer.model import attention, fast
from lora_trainer.model.device import Device
from lora_trainer.model.fast import Family
from lora_trainer.spec.config import Optimizer, Quantization
from lora_trainer.train.loop import Training

REPOSITORY = Path(__file__).parents[2]
ONE_OF_EACH = (
    *("llama: as alone", "gpt_oss: as alone", "gemma2: sees no other"),
    *("NF4: weights and products", "INT8: training", "fp16 with scaled losses"),
    *("PiSSA: starts as the base", "mixture, experts: training"),
    "SIGTERM and resume, AdamW",
)
"""Of parts that ask the same of many kinds."""
TESTED_BELOW = {"device", "groups", "speed", "rival"}
"""Parts with tests of their own, the rival's in another file."""
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


@pytest.mark.parametrize("part", [part for part in gpu_acceptance.PARTS if part not in TESTED_BELOW])
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
        "PyTorch": State.PASSED,
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
        assert result["packed_share"] == 0.5
        assert max(result[f"{way}_apart"] for way in ("whole", "divided", "packed")) < 1e-4
        for way in ("divided", "packed"):
            assert "fused-adapter" in result[f"{way}_kernels"], "on a divided base, too"


def test_two_gpus_are_asked_for_and_never_made_do_without(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one, or on a CPU at full size, the part has not run, and says what it lacks."""
    large, gpu = replace(bench, tiny=False), replace(bench.device, torch_device=torch.device("cuda"))
    for count, of, said in (
        (1, replace(large, device=gpu), "there is one GPU; two are needed"),
        (2, large, "the device is a CPU"),
    ):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        (check,) = groups.checks(of)
        assert check.run() == not_run(said)
    assert len(list(groups.checks(replace(large, device=gpu)))) == 4


def test_rows_that_see_each_other_fail_the_acceptance(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel for packs that takes all rows for one."""
    part = importlib.import_module("benchmarks.acceptance.attention")
    whole = lambda lengths, device: attention.sequence_lengths((sum(lengths),), device)  # noqa: E731
    monkeypatch.setattr(part, "sequence_lengths", whole)
    checks = [check for check in part.checks(bench) if check.name.startswith("llama")]
    assert [finding.state for finding in run_checks("attention", checks, bench)] == [State.FAILED, State.FAILED]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda result: 1.1 * result, " from plain PyTorch's, whose noise is "),
        (failing, "it fails: RuntimeError: CUDA error: no kernel image is available"),
        (no_number_in_one_row, "differs by nan from plain PyTorch's"),
    ],
    ids=["wrong", "fails", "no number in one row"],
)
def test_a_wrong_kernel_fails_the_acceptance(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor], said: str
) -> None:
    """Which a run leaves out, so that nothing else would show it."""
    monkeypatch.setattr(fast, "FAMILIES", {"llama": Family(fast=(changed(change),))})
    check = next(iter(importlib.import_module("benchmarks.acceptance.kernels").checks(bench)))
    outcome = check.run()
    assert (outcome.state, said in outcome.said) == (State.FAILED, True), outcome.said


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


def test_an_adapter_is_put_on_as_a_run_does(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without autocast, which would take its directions out of the weights in 16 bits."""
    part, seen = importlib.import_module("benchmarks.acceptance.adapters"), []
    adapt = part.adapt

    def look(*arguments: Any) -> Any:
        seen.append(torch.is_autocast_enabled("cpu"))
        return adapt(*arguments)

    monkeypatch.setattr(part, "adapt", look)
    rounded = replace(bench, device=bench.computing_in(torch.bfloat16))
    assert found("adapters", rounded)["PiSSA: starts as the base"].state is State.PASSED
    assert set(seen) == {False}


def test_memory_is_counted_once_what_is_gone_is_given_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a model of before goes in the middle of the step that is to lack memory."""
    part, asked = importlib.import_module("benchmarks.acceptance.shortage"), []

    class Model:
        def __init__(self) -> None:
            self.itself = self

    gone = weakref.ref(Model())

    def free_and_total(_device: object) -> tuple[int, int]:
        asked.append(gone() is None)
        return 10, 10

    monkeypatch.setattr(torch.cuda, "mem_get_info", free_and_total)
    with part._ballast(bench.device, 4, None):
        pass
    assert asked == [True]


def test_a_slow_gpu_takes_fewer_steps() -> None:
    """A check that would take minutes is none of twenty minutes."""
    taken = []

    def step() -> None:
        taken.append(1)
        time.sleep(0.02)

    cpu = Device(torch_device=torch.device("cpu"), name="cpu", dtype=torch.float32)
    assert timed(step, cpu, warm=2, count=8, most_s=0.03) >= 0.02
    assert len(taken) == 3


def test_memory_of_a_step_is_not_that_of_making_the_model(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight is in 16 bits before it is in 4; what cuBLAS lacks is a shortage, too."""
    peak = [0]

    def take(amount: int) -> None:
        peak[0] = max(peak[0], amount)

    def made(*_: object) -> tuple[None, bool]:
        take(16)
        return None, True

    def short() -> None:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    monkeypatch.setattr(Device, "reset_peak_memory", lambda _: peak.__setitem__(0, 0))
    monkeypatch.setattr(Device, "peak_memory_bytes", lambda _: peak[0])
    monkeypatch.setattr(memory, "_adapted", made)
    how, shape = Step(rows=(64,), quantization=Quantization.NF4), memory.LLAMA_2_7B
    for step, wanted in ((lambda: take(7), 7), (short, None)):
        monkeypatch.setattr(memory, "stepper", lambda *_, step=step, **__: step)
        measured = memory.measured(shape, how, bench.device)
        assert (measured if measured is None else measured[0]) == wanted


def test_paged_state_is_paged() -> None:
    """bitsandbytes keeps that of fewer than 100,000 values on the GPU."""
    lora = adapter_for(Optimizer.PAGED_ADAMW_8BIT)
    assert (
        lora.rank
        * Bench(device=Device(torch_device=torch.device("cpu"), name="", dtype=torch.float32)).sizes["hidden_size"]
        >= 1e5
    )


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
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environment)
    assert done.returncode == 1
    found = json.loads(done.stdout[done.stdout.index("\n{") :])["findings"]
    assert [(one["part"], one["state"]) for one in found] == [("device", "failed")]
    assert "sees no usable GPU" in found[0]["said"]


@pytest.mark.parametrize(
    ("program", "said"), [("import os; os.abort()", "exit code -6"), ("import time; time.sleep(600)", "took longer")]
)
def test_a_part_whose_process_ends_or_hangs_has_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, said: str
) -> None:
    """What it had found by then is kept."""
    kept = Finding(part="fit", check="1B", state=State.PASSED)
    file = tmp_path / "part.py"
    file.write_text(f"print({findings.to_json(kept)!r}, flush=True)\n{program}\n")
    monkeypatch.setattr(gpu_acceptance, "__file__", str(file))
    timers: list[Timer] = []

    class Held(Timer):
        # Time is up once the finding is there, however long that takes on a busy machine.
        def start(self) -> None:
            timers.append(self)

    monkeypatch.setattr(gpu_acceptance, "Timer", Held)
    found = gpu_acceptance.in_process("fit", "cpu", tiny=True, seconds=0.5)
    assert next(found) == kept
    (timer,) = timers
    assert timer.interval == 0.5 + gpu_acceptance._GRACE_S
    if "sleep" in program:
        timer.function()
    (last,) = found
    assert last.state is State.FAILED
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
    speed = found("speed", bench)["tiny, NF4, 64"]
    assert (speed.state, speed.figures["kernels"]) == (State.MEASURED, "fused-adapter, recomputed-swiglu")


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
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    assert all(volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"])
    assert (REPOSITORY / container["command"][-1].removeprefix("/app/")).exists()
    written = {mount["mountPath"] for mount in container["volumeMounts"]}
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    caches = [value for value in variables.values() if value.startswith("/")]
    assert all(any(Path(cache).is_relative_to(place) for place in written) for cache in caches)
