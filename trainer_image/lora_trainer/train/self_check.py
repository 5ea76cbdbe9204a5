"""One self-check of what is fast, on a GPU and before the first step: gradients and an evaluation's loss beside those
of plain PyTorch, on some rows of the run.

With B = 0, as adapters start, a wrong gradient of A is invisible: B is random while it is checked. How far plain
PyTorch is from itself where the same rows lie in other packs, and their embeddings are a rounding away, is the noise,
and what is fast may be four times as far. Packs alone would say little: kernels often round a row alike beside others.
"""

import contextlib
import dataclasses
import itertools
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from lora_trainer.data.store import Examples
from lora_trainer.data.tokens import Example
from lora_trainer.distributed.collectives import ALONE, Ranks
from lora_trainer.errors import ConfigError, GpuFaultError, GpuUnfitError, explain, one_sentence, out_of_memory
from lora_trainer.model.device import Device
from lora_trainer.model.fast import Entry, compute_with, usable
from lora_trainer.model.loading import Adapted, set_input_casts, set_training
from lora_trainer.model.recompute import decoder_layers
from lora_trainer.train.batches import MicroBatchLimit
from lora_trainer.train.evaluate import evaluate
from lora_trainer.train.noise import rounded_otherwise
from lora_trainer.train.objective import SFT
from lora_trainer.train.state import trainable
from lora_trainer.train.step import run_step

log = logging.getLogger(__name__)
MOST_TOKENS, LEAST_TOKENS = 1024, 256
TIMES_NOISE = 4
FLOOR = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-20}
"""Relative differences that are never held against what is fast."""
_STD, _SCALE = 0.02, 2.0**4
"""Of a random B, and of fp16 losses."""
_LOSS = "the loss of an evaluation"
_SHORT = "out of memory"
_NOT_LAUNCHED = re.compile(
    r"invalid (configuration )?argument|invalid device function|kernel image is invalid|PTX JIT compilation failed|"
    r"too many resources requested|operation not supported(?! on global)|"
    r"CUBLAS_STATUS_(NOT_SUPPORTED|INVALID_VALUE|ARCH_MISMATCH)"
)
"""What CUDA says of a kernel that it did not begin: the next one can run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The entries that a run computes with, a sentence for each that is left out, and whether memory did not suffice to
    check them."""

    entries: tuple[Entry, ...] = ()
    left_out: tuple[str, ...] = ()
    unchecked: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """In the table's order."""
        return tuple(entry.name for entry in self.entries)


def take_fast(adapted: Adapted, examples: Examples, limit: MicroBatchLimit, device: Device, ranks: Ranks) -> Taken:
    """Let the model compute with what its family may use and every process can, on GPUs as far as it passes the
    self-check; all processes call this, and find the same."""
    own = usable(adapted.model, device, packed=limit.packed)
    common = set.intersection(*map(set, ranks.gather(tuple(entry.name for entry in own), tuple[str, ...])))
    entries = tuple(entry for entry in own if entry.name in common)
    taken = Taken(entries=entries)
    if entries and device.torch_device.type != "cpu":
        taken = checked(adapted, entries, examples, limit, device, ranks=ranks)
    compute_with(adapted.model, taken.entries, device)
    return taken


def checked(
    adapted: Adapted,
    entries: Sequence[Entry],
    examples: Examples,
    limit: MicroBatchLimit,
    device: Device,
    *,
    ranks: Ranks = ALONE,
) -> Taken:
    """Those entries that pass, on as many tokens as memory suffices for. The model's weights are unchanged."""
    tokens = MOST_TOKENS
    while tokens >= LEAST_TOKENS:
        packs = dataclasses.replace(limit, tokens=min(tokens, limit.tokens))
        check = _Check(adapted=adapted, rows=_rows(examples, tokens), limit=packs, device=device, ranks=ranks)
        found = check.passing(tuple(entries))
        if found is not None:
            return found
        tokens //= 2
        device.give_back()
    log.warning("kernels are not checked: memory does not suffice for %d tokens", LEAST_TOKENS)
    return Taken(entries=tuple(entries), unchecked=True)


