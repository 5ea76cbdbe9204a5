"""The self-check of what is fast: what is wrong is left out, one entry at a time, and the model is not changed."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tests.trainer.test_kernels import CONFIG, autocast_as_on_a_gpu
from tests.trainer.variants import rows

from lora_trainer.data.store import Examples
from lora_trainer.data.tokens import Encoder, Example
from lora_trainer.distributed.collectives import ALONE, Ranks
from lora_trainer.errors import ConfigError, GpuFaultError
from lora_trainer.model.device import Device
from lora_trainer.model.fast import ADAPTER, CPU_GATE, Entry, isolate, usable
from lora_trainer.model.loading import Adapted, adapt, load_model
from lora_trainer.model.recompute import recompute_activations
from lora_trainer.spec.config import LoraConfig, Quantization
from lora_trainer.storage.base import Base
from lora_trainer.train import self_check
from lora_trainer.train.batches import MicroBatchLimit
from lora_trainer.train.self_check import Taken, checked

__all__ = ["autocast_as_on_a_gpu"]
LONG = 400


def changed(change: Callable[[torch.Tensor], torch.Tensor]) -> Entry:
    """The fused adapter with something wrong in what it gives."""

    def install(module: Any) -> None:
        ADAPTER.install(module)
        fused = module.forward
        vars(module)["forward"] = lambda x: change(fused(x))

    return dataclasses.replace(ADAPTER, install=install)


def wrong_gradient(result: torch.Tensor) -> torch.Tensor:
    """By a tenth, and the result right."""
    return 1.1 * result - (0.1 * result).detach()


def no_number_in_one_row(result: torch.Tensor) -> torch.Tensor:
    """The last one."""
    wrong = torch.zeros_like(result)
    wrong[..., -1, :] = torch.nan
    return result + wrong


def no_number_in_evaluations(result: torch.Tensor) -> torch.Tensor:
    """And right where gradients are taken."""
    return result if torch.is_grad_enabled() else result + torch.nan


def wrong_in_long_rows(result: torch.Tensor) -> torch.Tensor:
    """Beyond 200 tokens, which short ones have not where rows are padded."""
    return torch.cat([result[:, :200], 1.1 * result[:, 200:]], dim=1)


def failing(_result: torch.Tensor) -> torch.Tensor:
    """As a kernel that the device has no code for."""
    raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with ...")


class WrongGradientOfA(torch.autograd.Function):
    """A, whose gradient is wrong by a tenth."""

    @staticmethod
    def forward(_ctx: Any, lora_a: torch.Tensor) -> torch.Tensor:
        """As it is."""
        return lora_a.clone()

    @staticmethod
    def backward(_ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        """Too large."""
        return 1.1 * gradients[0]


def install_wrong_gradient_of_a(module: Any) -> None:
    """Which is nothing where B is 0."""
    scale, base = module.scaling["default"], module.get_base_layer()
    lora_a, lora_b = module.lora_A["default"], module.lora_B["default"]
    vars(module)["forward"] = lambda x: (
        base(x) + scale * (x @ WrongGradientOfA.apply(lora_a.weight).T @ lora_b.weight.T)
    )


def fresh(
    base: Base, device: Device, config: LoraConfig = CONFIG, quantization: Quantization = Quantization.NONE
) -> Adapted:
    """The tiny model with an adapter that has learned nothing."""
    found = adapt(load_model(base, quantization, device), config, base, device, 3)
    assert isolate(found.model)
    return found


def with_a_long_row(encoder: Encoder) -> Examples:
    """Some short rows, and one of `LONG` tokens after them."""
    short = list(rows(encoder, 6))
    ids = np.tile(np.concatenate([row.input_ids for row in short]), 9)[:LONG]
    return Examples.of([*short, Example(input_ids=ids, labels=ids, truncated=False)])


def check(
    model: Adapted,
    encoder: Encoder,
    device: Device,
    entries: Sequence[Entry] | None = None,
    ranks: Ranks = ALONE,
    *,
    packed: bool = True,
) -> Taken:
    """As a run on a GPU does, with micro-batches of so many tokens."""
    examples = with_a_long_row(encoder)
    limit = MicroBatchLimit(tokens=2048, longest=int(examples.lengths.max()), packed=packed)
    entries = usable(model.model, device, packed=packed) if entries is None else entries
    return checked(model, entries, examples, limit, device, ranks=ranks)


@pytest.mark.usefixtures("autocast_as_on_a_gpu")
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantization", [Quantization.NONE, Quantization.NF4])
def test_what_is_right_passes_and_nothing_is_changed(
    *,
    tiny_base: Base,
    encoder: Encoder,
    cpu: Device,
    dtype: torch.dtype,
    quantization: Quantization,
    recompute: bool,
    packed: bool,
) -> None:
    """Weights to the byte, no gradient, no random number drawn; with modules of most odd ranks."""
    device = dataclasses.replace(cpu, dtype=dtype)
    config = dataclasses.replace(CONFIG, rank_pattern={"q_proj": 1, "k_proj": 3, "v_proj": 5, "down_proj": 7})
    model = fresh(tiny_base, device, config, quantization)
    if recompute:
        recompute_activations(model.model)
    before = {name: parameter.clone() for name, parameter in model.model.named_parameters()}
    drawn = torch.get_rng_state()
    found = check(model, encoder, device, packed=packed)
    assert found == Taken(entries=(ADAPTER, CPU_GATE))
    assert torch.equal(torch.get_rng_state(), drawn)
    for name, parameter in model.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (changed(lambda result: 1.1 * result), "the gradient of "),
        (changed(wrong_gradient), "the gradient of "),
        (changed(no_number_in_one_row), " differs by nan from plain PyTorch's"),
        (changed(no_number_in_evaluations), "the loss of an evaluation differs by "),
        (changed(wrong_in_long_rows), "the gradient of "),
        (changed(failing), "it fails: RuntimeError: CUDA error: no kernel image is available"),
        (dataclasses.replace(ADAPTER, install=install_wrong_gradient_of_a), ".lora_A.default.weight differs by "),
    ],
    ids=["wrong", "gradient", "no number in one row", "evaluations", "long rows", "fails", "gradient of A"],
)
def test_what_is_wrong_is_left_out_with_one_sentence(
    tiny_base: Base, encoder: Encoder, cpu: Device, *, dtype: torch.dtype, entry: Entry, sentence: str
) -> None:
    """And nothing else is."""
    device = dataclasses.replace(cpu, dtype=dtype)
    model = fresh(tiny_base, device)
    found = check(model, encoder, device, (entry, CPU_GATE), packed=False)
    assert (found.entries, found.unchecked) == ((CPU_GATE,), False)
    (said,) = found.left_out
    assert said.startswith("fused-adapter: ")
    assert sentence in said
    assert "\n" not in said
    assert check(model, encoder, device, (entry,), packed=False) == dataclasses.replace(found, entries=())


def test_a_kernel_that_is_wrong_for_one_kind_of_module_is_left_out(
    tiny_base: Base, encoder: Encoder, cpu: Device
) -> None:
    """Whichever it is: kernels have code for some shapes alone."""
    model, wrong = fresh(tiny_base, cpu), changed(lambda result: 1.1 * result).install
    for name in ("q_proj", "o_proj", "down_proj"):

        def install_some(module: Any, name: str = name) -> None:
            named = next(path for path, one in model.model.named_modules() if one is module)
            (wrong if named.endswith(name) else ADAPTER.install)(module)

        found = check(model, encoder, cpu, (dataclasses.replace(ADAPTER, install=install_some),))
        assert found.entries == ()


class Other(Ranks):
    """Two processes, of which the other one says so each time it is asked."""

    said: str | None = None

    def gather(self, value: Any, kind: Any) -> list[Any]:
        """By rank."""
        return [value, self.said]


def test_what_one_process_leaves_out_all_do(
    tiny_base: Base, encoder: Encoder, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else they would round otherwise than each other; and where one has too little memory, none checks."""
    model = fresh(tiny_base, cpu)
    assert check(model, encoder, cpu, ranks=Other()) == Taken(entries=(ADAPTER, CPU_GATE))
    monkeypatch.setattr(Other, "said", "out of memory")
    assert check(model, encoder, cpu, ranks=Other()) == Taken(entries=(ADAPTER, CPU_GATE), unchecked=True)


