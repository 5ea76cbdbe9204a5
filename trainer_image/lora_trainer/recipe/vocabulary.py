"""Whether the model has an embedding of each token that its tokenizer gives."""

from lora_trainer.data.dataset import Data
from lora_trainer.data.store import Examples
from lora_trainer.data.tokens import Encoder
from lora_trainer.errors import ConfigError
from lora_trainer.places.base import Base
from lora_trainer.places.base_shape import CONFIG, read_config


def check_tokens(base: Base, data: Data, encoder: Encoder) -> None:
    """Refuse rows with a token beyond the embeddings, before weights are read: a GPU would stop at its index, as a
    broken one does. Raises `ConfigError`."""
    rows = _embeddings(base)
    vocabulary = encoder.tokenizer.get_vocab().values()
    if rows is None or max(vocabulary, default=0) < rows:
        return
    largest = max(_largest(data.training), _largest(data.evaluation))
    if largest >= rows:
        text = encoder.tokenizer.convert_ids_to_tokens(largest)
        raise ConfigError(
            f"model.uri is {base.name}: its tokenizer gives the data's token {text!r} the number {largest}, and the "
            f"model has {rows} embeddings, from 0 on; take the tokenizer of these weights, or give the model the "
            "missing ones with resize_token_embeddings and save it"
        )


def _embeddings(base: Base) -> int | None:
    """How many the model's configuration says; None where it does not."""
    config = read_config(base.folder / CONFIG)
    text = config.get("text_config")
    rows = (text if isinstance(text, dict) else config).get("vocab_size")
    return rows if isinstance(rows, int) else None


def _largest(examples: Examples) -> int:
    return max((int(row.input_ids.max(initial=0)) for row in examples), default=0)
