"""Whether each weight of a merged model is what base and adapter give, as near as its type can hold it.

The written files are read again and compared, tensor by tensor, with what the code of the verification computes from
base and adapter in fp64: other code than merged them. A correct merge differs by its rounding alone, however coarse the
type is; a wrong scale or a forgotten layer does not, however little it changes the loss.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_trainer.errors import VerificationError
from lora_trainer.model.apply import Update, read_updates
from lora_trainer.model.loading import Loaded, skeleton
from lora_trainer.result.merge import TYPES, base_class, weight_files
from lora_trainer.result.tensor_names import parameters_of
from lora_trainer.spec.config import LoraConfig
from lora_trainer.storage.base import Base
from lora_trainer.storage.tensor_files import Entry, chunks, entries_of, header_bytes, read_entries

_BLOCK = 1 << 22
"""Weights that are computed at once in fp64."""
_EPSILON = 2.0**-24
_OF_A_LENGTH = 2.0**-16
"""What a merge in fp32 may be off by: of each sum so much for a term, and of a row's length (DoRA), which sums up
thousands, relative to it."""

Pairs = Iterator[tuple[str, torch.Tensor, torch.Tensor]]
"""Name of a tensor, what it is in the base model and in the merged one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Product:
    """s B A on a matrix, which is stored as (inputs, outputs) where it is `transposed`; several of a mixture."""

    update: Update
    transposed: bool


_Change = _Product | torch.Tensor
"""What happens to a tensor: a product is added, or another takes its place."""


def check_weights(base: Base, adapter: Path, merged: Path, lora: LoraConfig) -> None:
    """Compare the model in the folder `merged` with `base` and `adapter`. Raises `VerificationError`.

    What the files hold otherwise than the model does is compared as the library loads it, both models in memory.
    """
    loaded = skeleton(base)
    changes = _changes(loaded, *read_updates(loaded, adapter, lora, torch.device("cpu")))
    # That these are the right names, the loss of the merged model shows, whose files have them, too.
    files = weight_files(base.folder)
    names = parameters_of(loaded.model, files)
    unseen = set(changes) - set(names.values())
    added = _tensors(merged, files) - _tensors(base.folder, files)
    if unknown := added - set(parameters_of(loaded.model, added)):
        raise VerificationError(f"the merged model's files hold {min(unknown)}, which the base model has not")
    converted = bool(unseen or added)
    for key, before, after in _in_files(base.folder, merged):
        if key in names or not converted:
            _check(key, before, after, changes.get(names.get(key, key)))
        else:
            _check_kind(key, before, after)
    for key, before, after in _in_models(base.folder, merged) if converted else ():
        _check(key, before, after, changes.get(key))
        unseen.discard(key)
    if unseen:
        raise VerificationError(f"the merged model has no {min(unseen)}, which the adapter changes")


def _changes(loaded: Loaded, updates: list[Update], whole: Mapping[str, torch.Tensor]) -> dict[str, _Change]:
    changes: dict[str, _Change] = dict(whole)
    for update in updates:
        if update.target in loaded.linear:
            # Conv1D keeps its weight transposed.
            transposed = not isinstance(loaded.model.get_submodule(update.target), torch.nn.Linear)
            changes[f"{update.target}.weight"] = _Product(update=update, transposed=transposed)
        else:
            module = loaded.model.get_submodule(update.target.rpartition(".")[0])
            transposed = bool(getattr(module, "is_transposed", False))
            changes[update.target] = _Product(update=update, transposed=transposed)
    return changes


def _tensors(folder: Path, files: Mapping[str, str]) -> set[str]:
    return {entry.name for file in set(files.values()) for entry in read_entries(folder / file)}


def _in_files(base: Path, merged: Path) -> Pairs:
    """The tensors of files with equal names, one at a time; types may have become fp32."""
    for file in sorted(set(weight_files(base).values())):
        with (base / file).open("rb") as one, (merged / file).open("rb") as other:
            before, after = entries_of(header_bytes(one)), entries_of(header_bytes(other))
            kept = after[: len(before)]
            if [(entry.name, entry.shape) for entry in before] != [(entry.name, entry.shape) for entry in kept]:
                raise VerificationError(f"{file} holds other tensors in the merged model than in the base model")
            for old, new in zip(before, kept, strict=True):
                yield old.name, _tensor(one, old), _tensor(other, new)


