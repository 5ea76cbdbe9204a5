"""Whether PEFT, by an adapter's configuration, takes the weights that lie beside it."""

import warnings
from pathlib import Path

from lora_trainer.errors import VerificationError, one_sentence
from lora_trainer.model.loading import skeleton
from lora_trainer.storage.base import Base
from lora_trainer.storage.tensor_files import read_entries

_END = "the adapter is not published; report this"
_Shapes = dict[str, tuple[int, ...]]


def check_config(base: Base, folder: Path) -> None:
    """Put the configuration of the adapter in `folder` on the model without weights, as PEFT does to load it, and
    compare names and shapes. What PEFT has no place for it leaves out with a warning at most. Raises
    `VerificationError`."""
    wanted, others = _places(base, folder)
    found = {entry.name: entry.shape for entry in read_entries(folder / "adapter_model.safetensors")}
    for name in sorted(wanted.keys() | found.keys()):
        place = wanted.get(name, others.get(name))
        if found.get(name) != place:
            what = "misses" if name not in found else "has no place for" if place is None else "gives another shape to"
            raise VerificationError(
                f"adapter_config.json does not fit adapter_model.safetensors: PEFT {what} {name}; {_END}"
            )


def _places(base: Base, folder: Path) -> tuple[_Shapes, _Shapes]:
    """The tensors of such an adapter, and those of the base beside it. PEFT loads what a file has for these into the
    base: an output embedding that is tied to one whose name it does not know."""
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict  # noqa: PLC0415 - PEFT takes seconds to import

    model = skeleton(base).model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            config = PeftConfig.from_pretrained(str(folder))
            adapted = get_peft_model(model, config, low_cpu_mem_usage=True)
            tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        except Exception as error:  # what PEFT raises on a configuration is not bounded
            why = one_sentence(error).partition(". ")[0][:300]
            raise VerificationError(f"PEFT refuses adapter_config.json for the base model ({why}); {_END}") from error
    wanted, every = (
        {name: tuple(one.shape) for name, one in state.items()} for state in (tensors, adapted.state_dict())
    )
    return wanted, every
