"""A base model as it was read, whatever an adapter has made of it meanwhile.

PEFT's own way back leaves trained copies of whole modules in the base, and knows nothing of forward passes that were
replaced, of hooks, of recomputation, or of the attention that a model was told to use.
"""

import copy
from typing import Any

from torch import nn


class Pristine:
    """What each module of a model holds, its class, and the configurations that modules refer to, but for the numbers
    in its weights: these are not copied, and an adapter that alters them has them read again."""

    def __init__(self, model: nn.Module) -> None:
        from transformers import PreTrainedConfig  # noqa: PLC0415 - Transformers takes seconds to import

        self._model = model
        modules = list(model.modules())
        kinds: Any = PreTrainedConfig
        held = (value for module in modules for value in vars(module).values())
        configurations = {id(value): value for value in held if isinstance(value, kinds)}
        self._kept = [(one, type(one), _copy(vars(one))) for one in (*modules, *configurations.values())]

    def put_back(self) -> None:
        """Make the model what it was, frozen."""
        for one, kind, attributes in self._kept:
            if type(one) is not kind:
                one.__class__ = kind
            vars(one).clear()
            vars(one).update(_copy(attributes))
        self._model.requires_grad_(requires_grad=False)
        self._model.zero_grad(set_to_none=True)


def _copy(attributes: dict[str, Any]) -> dict[str, Any]:
    """With containers of its own: of parameters, modules, hooks."""
    return {
        name: copy.copy(value) if isinstance(value, dict | list | set) else value for name, value in attributes.items()
    }
