"""Which tensor of a base model's files is which parameter of the model, as Transformers reads them."""

from collections import Counter
from collections.abc import Iterable
from typing import Any


def parameters_of(model: Any, tensors: Iterable[str]) -> dict[str, str]:
    """Tensor of the files to the parameter that it is.

    Only those that are read as they are, by another name at most: what the library stacks, splits or turns is left
    out, and so is what it reads from several. `model` may be without weights.
    """
    from transformers import conversion_mapping as mapping  # noqa: PLC0415 - Transformers takes seconds to import
    from transformers import core_model_loading as loading  # noqa: PLC0415 - as above

    transforms = mapping.get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, loading.WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, loading.WeightConverter)]
    prefix, parameters = model.base_model_prefix, model.state_dict()
    found = {}
    for tensor in tensors:
        name, converter = loading.rename_source_key(tensor, renamings, converters, prefix, parameters)
        if name not in parameters and tensor in parameters:
            name, converter = tensor, None
        if converter is None and name in parameters:
            found[tensor] = name
    sources = Counter(found.values())
    return {tensor: name for tensor, name in found.items() if sources[name] == 1}
