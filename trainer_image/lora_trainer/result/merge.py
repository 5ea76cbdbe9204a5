"""An adapter merged into its unquantized base model: W + s B A, rounded once, file by file.

The base's safetensors files are copied tensor by tensor. Only the tensor at hand is in memory, in fp32, so a model of
any size is merged within the memory of its largest tensor. Names, shapes and the order in the files stay; types, too,
or they become fp32, in which nothing is rounded. What the files hold otherwise than the model does is computed with the
whole model in memory, and then takes its places in the same files.
"""

import dataclasses
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lora_trainer.errors import VerificationError, storage_error
from lora_trainer.model.classes import auto_class
from lora_trainer.plan.adapter import matches
from lora_trainer.result.merged_config import say_fp32, say_untied
from lora_trainer.result.serving import TEMPLATE, scale
from lora_trainer.result.tensor_names import parameters_of
from lora_trainer.spec.config import MergePrecision
from lora_trainer.storage.model_folder import MORE_TEMPLATES, files_in, model_files
from lora_trainer.storage.tensor_files import (
    Entry,
    chunks,
    entries_of,
    header_bytes,
    header_of,
    metadata_of,
    read_entries,
)

log = logging.getLogger(__name__)
_PREFIX = "base_model.model."
_OF_PROCESSORS = "chat_template.json"
"""Where processors of multimodal models had their template, which Transformers prefers to the other file."""
_INDEX_SUFFIX = ".safetensors.index.json"
TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The format's names of the types that can be computed in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """W becomes W + `scale` B A; with a magnitude (DoRA) each of its rows is given that length."""

    module: str
    scale: float
    transposed: bool
    magnitude: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """W is replaced by the adapter's tensor of this name."""

    tensor: str