def _rows(examples: Examples, tokens: int) -> list[Example]:
    """Rows of so many tokens, all of them learned: the longest one first, cut to half, then the others in their order,
    again where they are too few."""
    longest = examples[int(np.argmax(examples.lengths))]
    rows = [_cut(longest, tokens // 2)]
    room = tokens - rows[0].length
    for row in itertools.cycle(examples):
        rows.append(_cut(row, room))
        room -= rows[-1].length
        if room < 2:
            return rows
    return rows


def _cut(row: Example, tokens: int) -> Example:
    first = row.first(tokens)
    return dataclasses.replace(first, labels=first.input_ids)


@dataclass(slots=True, kw_only=True)
class _Check:
    """The numbers of `plain` PyTorch on some rows, by parameter, and the `noise` of each kind of module."""

    adapted: Adapted
    rows: list[Example]
    limit: MicroBatchLimit
    device: Device
    ranks: Ranks
    plain: Mapping[str, torch.Tensor] = field(default_factory=dict)
    noise: Mapping[str, float] = field(default_factory=dict)

    def passing(self, entries: tuple[Entry, ...]) -> Taken | None:
        """All entries, or where these miss those that do not, put in one after the other; None where memory does not
        suffice."""
        with _stirred(self.adapted, self.device):
            if self._agreed(self._begin) is not None:
                return None
            whole = self._missed(entries)
            if whole is None or whole == _SHORT:
                return None if whole else Taken(entries=entries)
            taken: tuple[Entry, ...] = ()
            left_out: list[str] = []
            for entry in entries:
                missed = whole if len(entries) == 1 else self._missed((*taken, entry))
                if missed == _SHORT:
                    return None
                if missed is None:
                    taken = (*taken, entry)
                else:
                    left_out.append(f"{entry.name}: {missed}")
        for sentence in left_out:
            log.warning("kernel left out: %s", sentence)
        return Taken(entries=taken, left_out=tuple(left_out))

    def _begin(self) -> None:
        compute_with(self.adapted.model, (), self.device)
        self.plain = {name: gradient.cpu() for name, gradient in self._numbers().items()}
        with rounded_otherwise(self.adapted.model):
            self.noise = self._distances(self._numbers(other=True))

    def _missed(self, entries: tuple[Entry, ...]) -> str | None:
        """Why these are not taken, on any process."""
        return self._agreed(lambda: self._objection(entries), ", ".join(entry.name for entry in entries))

    def _objection(self, entries: tuple[Entry, ...]) -> str | None:
        compute_with(self.adapted.model, entries, self.device)
        floor = FLOOR[self.device.dtype]
        for kind, distance in self._distances(self._numbers()).items():
            noise = self.noise[kind]
            # Also for what is no number.
            if not distance <= max(TIMES_NOISE * noise, floor):
                what = kind if kind == _LOSS else f"the gradient of {kind}"
                return f"{what} differs by {distance:.1e} from plain PyTorch's, whose noise is {noise:.1e}"
        return None

    def _agreed(self, judge: Callable[[], str | None], fast: str = "") -> str | None:
        """What one process objects to, all leave out; a shortage of memory before anything else. Raises what plain
        PyTorch raises, and what ends a run anyway."""
        try:
            own = judge()
        except Exception as error:
            short = out_of_memory(error)
            if (short and self.ranks.fsdp) or not (short or fast):
                raise
            own = _SHORT if short else _sentence(error, fast)
        found = [one for one in self.ranks.gather(own, str | None) if one is not None]
        return _SHORT if _SHORT in found else next(iter(found), None)

    def _numbers(self, *, other: bool = False) -> dict[str, torch.Tensor]:
        """Gradients by parameter, and the losses of an evaluation; with `other` the same rows in other packs."""
        rows, limit = self.rows, self.limit
        if other:
            rows, limit = rows[::-1], dataclasses.replace(limit, tokens=limit.tokens // 2)
        model, parameters = self.adapted.model, trainable(self.adapted.model)
        # Each process has all rows: layers that are divided are gathered as often by each.
        alone = dataclasses.replace(ALONE, fsdp=self.ranks.fsdp)
        scaler = torch.amp.GradScaler(
            self.device.torch_device.type, init_scale=_SCALE, enabled=self.device.dtype is torch.float16
        )
        try:
            with _as_in_a_step(self.adapted, self.device):
                run_step(
                    self.adapted,
                    rows,
                    objective=SFT,
                    weights={"loss": 1},
                    limit=limit,
                    device=self.device,
                    scaler=scaler,
                    ranks=alone,
                )
            found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}
        finally:
            for parameter in parameters.values():
                parameter.grad = None
        losses = evaluate(model, self.adapted.head, rows, self.device, lambda _: None, limit=limit, ranks=alone).sums
        found[_LOSS] = torch.tensor(losses[::-1] if other else losses, dtype=torch.float64)
        return found

    def _distances(self, found: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """From plain PyTorch's, by kind of module, relative to its norm."""
        apart: dict[str, list[float]] = {}
        for name, ours in found.items():
            theirs = self.plain[name].to(ours.device)
            kind = re.sub(r"\.\d+\.", ".*.", name.removeprefix("base_model.model."))
            sums = apart.setdefault(kind, [0.0, 0.0])
            sums[0] += float(torch.linalg.vector_norm(ours - theirs)) ** 2
            sums[1] += float(torch.linalg.vector_norm(theirs)) ** 2
        return {kind: (difference / size if size else difference) ** 0.5 for kind, (difference, size) in apart.items()}


def _sentence(error: Exception, names: str) -> str:
    """Why what raised this is left out: a kernel may raise anything.

    Raises the error's own sentence where the GPU failed: CUDA answers every later call of this process with the same
    error, so that plain PyTorch would fail next, and hide what did it.
    """
    known = explain(error)
    # An assertion on the device, which is explained by the configuration, ends the context as well.
    broken = isinstance(known, GpuFaultError | ConfigError) and not isinstance(known, GpuUnfitError)
    if broken and not _NOT_LAUNCHED.search(str(error)):
        raise type(known)(
            f"{known}; {names} was being checked: if this repeats, set spec.training.kernels to Reference"
        ) from error
    return f"it fails: {one_sentence(error)[:200]}"


@contextlib.contextmanager
def _stirred(adapted: Adapted, device: Device) -> Iterator[None]:
    """Within it, each B is random; afterwards it is what it was, to the byte."""
    ups = [one for name, one in trainable(adapted.model).items() if "lora_B" in name]
    before = [up.data for up in ups]
    random = torch.Generator(device.torch_device).manual_seed(1)
    try:
        for up in ups:
            up.data = _STD * torch.randn(up.shape, generator=random, device=up.device, dtype=up.dtype)
        yield
    finally:
        for up, data in zip(ups, before, strict=True):
            up.data = data


@contextlib.contextmanager
def _as_in_a_step(adapted: Adapted, device: Device) -> Iterator[None]:
    """Inputs and recomputation as steps have them, and no dropout."""
    set_training(adapted.model, on=False)
    for layer in decoder_layers(adapted.model):
        # Some layers draw dropout by themselves.
        layer.training = layer.training or not getattr(layer, "dropout", 0.0)
    set_input_casts(adapted.model, on=device.dtype == torch.float32)
    try:
        yield
    finally:
        set_input_casts(adapted.model, on=True)
        set_training(adapted.model, on=False)