def _tensor(stream: Any, entry: Entry) -> torch.Tensor:
    """The next tensor of a file; of a type that nothing is merged into its bytes."""
    data = bytearray(b"".join(chunks(stream, entry.size_bytes)))
    dtype = TYPES.get(entry.dtype)
    if not data:
        return torch.empty(entry.shape)
    return torch.frombuffer(data, dtype=dtype or torch.uint8).reshape(entry.shape if dtype else (-1,))


def _in_models(base: Path, merged: Path) -> Pairs:
    """The tensors of the models as the library loads them, both in memory."""
    factory = base_class(base)
    options = {"dtype": "auto", "local_files_only": True, "use_safetensors": True}
    before, after = (factory.from_pretrained(folder, **options).state_dict() for folder in (base, merged))
    if set(before) != set(after):
        raise VerificationError(f"the merged model has other weights: {min(set(before) ^ set(after))}")
    for name, tensor in before.items():
        yield name, tensor, after[name]


def _check(name: str, before: torch.Tensor, after: torch.Tensor, change: _Change | None) -> None:
    if change is None:
        _check_copy(name, before, after)
    else:
        _check_change(name, before, after, change)


def _check_kind(name: str, before: torch.Tensor, after: torch.Tensor) -> None:
    if after.shape != before.shape or after.dtype not in (before.dtype, torch.float32):
        raise VerificationError(f"the merged model's {name} has another shape or type than the base model's")


def _check_copy(name: str, before: torch.Tensor, after: torch.Tensor) -> None:
    if after.dtype not in (before.dtype, torch.float32) or not torch.equal(_bits(before.to(after.dtype)), _bits(after)):
        raise VerificationError(
            f"the merged model's {name} is not the base model's, though the adapter leaves it alone"
        )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """What can be compared where numbers are none."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _check_change(name: str, before: torch.Tensor, after: torch.Tensor, change: _Change) -> None:
    _check_kind(name, before, after)
    if isinstance(change, torch.Tensor):
        _check_nearest(name, after, change.double(), torch.zeros(()))
        return
    if before.dim() == 2:
        update = change.update
        _check_product(name, before, after, change, (update.lora_a, update.lora_b))
        return
    lora_a, lora_b = change.update.of_experts(before.shape[0])
    for expert, (old, new) in enumerate(zip(before, after, strict=True)):
        _check_product(name, old, new, change, (lora_a[expert], lora_b[..., expert]))


def _check_product(
    name: str,
    before: torch.Tensor,
    after: torch.Tensor,
    change: _Product,
    factors: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """W + s B A, with magnitudes (DoRA) each row of it in that length."""
    old, new = (before.T, after.T) if change.transposed else (before, after)
    scale, magnitude = change.update.scale, change.update.magnitude
    lora_a, lora_b = (factor.double() for factor in factors)
    rows = max(1, _BLOCK // old.shape[1])
    for start in range(0, old.shape[0], rows):
        block = slice(start, start + rows)
        weight = old[block].double()
        exact = weight + scale * (lora_b[block] @ lora_a)
        # Theorem 3.1 of Higham, Accuracy and Stability of Numerical Algorithms, with some terms to spare.
        slack = (lora_a.shape[0] + 16) * _EPSILON * (weight.abs() + abs(scale) * (lora_b[block].abs() @ lora_a.abs()))
        if magnitude is not None:
            longer = (magnitude[block].double() / torch.linalg.vector_norm(exact, dim=1))[:, None]
            exact = longer * exact
            slack = longer.abs() * slack + _OF_A_LENGTH * exact.abs()
        _check_nearest(name, new[block], exact, slack)


def _check_nearest(name: str, written: torch.Tensor, exact: torch.Tensor, slack: torch.Tensor) -> None:
    """Each number must be as near to the exact one as its type has any, which is half a unit in its last place."""
    kind = str(written.dtype).removeprefix("torch.")
    if not bool(written.isfinite().all()):
        raise VerificationError(f"the merged model's {name} has values that are not finite {kind}")
    off = (written.double() - exact).abs()
    explained = (exact.to(written.dtype).double() - exact).abs() + slack
    if not bool((off <= explained).all()):
        worst = int((off - explained).argmax())
        raise VerificationError(
            f"the merged model's {name} is not what base and adapter give: it differs by {off.flatten()[worst]:.3g} "
            f"where rounding to {kind} explains {explained.flatten()[worst]:.3g}"
        )
