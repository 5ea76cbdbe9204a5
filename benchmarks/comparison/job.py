"""What one process of the comparison does, and the rows that it trains on."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
from benchmarks.comparison.settings import EFFECTIVE, Form, Setting

RANK, ALPHA, LEARNING_RATE = 16, 32, 5e-4
IGNORED = -100
_SPREAD = 0.9
WORDS = (
    *("the", "captain", "sails", "north", "with", "calm", "wind", "and", "a"),
    *("full", "hold", "while", "her", "crew", "mends", "old", "nets"),
)
"""Of the language of `rows`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """`part` is what is done, a key of `trainer.PARTS`; `setting` is that of the libraries' trainers. With `recompute`
    activations are not kept."""

    part: str
    workload: str
    model: str
    length: int
    steps: int
    seed: int
    threads: int
    device: str = "cpu"
    recompute: bool = False
    setting: Setting | None = None

    @property
    def chosen(self) -> Setting:
        """The setting of a training."""
        assert self.setting is not None
        return self.setting

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote."""
        found = json.loads(text)
        setting = found.pop("setting")
        job = cls(**found)
        return job if setting is None else replace(job, setting=read_setting(setting))


def read_setting(fields: dict[str, Any]) -> Setting:
    """A setting that was JSON."""
    return Setting(**{**fields, "form": Form(fields["form"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Token ids, and labels with the prompt masked."""

    input_ids: np.ndarray[Any, np.dtype[np.int64]]
    labels: np.ndarray[Any, np.dtype[np.int64]]


def training_rows(job: Job) -> list[Row]:
    """Those of all its steps."""
    return rows(job, job.steps * EFFECTIVE, job.seed)


def rows(job: Job, count: int, seed: int) -> list[Row]:
    """Rows in a small language in which every word has four successors, so that there is something to learn."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - takes seconds to import

    reader: Any = AutoTokenizer
    tokenizer = reader.from_pretrained(job.model)
    language = np.array([tokenizer(f" {word}")["input_ids"][0] for word in WORDS])
    successors = np.random.default_rng(0).integers(0, len(WORDS), size=(len(WORDS), 4))
    random, mean, found = np.random.default_rng(seed), job.length / 6, []
    for _ in range(count):
        length = job.length
        if job.workload == "short":
            drawn = random.lognormal(np.log(mean) - _SPREAD**2 / 2, _SPREAD)
            length = int(np.clip(drawn, 8, job.length))
        word, words = int(random.integers(len(WORDS))), []
        for choice in random.integers(0, 4, size=length):
            words.append(word)
            word = int(successors[word, choice])
        ids = language[words]
        found.append(Row(input_ids=ids, labels=np.where(np.arange(length) < length // 2, IGNORED, ids)))
    return found


def learned_in(found: Sequence[Row]) -> int:
    """Tokens that are learned: the first of a row has nothing before it."""
    return sum(int((row.labels[1:] != IGNORED).sum()) for row in found)
