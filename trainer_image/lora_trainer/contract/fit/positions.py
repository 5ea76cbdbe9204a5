"""How many tokens a row may have at most, where a model looks its positions up in a table of so many."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

_POSITIONS, _EMBEDDINGS = ("n_positions", "max_position_embeddings"), ("max_position_embeddings",)
_PADDED = frozenset(
    {"camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"}
)
"""Kinds whose rows begin behind the position of the padding token, by default 1."""
TABLES: Mapping[str, tuple[tuple[str, ...], int]] = MappingProxyType(
    {
        "bert": (_EMBEDDINGS, 512),
        "bert-generation": (_EMBEDDINGS, 512),
        "big_bird": (_EMBEDDINGS, 4096),
        "biogpt": (_EMBEDDINGS, 1024),
        "codegen": (_POSITIONS, 2048),
        "ctrl": (_POSITIONS, 256),
        "electra": (_EMBEDDINGS, 512),
        "ernie": (_EMBEDDINGS, 512),
        "git": (_EMBEDDINGS, 1024),
        "gpt-sw3": (_POSITIONS, 1024),
        "gpt2": (_POSITIONS, 1024),
        "gpt_bigcode": (_POSITIONS, 1024),
        "gpt_neo": (_EMBEDDINGS, 2048),
        "gptj": (_POSITIONS, 2048),
        "megatron-bert": (_EMBEDDINGS, 512),
        "mpt": (("max_seq_len",), 2048),
        "openai-gpt": (_POSITIONS, 512),
        "opt": (_EMBEDDINGS, 2048),
        "rembert": (_EMBEDDINGS, 512),
        "roc_bert": (_EMBEDDINGS, 512),
        "roformer": (_EMBEDDINGS, 1536),
        "trocr": (_EMBEDDINGS, 512),
        "xlm": (_EMBEDDINGS, 512),
        **dict.fromkeys(_PADDED, (_EMBEDDINGS, 512)),
        "xlm-roberta-xl": (_EMBEDDINGS, 514),
    }
)
"""Kinds of Transformers 5.24 that end with an error beyond their table, learned or not, by what their configurations
call its size and take for it where it is absent. OPT's and BioGPT's have two rows more, which no token takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """A model of this `kind` takes rows of at most `most` tokens."""

    kind: str
    most: int

    def objection(self, max_length: int, longest: int) -> str:
        """Why rows of which the `longest` has so many tokens, as they are cut at `max_length`, cannot be computed: a
        sentence, empty where they can."""
        if min(max_length, longest) <= self.most:
            return ""
        return (
            f"training.maxSequenceLength is {max_length}: {self.kind} has positions for {self.most} tokens, and the "
            f"longest row has {longest}; set it to {self.most} or less, at which longer rows are cut, or name a model "
            "with more positions"
        )

    def warning(self, max_length: int) -> str:
        """What may become of rows of which only that they are cut at `max_length` is known; empty for nothing."""
        if max_length <= self.most:
            return ""
        return (
            f"training.maxSequenceLength is {max_length}: {self.kind} has positions for {self.most} tokens, and a run "
            f"with a longer row is refused; set it to {self.most} or less, at which longer rows are cut"
        )


def positions_of(document: Mapping[str, Any]) -> Positions | None:
    """By a `config.json`; None for a kind without such a table, and for a number that no model has."""
    inner = document.get("text_config")
    values = inner if isinstance(inner, Mapping) else document
    kind = values.get("model_type") or document.get("model_type")
    if not isinstance(kind, str) or kind not in TABLES:
        return None
    keys, default = TABLES[kind]
    size = next((values[key] for key in keys if values.get(key) is not None), default)
    before = values.get("pad_token_id", 1) if kind in _PADDED else -1
    if type(size) is not int or type(before) is not int or size - before - 1 < 1:
        return None
    return Positions(kind=kind, most=size - before - 1)