Edit = LowRank | Whole | torch.Tensor
"""A tensor is what the model that was merged in memory has in this place, in the type that it was loaded in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Edits:
    """By the names of tensors in the files; `added` are embeddings that the base has once, and the model twice."""

    by_key: Mapping[str, Edit]
    added: Mapping[str, torch.Tensor]


def merge_into(adapter: Path, base: Path, target: Path, precision: MergePrecision = MergePrecision.AUTO) -> None:
    """Write the model in the folder `base` with the adapter merged into it to `target`, which may hold other files.

    Its weights have the types of the base's, or with `precision` FP32 all that one. Raises `VerificationError` where
    the adapter does not fit the base, `StorageError`.
    """
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    skeleton = _skeleton(base)
    in_fp32 = precision is MergePrecision.FP32
    try:
        target.mkdir(parents=True, exist_ok=True)
        with safe_open(adapter / "adapter_model.safetensors", framework="pt") as tensors:
            edits = _edits(config, list(tensors.keys()), skeleton)
            files = weight_files(base)
            keys = _keys(edits, files, skeleton)
            if keys is None:
                edited = (*edits, *(config.get("target_parameters") or ()))
                found = _merged_in_memory(adapter, base, edited, files, in_fp32=in_fp32)
            else:
                found = _Edits(by_key={key: edits[name] for name, key in keys.items()}, added={})
            *others, last = sorted(set(files.values()))
            for file in others:
                _merge_file(base / file, target / file, found.by_key, tensors, in_fp32=in_fp32)
            _merge_file(base / last, target / last, found.by_key, tensors, found.added, in_fp32=in_fp32)
        _copy_small_files(adapter, base, target)
        if found.added:
            say_untied(target, last, list(found.added))
        if in_fp32:
            say_fp32(target)
    except OSError as error:
        raise storage_error(error, "the merged model") from error


def _skeleton(base: Path) -> Any:
    """The model without its weights: names, kinds and sizes of its modules, and what is tied to what."""
    with torch.device("meta"):
        return base_class(base).from_config(_configuration(base), trust_remote_code=False)


def base_class(base: Path) -> Any:
    """The class of Transformers that the model in a folder is loaded with."""
    return auto_class(_configuration(base), str(base))


def _configuration(base: Path) -> Any:
    from transformers import AutoConfig  # noqa: PLC0415 - Transformers takes seconds to import

    return AutoConfig.from_pretrained(base, local_files_only=True)


def _edits(config: Mapping[str, Any], names: Sequence[str], skeleton: Any) -> dict[str, Edit]:
    """Parameter of the model to what happens to it. Raises `VerificationError` for one that the model has not."""
    from transformers.pytorch_utils import Conv1D  # noqa: PLC0415 - as above

    modules = dict(skeleton.named_modules())
    edits: dict[str, Edit] = {}
    for name in names:
        plain = name.removeprefix(_PREFIX)
        module, low_rank, kind = plain.partition(".lora_")
        if not low_rank:
            edits[plain] = Whole(tensor=name)
        elif kind.startswith("A"):
            edits[f"{module}.weight"] = LowRank(
                module=module,
                scale=scale(config, module),
                transposed=isinstance(modules.get(module), Conv1D),
                magnitude=f"{_PREFIX}{module}.lora_magnitude_vector" in names,
            )
    known = {name for name, _ in skeleton.named_parameters(remove_duplicate=False)}
    unknown = sorted(set(edits) - known)
    if unknown and not config.get("target_parameters"):
        raise VerificationError(f"the adapter has weights for {unknown[0]}, which the base model has not")
    return edits


def weight_files(base: Path) -> dict[str, str]:
    """Tensor to file, by the file or the index that Transformers reads."""
    source = base / _weights(base)
    if source.name.endswith(_INDEX_SUFFIX):
        weights = json.loads(source.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in weights.items()}
    return dict.fromkeys((entry.name for entry in read_entries(source)), source.name)


def _weights(base: Path) -> str:
    """The file of weights, or the index of several, that Transformers reads: one that the configuration names, and a
    single file before an index."""
    named = json.loads((base / "config.json").read_text(encoding="utf-8")).get("transformers_weights")
    single = "model.safetensors"
    return str(named or (single if (base / single).is_file() else f"model{_INDEX_SUFFIX}"))


def _keys(edits: Mapping[str, Edit], files: Mapping[str, str], skeleton: Any) -> dict[str, str] | None:
    """Parameter to its name in the files, which may be an older one, or lack the model's prefix.

    None where the files do not say it so: experts that the library stacks when it loads them, or embeddings that are
    tied in the base and were trained apart from each other.
    """
    names = {parameter: tensor for tensor, parameter in parameters_of(skeleton, files).items()}
    tied = _tied(skeleton)
    if any(name in tied or name not in names for name in edits):
        return None
    return {name: names[name] for name in edits}


def _tied(skeleton: Any) -> set[str]:
    """Names of the embeddings where input and output share their weights."""
    source, head = skeleton.get_input_embeddings(), skeleton.get_output_embeddings()
    if head is None or head.weight is not source.weight:
        return set()
    return {f"{name}.weight" for name, module in skeleton.named_modules() if module is source or module is head}


def _merge_file(
    source: Path,
    target: Path,
    edits: Mapping[str, Edit],
    tensors: Any,
    added: Mapping[str, torch.Tensor] | None = None,
    *,
    in_fp32: bool,
) -> None:
    """Copy a file, its edited tensors changed, those `added` at its end. No name or shape changes, and no type but to
    fp32."""
    with source.open("rb") as reading, target.open("wb") as writing:
        header = header_bytes(reading)
        entries = entries_of(header)
        written = _and_added(_widened(entries) if in_fp32 else entries, added or {})
        writing.write(header_of(written, metadata_of(header)) if in_fp32 or added else header)
        for entry in entries:
            edit = edits.get(entry.name)
            if edit is not None and (entry.dtype in TYPES or not isinstance(edit, torch.Tensor)):
                data = bytearray(b"".join(chunks(reading, entry.size_bytes)))
                new = _edited(data, entry, edit, tensors)
                writing.write(_bytes(new.float() if in_fp32 else new.to(TYPES[entry.dtype])))
            elif in_fp32 and entry.dtype in TYPES:
                for piece in chunks(reading, entry.size_bytes):
                    writing.write(_bytes(torch.frombuffer(bytearray(piece), dtype=TYPES[entry.dtype]).float()))
            else:
                writing.writelines(chunks(reading, entry.size_bytes))
        for tensor in (added or {}).values():
            writing.write(_bytes(tensor))


def _and_added(entries: Sequence[Entry], added: Mapping[str, torch.Tensor]) -> list[Entry]:
    names = {dtype: name for name, dtype in TYPES.items()}
    found = list(entries)
    for name, tensor in added.items():
        start = found[-1].start + found[-1].size_bytes
        shape, dtype = tuple(tensor.shape), names[tensor.dtype]
        found.append(Entry(name=name, dtype=dtype, shape=shape, start=start, size_bytes=tensor.nbytes))
    return found


def _widened(entries: Sequence[Entry]) -> list[Entry]:
    """The tensors of a file in fp32; those of types that nothing is merged into stay as they are."""
    widened: list[Entry] = []
    for entry in entries:
        start = widened[-1].start + widened[-1].size_bytes if widened else 0
        if entry.dtype in TYPES:
            size = 4 * entry.values
            widened.append(dataclasses.replace(entry, dtype="F32", start=start, size_bytes=size))
        else:
            widened.append(dataclasses.replace(entry, start=start))
    return widened


def _bytes(tensor: torch.Tensor) -> memoryview:
    plain: Any = tensor.contiguous().view(torch.uint8).numpy()
    return memoryview(plain).cast("B")


def _edited(data: bytearray, entry: Entry, edit: Edit, tensors: Any) -> torch.Tensor:
    """The tensor whose bytes are `data`, changed."""
    dtype = TYPES.get(entry.dtype)
    if dtype is None:
        raise VerificationError(
            f"the base model's {entry.name} has the type {entry.dtype}: nothing can be merged into it"
        )
    if not isinstance(edit, Whole):
        old = torch.frombuffer(data, dtype=dtype).reshape(entry.shape)
        if isinstance(edit, LowRank):
            return _low_rank(old, edit, tensors)
        # What the model was loaded with, rounded maybe, was not merged into: the base's own number stays.
        return old if edit.shape != old.shape or torch.equal(old.to(edit.dtype), edit) else edit
    new: torch.Tensor = tensors.get_tensor(edit.tensor)
    if tuple(new.shape) != entry.shape:
        raise VerificationError(f"{edit.tensor} has the shape {tuple(new.shape)}, the base model's {entry.shape}")
    return new


def _low_rank(weight: torch.Tensor, edit: LowRank, tensors: Any) -> torch.Tensor:
    """W + s B A in fp32, in the layout of `weight`: (outputs, inputs), or transposed as Conv1D has it."""
    lora_a, lora_b = (tensors.get_tensor(f"{_PREFIX}{edit.module}.lora_{kind}.weight").float() for kind in "AB")
    merged = weight.float().T if edit.transposed else weight.float()
    if merged.shape != (lora_b.shape[0], lora_a.shape[1]):
        raise VerificationError(
            f"{edit.module} has A {tuple(lora_a.shape)} and B {tuple(lora_b.shape)}, its weight is "
            f"{tuple(weight.shape)}"
        )
    merged = merged.addmm_(lora_b, lora_a, alpha=edit.scale)
    if edit.magnitude:
        magnitude = tensors.get_tensor(f"{_PREFIX}{edit.module}.lora_magnitude_vector").float()
        merged *= (magnitude / torch.linalg.vector_norm(merged, dim=1))[:, None]
    return merged.T if edit.transposed else merged


def _merged_in_memory(
    adapter: Path, base: Path, edited: Sequence[str], files: Mapping[str, str], *, in_fp32: bool
) -> _Edits:
    """What PEFT, with the whole model in memory, makes of the tensors in the base's `files`.

    `edited` are names of parameters, or the ends of them.
    """
    from peft import PeftModel  # noqa: PLC0415 - PEFT takes seconds to import
    from transformers.core_model_loading import revert_weight_conversion  # noqa: PLC0415 - as above

    log.info("merging with the whole model in memory: its files hold the weights otherwise than the model does")
    loaded_as = torch.float32 if in_fp32 else "auto"
    plain: Any = base_class(base).from_pretrained(base, dtype=loaded_as, local_files_only=True, use_safetensors=True)
    tied, embedded_as = _tied(plain), plain.get_input_embeddings().weight.dtype
    types = {
        name: parameter.dtype
        for name, parameter in plain.named_parameters(remove_duplicate=False)
        if any(matches(name, ending) for ending in edited)
    }
    for name in types:
        # In its own type PEFT would round the product, and then the sum.
        parameter = plain.get_parameter(name)
        parameter.data = parameter.data.float()
    merged: Any = PeftModel.from_pretrained(plain, str(adapter)).merge_and_unload(safe_merge=True)
    for name, dtype in types.items():
        parameter = merged.get_parameter(name)
        parameter.data = parameter.data.to(dtype)
    state = merged.state_dict()
    stored = revert_weight_conversion(merged, state)
    named = parameters_of(merged, files)
    by_key = {key: state[named[key]] if key in named else stored[key] for key in files if key in named or key in stored}
    apart = tied - _tied(merged) - set(named.values())
    places = {name: key for key, name in parameters_of(merged, stored).items()}
    return _Edits(by_key=by_key, added={places[name]: state[name].to(embedded_as) for name in sorted(apart)})


def _copy_small_files(adapter: Path, base: Path, target: Path) -> None:
    """Configuration, tokenizer and chat template. An adapter has a template where it learned with another than the
    base's own, or that has none: servers shall write conversations with the one that was learned."""
    chosen = (adapter / TEMPLATE).is_file()
    if chosen:
        shutil.copyfile(adapter / TEMPLATE, target / TEMPLATE)
    elif (base / MORE_TEMPLATES).is_dir():
        (target / MORE_TEMPLATES).mkdir()
    weights = _weights(base)
    for name in model_files(files_in(base), str(base)):
        wanted = name == weights or not name.endswith((".safetensors", _INDEX_SUFFIX))
        wanted = wanted and not (chosen and name == _OF_PROCESSORS)
        if wanted and (target / name).parent.is_dir() and not (target / name).exists():
            shutil.copyfile(base / name, target / name)
