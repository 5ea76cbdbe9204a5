"""Fast paths are taken where they prove themselves, by all processes or none, and stay what a run began with."""

import dataclasses
import re
from collections.abc import Callable, Hashable
from typing import Any

import pytest
import torch
from tests.trainer.test_kernels import CONFIG, adapted, autocast_as_on_a_gpu
from tests.trainer.variants import rows

from lora_trainer.contract.config import Kernels, Quantization, TrainingConfig
from lora_trainer.data.store import Examples
from lora_trainer.data.tokens import Encoder
from lora_trainer.errors import ConfigError, GpuFaultError
from lora_trainer.model import fast_paths
from lora_trainer.model.device import Device
from lora_trainer.model.fast_path import FastPath
from lora_trainer.model.fast_paths import FUSED_ADAPTER, Chosen, Trial, prove
from lora_trainer.model.loading import Adapted
from lora_trainer.model.lora_kernel import factors, install
from lora_trainer.places.base import Base
from lora_trainer.ranks.collectives import ALONE, Ranks
from lora_trainer.recipe import kernels
from lora_trainer.recipe.kernels import choose_kernels
from lora_trainer.training.batches import Budget, collate
from lora_trainer.training.loop import Training

__all__ = ["autocast_as_on_a_gpu"]
PROVEN = Chosen(taken=("fused-adapter",))


def changed(change: Callable[[torch.Tensor], torch.Tensor]) -> FastPath:
    """The fused adapter with something wrong in what it gives."""

    def install_changed(module: Any) -> None:
        install(module)
        fused = module.forward
        vars(module)["forward"] = lambda x: change(fused(x))

    return dataclasses.replace(FUSED_ADAPTER, install=install_changed)


def wrong_gradient(result: torch.Tensor) -> torch.Tensor:
    """By 1 %, and the result right."""
    return 1.01 * result - (0.01 * result).detach()


def no_number_in_one_row(result: torch.Tensor) -> torch.Tensor:
    """The last one."""
    wrong = torch.zeros_like(result)
    wrong[..., -1, :] = torch.nan
    return result + wrong


def failing(_result: torch.Tensor) -> torch.Tensor:
    """As a kernel that the device has no code for."""
    raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with ...")