@pytest.mark.parametrize(("most", "tried", "unchecked"), [(600, [1024, 512], False), (100, [1024, 512, 256], True)])
def test_where_memory_does_not_suffice_fewer_tokens_are_checked(
    *,
    tiny_base: Base,
    encoder: Encoder,
    cpu: Device,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    tried: list[int],
    unchecked: bool,
) -> None:
    """Down to 256; below that the run says that they are unchecked. One long row is among them."""
    taken: list[int] = []
    run_step: Any = vars(self_check)["run_step"]

    def limited(model: Any, given: Any, **more: Any) -> Any:
        tokens = sum(row.length for row in given)
        taken.append(tokens)
        assert max(row.length for row in given) == min(LONG, tokens // 2)
        if tokens > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run_step(model, given, **more)

    monkeypatch.setattr(self_check, "run_step", limited)
    model = fresh(tiny_base, cpu)
    assert check(model, encoder, cpu) == Taken(entries=(ADAPTER, CPU_GATE), unchecked=unchecked)
    assert sorted({*taken}, reverse=True) == tried
    assert all(parameter.grad is None for parameter in model.model.parameters())


def test_a_kernel_that_lacks_memory_is_none_that_is_wrong(tiny_base: Base, encoder: Encoder, cpu: Device) -> None:
    """Also beside one that is: fewer tokens are tried, and what memory never suffices for is not left out."""

    def short(_result: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    entries = (changed(failing), dataclasses.replace(changed(short), name="other"))
    assert check(fresh(tiny_base, cpu), encoder, cpu, entries) == Taken(entries=entries, unchecked=True)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("CUDA error: an illegal memory access was encountered", GpuFaultError),
        ("Triton Error [CUDA]: operation not supported on global/shared address space", GpuFaultError),
        ("CUDA error: device-side assert triggered", ConfigError),
    ],
)
def test_a_gpu_that_failed_ends_the_run(
    tiny_base: Base, encoder: Encoder, cpu: Device, *, said: str, kind: type[Exception]
) -> None:
    """No later call of the process would work there; the sentence names what was checked, and what to do."""

    def broken(_result: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(said)

    model = fresh(tiny_base, cpu)
    before = [parameter.clone() for parameter in model.model.parameters()]
    with pytest.raises(kind) as caught:
        check(model, encoder, cpu, (changed(broken),))
    assert said in str(caught.value)
    remedy = "; fused-adapter was being checked: if this repeats, set spec.training.kernels to Reference"
    assert str(caught.value).count(remedy) == 1
    assert all(map(torch.equal, model.model.parameters(), before))


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

    found = check(fresh(tiny_base, cpu), encoder, cpu, (changed(refused),))
    assert found.left_out[0].startswith(f"fused-adapter: it fails: RuntimeError: {said}")


def test_dropout_is_off(tiny_base: Base, encoder: Encoder, cpu: Device) -> None:
    """Else two passes would differ by chance, and anything would pass."""
    model = fresh(tiny_base, cpu, dataclasses.replace(CONFIG, dropout=0.5))
    drawn = torch.get_rng_state()
    wrong = dataclasses.replace(
        CPU_GATE, find=lambda model, _: [layer.mlp for layer in model.get_base_model().model.layers], install=doubled
    )
    assert check(model, encoder, cpu) == Taken(entries=(CPU_GATE,))
    assert check(model, encoder, cpu, (wrong,)).entries == ()
    assert torch.equal(torch.get_rng_state(), drawn)


def doubled(module: Any) -> None:
    """An MLP that gives a tenth more than it should."""
    right = type(module).forward
    vars(module)["forward"] = lambda x: 1.1 * right(module, x)
