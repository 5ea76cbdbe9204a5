"""A training step does not wait for the device: counted on a CPU, by the operations that would wait for a GPU.

Two waits of libraries do not show so, and remain: that of bitsandbytes after each trained tensor, and on GPUs below
compute capability 9.0 that of PyTorch's grouped products, which a mixture has for each layer.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer import variants
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lora_trainer.data.tokens import Encoder
from lora_trainer.model.device import Device
from lora_trainer.model.fast import isolate
from lora_trainer.model.loading import adapt, load_model
from lora_trainer.model.lora_kernel import fuse
from lora_trainer.spec.config import ActivationCheckpointing, LoraConfig, Optimizer, Quantization, TrainingConfig
from lora_trainer.storage.base import Base, open_folder
from lora_trainer.train.batches import MicroBatchLimit
from lora_trainer.train.callbacks import Step, TrainerCallback
from lora_trainer.train.loop import Training
from lora_trainer.train.optimizers import make_optimizer

WAITING = {"_local_scalar_dense", "equal", "is_nonzero", "item", "masked_select", "nonzero", "unique_dim", "_unique2"}
"""Operations whose result's value or shape only the device knows."""
READING = {"tolist", "cpu", "numpy", "__array__"}
"""Methods that read a tensor whole, without an operation where it is on the CPU already."""


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts them, of the backward pass too."""

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = seen

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """PyTorch's protocol: `func`, counted."""
        name = func.overloadpacket.__name__  # type: ignore[attr-defined]
        by_mask = name.startswith("index") and any(
            isinstance(leaf, torch.Tensor) and leaf.dtype is torch.bool for leaf in tree_leaves(list(args[1:]))
        )
        if name in WAITING or by_mask:
            self.seen[f"{name} by a mask" if by_mask else name] += 1
        return func(*args, **(kwargs or {}))


class Reads(TorchFunctionMode):
    """Counts tensors that are read whole."""

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """PyTorch's protocol: `func`, counted."""
        name = getattr(func, "__name__", "")
        if name in READING:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def count_walks(seen: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Count walks over the modules of a model, each with all that it comes by."""
    own = torch.nn.Module.named_modules

    def walk(module: torch.nn.Module, memo: set[torch.nn.Module] | None = None, *args: Any, **more: Any) -> Any:
        if memo is None and next(module.children(), None) is not None:
            seen["walk"] += 1
        return own(module, memo, *args, **more)

    monkeypatch.setattr(torch.nn.Module, "named_modules", walk)


class BySteps(TrainerCallback):
    """What was counted in each step."""

    def __init__(self, seen: Counter[str]) -> None:
        self.seen = seen
        self.steps: list[Counter[str]] = []

    def stepped(self, step: Step) -> None:
        """Keep it, and count anew."""
        self.steps.append(Counter(self.seen))
        self.seen.clear()


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """One of four experts."""
    return open_folder(variants.make_mixture(tmp_path_factory.mktemp("mixture")))


@pytest.mark.parametrize(
    ("packed", "changes"),
    [
        (True, {}),
        (False, {"dtype": torch.bfloat16, "recompute": ActivationCheckpointing.FULL}),
        (True, {"dtype": torch.bfloat16, "quantization": Quantization.NF4, "dropout": 0.1}),
        (True, {"scaled": True}),
        (True, {"scaled": True, "optimizer": Optimizer.ADAMW_8BIT}),
        (True, {"mixture": True}),
    ],
    ids=["packed", "padded, recomputed, in 16 bits", "NF4 with dropout", "scaled", "8-bit optimizer", "mixture"],
)
def test_a_step_reads_from_the_device_once(
    *,
    tiny_base: Base,
    mixture: Base,
    encoder: Encoder,
    cpu: Device,
    monkeypatch: pytest.MonkeyPatch,
    packed: bool,
    changes: dict[str, Any],
) -> None:
    """Its loss and the norm of its gradient, together, however many micro-batches it has, and it looks for no modules;
    the first step also tries whether the output embedding is the last of the model."""
    device, rows = variants.with_type(cpu, changes.get("dtype", torch.float32)), variants.rows(encoder, 12)
    base = mixture if changes.get("mixture", False) else tiny_base
    adapted = adapt(
        load_model(base, changes.get("quantization", Quantization.NONE), device),
        LoraConfig(rank=4, alpha=8, dropout=changes.get("dropout", 0.0)),
        base,
        device,
        1,
        checkpointing=changes.get("recompute", ActivationCheckpointing.NONE),
    )
    assert isolate(adapted.model)
    fuse(adapted.model)
    passes = []
    adapted.model.register_forward_pre_hook(lambda *_: passes.append(1))
    seen: Counter[str] = Counter()
    callback = BySteps(seen)
    training = Training(
        adapted=adapted,
        examples=rows,
        config=TrainingConfig(
            epochs=None,
            max_steps=3,
            effective_batch_size=12,
            seed=5,
            optimizer=changes.get("optimizer", Optimizer.ADAMW),
        ),
        limit=MicroBatchLimit.of(2, int(rows.lengths.max()), packed=packed),
        device=device,
        callback=callback,
    )
    training.scaler = torch.amp.GradScaler("cpu", enabled=changes.get("scaled", False))
    count_walks(seen, monkeypatch)
    with Waits(seen), Reads(seen):
        training.run()
    assert len(passes) > 3 * 3, "a step has several micro-batches"
    assert callback.steps[1:] == [Counter(tolist=1)] * 2


@pytest.mark.parametrize(("optimizer", "waits"), [(Optimizer.ADAMW, 0), (Optimizer.ADAMW_8BIT, 3)])
def test_an_optimizer_of_bitsandbytes_waits_after_each_tensor(
    cpu: Device, monkeypatch: pytest.MonkeyPatch, optimizer: Optimizer, waits: int
) -> None:
    """On a CPU its function does nothing. Documented; a release that leaves it out is to be noticed."""
    seen: list[torch.Tensor] = []
    monkeypatch.setattr("bitsandbytes.optim.optimizer.sync_gpu", seen.append)
    tensors = [torch.nn.Parameter(torch.ones(64, 64)) for _ in range(3)]
    made = make_optimizer(tensors, TrainingConfig(optimizer=optimizer), cpu)
    for tensor in tensors:
        tensor.grad = torch.ones_like(tensor)
    made.step()
    assert len(seen) == waits


def test_a_grouped_product_without_a_kernel_of_its_own_waits_for_its_offsets() -> None:
    """Below compute capability 9.0: read in PyTorch's own source, since a CPU's memory has them already."""
    header = Path(torch.__file__).parent / "include/ATen/native/GroupedMMUtils.h"
    assert "auto offs_cpu = offs.value().cpu();" in header.read_text(encoding="utf-8")