class Clock:
    """Each look at it takes a second, and so does `slow`."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        """The time."""
        self.now += 1
        return self.now

    def slow(self, result: torch.Tensor) -> torch.Tensor:
        """Right, and late."""
        self.now += 1
        return result


def arguments(encoder: Encoder, device: Device) -> dict[str, Any]:
    """A batch of real rows."""
    return collate([rows(encoder, 4)[0]], device.torch_device).arguments


def installed(model: Adapted) -> int:
    """How many modules do not compute as PEFT does."""
    return sum("forward" in vars(module) for module in model.model.modules() if hasattr(module, "lora_A"))


@pytest.mark.usefixtures("autocast_as_on_a_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantization", [Quantization.NONE, Quantization.NF4])
def test_the_fused_adapter_proves_itself(
    tiny_base: Base, encoder: Encoder, cpu: Device, dtype: torch.dtype, quantization: Quantization
) -> None:
    """With modules of every kind, most of odd ranks, and leaves the model as it was: an adapter that starts with B at
    0, too."""
    device = dataclasses.replace(cpu, dtype=dtype)
    config = dataclasses.replace(CONFIG, rank_pattern={"q_proj": 1, "k_proj": 3, "v_proj": 5, "down_proj": 7})
    model = adapted(tiny_base, device, config, quantization)
    before = {name: parameter.clone() for name, parameter in model.model.named_parameters()}
    drawn = torch.get_rng_state()
    found = prove(FUSED_ADAPTER, model.model, model.head, arguments(encoder, device), device, timed=True)
    assert (found.refusal, len(found.modules)) == (None, 14)
    assert installed(model) == 0
    assert torch.equal(torch.get_rng_state(), drawn)
    for name, parameter in model.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda result: 1.01 * result, "its result errs by 1.[01]e-02, plain PyTorch's by "),
        (wrong_gradient, "the gradient of its input errs by 1.[01]e-02, plain PyTorch's by "),
        (no_number_in_one_row, "its result errs by nan, plain PyTorch's by "),
        (failing, "it fails: RuntimeError: CUDA error: no kernel image is available"),
        (lambda result: result.double(), "its result has another type or shape than plain PyTorch's"),
    ],
    ids=["1 % wrong", "a gradient 1 % wrong", "no number in one row", "fails", "another type"],
)
def test_a_kernel_that_is_wrong_is_left_out(
    tiny_base: Base,
    encoder: Encoder,
    cpu: Device,
    *,
    dtype: torch.dtype,
    change: Callable[[torch.Tensor], torch.Tensor],
    sentence: str,
) -> None:
    """With one sentence, and without a trace."""
    device = dataclasses.replace(cpu, dtype=dtype)
    model = adapted(tiny_base, device, CONFIG)
    found = prove(changed(change), model.model, model.head, arguments(encoder, device), device, timed=False)
    assert found.refusal is not None
    assert re.match(sentence, found.refusal), found.refusal
    assert "\n" not in found.refusal
    assert installed(model) == 0


def test_a_kernel_that_is_wrong_for_one_kind_of_module_is_left_out(
    tiny_base: Base, encoder: Encoder, cpu: Device
) -> None:
    """Whichever it is: kernels have code for some shapes alone."""
    model, batch = adapted(tiny_base, cpu, CONFIG), arguments(encoder, cpu)
    wrong = changed(lambda result: 1.01 * result).install
    kinds = {FUSED_ADAPTER.kind(module) for module in FUSED_ADAPTER.find(model.model)}
    assert len(kinds) > 2
    for kind in kinds:

        def install_some(module: Any, kind: Hashable = kind) -> None:
            (wrong if FUSED_ADAPTER.kind(module) == kind else install)(module)

        some = dataclasses.replace(FUSED_ADAPTER, install=install_some)
        found = prove(some, model.model, model.head, batch, cpu, timed=False)
        assert str(found.refusal).startswith("its result errs by 1."), kind


def test_a_kernel_that_is_slower_is_left_out_where_it_is_timed(
    tiny_base: Base, encoder: Encoder, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on does not time: a busy machine would change its numbers."""
    model, batch, clock = adapted(tiny_base, cpu, CONFIG), arguments(encoder, cpu), Clock()
    monkeypatch.setattr(fast_paths, "time", clock)
    monkeypatch.setattr(fast_paths, "_LEAST_WORK", 0)

    def refusal(path: FastPath, *, timed: bool) -> str | None:
        return prove(path, model.model, model.head, batch, cpu, timed=timed).refusal

    wanted = "it takes 28000.0 ms forward and backward, plain PyTorch 14000.0 ms"
    assert refusal(changed(clock.slow), timed=True) == wanted
    assert refusal(changed(clock.slow), timed=False) is None
    assert refusal(FUSED_ADAPTER, timed=True) is None
    monkeypatch.setattr(fast_paths, "_LEAST_WORK", 2**30)
    assert refusal(changed(clock.slow), timed=True) is None, "too small for a clock"


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("short", [False, True])
def test_times_are_compared_on_the_runs_own_micro_batches(
    tiny_base: Base, encoder: Encoder, cpu: Device, monkeypatch: pytest.MonkeyPatch, *, packed: bool, short: bool
) -> None:
    """Up to a bound, and as far as memory goes: with few tokens a GPU waits for launches, and a faster kernel is left
    out for good. Numbers need no more than they did."""
    seen: dict[str, list[int]] = {"numbers": [], "times": []}

    def refusal(trial: Trial) -> None:
        seen["numbers"].append(trial.seen[0].shape[:-1].numel())

    def seconds(_trial: Trial, inputs: Any) -> tuple[float, float]:
        seen["times"].append(inputs[0].shape[:-1].numel())
        if short and seen["times"][-1] > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0, 1.0

    monkeypatch.setitem(fast_paths.MOST_TOKENS, "cpu", 64)
    monkeypatch.setitem(fast_paths.TIMED_TOKENS, "cpu", 512)
    monkeypatch.setattr(fast_paths, "_LEAST_WORK", 0)
    monkeypatch.setattr(fast_paths.Trial, "refusal", refusal)
    monkeypatch.setattr(fast_paths.Trial, "seconds", seconds)
    monkeypatch.setattr(kernels, "ALL", (FUSED_ADAPTER,))

    def timed(tokens: int) -> int:
        seen["times"].clear()
        model = adapted(tiny_base, cpu, CONFIG)
        found = choose_kernels(
            Kernels.AUTO, model, rows(encoder, 4), cpu, ALONE, packed=packed, kept=None, tokens=tokens
        )
        assert found == PROVEN
        return seen["times"][-1]

    longest = int(rows(encoder, 4).lengths.max())
    for tokens, most in ((256, 256), (4096, 512), (32, 64)):
        found = timed(tokens)
        least = 1 if short or tokens < 64 else most - longest
        assert least <= found <= (64 if short else most), tokens
    assert max(seen["numbers"]) <= 64


class Others(Ranks):
    """Two processes, of which the other one found `said`."""

    said: str | None = None

    def gather(self, value: Any, kind: Any) -> list[Any]:
        """By rank."""
        return [value, self.said]


@pytest.mark.parametrize(("said", "taken"), [(None, ("fused-adapter",)), ("it fails", ())])
def test_what_one_process_refuses_all_leave_out(
    tiny_base: Base, encoder: Encoder, cpu: Device, monkeypatch: pytest.MonkeyPatch, *, said: str | None, taken: Any
) -> None:
    """Else they would round otherwise than each other."""
    monkeypatch.setattr(Others, "said", said)
    monkeypatch.setattr(kernels, "ALL", (FUSED_ADAPTER,))
    model = adapted(tiny_base, cpu, CONFIG)
    found = choose_kernels(Kernels.AUTO, model, rows(encoder, 4), cpu, Others(), packed=False, kept=None)
    assert (found.taken, installed(model)) == (taken, 14 * len(taken))
    assert (found.left_out == ()) is (said is None)
    assert ("fused-adapter: it fails" in found.left_out) is (said is not None)


def test_a_run_keeps_the_kernels_that_it_began_with(
    tiny_base: Base, encoder: Encoder, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later attempt takes no others, does not time them, and says when it lost one."""
    model = adapted(tiny_base, cpu, CONFIG)

    def choose(kept: Chosen, wanted: Kernels = Kernels.AUTO) -> Chosen:
        return choose_kernels(wanted, model, rows(encoder, 4), cpu, ALONE, packed=True, kept=kept, step=7)

    reasoned = Chosen(left_out=("fused-adapter: it takes longer",))
    assert choose(reasoned) == reasoned
    assert choose(PROVEN, Kernels.REFERENCE) == Chosen()
    assert installed(model) == 0
    monkeypatch.setattr(fast_paths, "_MOST_TIME", 0.0)
    monkeypatch.setattr(fast_paths, "_LEAST_WORK", 0)
    assert choose(PROVEN) == PROVEN
    assert installed(model) == 14
    for module in FUSED_ADAPTER.find(model.model):
        FUSED_ADAPTER.remove(module)
    monkeypatch.setattr(kernels, "ALL", (changed(failing),))
    lost = choose(PROVEN)
    assert (lost.taken, lost.changed_step, installed(model)) == ((), 7, 0)
    assert lost.left_out[0].startswith("fused-adapter: it fails: RuntimeError: CUDA error")
    assert lost.left_out[0].endswith("it was taken up to step 7")
    assert choose(lost) == lost, "the attempts after it say so, too"
    monkeypatch.setattr(kernels, "ALL", ())
    assert "there is none for this model" in choose(PROVEN).left_out[0]


def trained(model: Adapted, examples: Examples, device: Device) -> list[torch.Tensor]:
    """The adapter after two steps."""
    config = TrainingConfig(epochs=None, max_steps=2, learning_rate=0.01, effective_batch_size=3, seed=5)
    budget = Budget.of(3, int(examples.lengths.max()))
    training = Training(adapted=model, examples=examples, config=config, budget=budget, device=device)
    training.run()
    return [parameter.detach() for parameter in training.parameters.values()]


def test_a_run_with_everything_left_out_is_that_of_reference(
    tiny_base: Base, encoder: Encoder, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit; one on a fast path differs, by rounding."""
    device, examples, found = dataclasses.replace(cpu, dtype=torch.bfloat16), rows(encoder, 6), []
    for wanted, paths in (
        (Kernels.REFERENCE, (FUSED_ADAPTER,)),
        (Kernels.AUTO, (changed(failing),)),
        (Kernels.AUTO, (FUSED_ADAPTER,)),
    ):
        monkeypatch.setattr(kernels, "ALL", paths)
        model = adapted(tiny_base, device, CONFIG)
        choose_kernels(wanted, model, examples, device, ALONE, packed=False, kept=None)
        found.append(trained(model, examples, device))
    reference, nothing, fused = found
    assert all(map(torch.equal, reference, nothing))
    assert not all(map(torch.equal, reference, fused))


def test_what_cannot_be_compared_is_left_out(tiny_base: Base, encoder: Encoder, cpu: Device) -> None:
    """As where memory does not suffice for the wider type: no reason for a run to end."""

    def written_out(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    model, path = adapted(tiny_base, cpu, CONFIG), dataclasses.replace(FUSED_ADAPTER, written_out=written_out)
    found = prove(path, model.model, model.head, arguments(encoder, cpu), cpu, timed=True)
    assert found.refusal == "it cannot be compared: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert installed(model) == 0


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("CUDA error: an illegal memory access was encountered", GpuFaultError),
        ("Triton Error [CUDA]: operation not supported on global/shared address space", GpuFaultError),
        ("CUDA error: device-side assert triggered", ConfigError),
    ],
)
@pytest.mark.parametrize("place", ["numbers", "reference", "time"])
def test_a_gpu_that_failed_in_a_trial_ends_the_run(
    *,
    tiny_base: Base,
    encoder: Encoder,
    cpu: Device,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    kind: type[Exception],
    place: str,
) -> None:
    """No later call of the process would work there; the sentence names the fast path, once, and what to do."""

    def broken(*_: object) -> Any:
        raise RuntimeError(said)

    model, path = adapted(tiny_base, cpu, CONFIG), FUSED_ADAPTER
    if place == "numbers":
        path = changed(broken)
    elif place == "reference":
        path = dataclasses.replace(path, written_out=broken)
    else:
        monkeypatch.setattr(fast_paths, "_slower", broken)
    with pytest.raises(kind) as caught:
        prove(path, model.model, model.head, arguments(encoder, cpu), cpu, timed=True)
    assert said in str(caught.value)
    remedy = "; the fast path fused-adapter was being tried: if this repeats, set spec.training.kernels to Reference"
    assert str(caught.value).count(remedy) == 1


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: too many resources requested for launch",
        "Triton Error [CUDA]: device kernel image is invalid",
        "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`",
    ],
)
def test_a_kernel_that_the_gpu_did_not_begin_is_left_out(
    tiny_base: Base, encoder: Encoder, cpu: Device, said: str
) -> None:
    """The next one can run."""

    def refused(_result: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(said)

    model = adapted(tiny_base, cpu, CONFIG)
    found = prove(changed(refused), model.model, model.head, arguments(encoder, cpu), cpu, timed=False)
    assert str(found.refusal).startswith(f"it fails: RuntimeError: {said}")


def test_modules_that_no_row_reaches_are_not_proven(tiny_base: Base, encoder: Encoder, cpu: Device) -> None:
    """They stay with plain PyTorch, as do all where none is reached."""
    model = adapted(tiny_base, cpu, CONFIG)
    batch = arguments(encoder, cpu)
    for layer in model.model.get_base_model().model.layers:
        vars(layer.mlp)["forward"] = torch.zeros_like
    assert len(prove(FUSED_ADAPTER, model.model, model.head, batch, cpu, timed=False).modules) == 8
    nothing = dataclasses.replace(FUSED_ADAPTER, find=lambda model: FUSED_ADAPTER.find(model)[-3:])
    found = prove(nothing, model.model, model.head, batch, cpu, timed=False)
    assert (found.modules, found.refusal) == ((), "no row at hand reaches a module that it suits")


def test_both_factors_are_compared_with_values_that_count(tiny_base: Base, cpu: Device) -> None:
    """B is 0 at the start, and then nothing of the adapter shows."""
    module = FUSED_ADAPTER.find(adapted(tiny_base, cpu, CONFIG).model)[0]
    _, up = factors(module)
    up.data.zero_()
    x = torch.randn(1, 30, 64)
    with torch.no_grad():
        own = module(x)
        with FUSED_ADAPTER.stirred(module, x):
            added = module(x) - own
        assert 0.5 < added.norm() / own.norm() < 2
        assert torch.equal(module(x), own)
