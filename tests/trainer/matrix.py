"""Trainings of every family with every option: a pairwise covering array, and what becomes of one of its cells."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from allpairspy import AllPairs
from tests.trainer import tiny
from tests.trainer.conftest import make_config
from tests.trainer.families import FAMILIES
from tests.trainer.runs import prepared

from lora_trainer.distributed.reports import Reporter
from lora_trainer.errors import TrainerError
from lora_trainer.model.loading import Loaded, load_model
from lora_trainer.result.export import write_result
from lora_trainer.result.merge_stage import merge_result
from lora_trainer.result.verify import verify
from lora_trainer.spec.config import Merge, TrainConfig
from lora_trainer.storage.base import Base
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.run import RunContext, run_training

Sections = Mapping[str, Any]

OPTIONS: Mapping[str, Mapping[str, Sections]] = {
    "layers": {name: {"lora": {"layers": name}} for name in ("AllLinear", "Attention", "MLP", "QueryValue")},
    "init": {name: {"lora": {"init": name}} for name in ("Default", "Gaussian", "PiSSA", "OLoRA")},
    "variant": {name: {"lora": {"variant": name}} for name in ("LoRA", "DoRA")},
    "scaling": {name: {"lora": {"scaling": name}} for name in ("Classic", "RankStabilized")},
    "dropout": {name: {"lora": {"dropout": name}} for name in ("0", "0.1")},
    "only": {"all layers": {}, "layer 1": {"lora": {"layerIndices": [1]}}},
    "whole": {"nothing": {}, "head": {"lora": {"modulesToSave": ["lm_head"]}}},
    "quantization": {name: {"quantization": name} for name in ("None", "NF4", "FP4", "INT8")},
    "precision": {name: {"training": {"precision": name}} for name in ("FP32", "BF16")},
    "packing": {name: {"training": {"packing": name}} for name in ("Enabled", "Disabled")},
    "checkpointing": {name: {"training": {"activationCheckpointing": name}} for name in ("None", "Selective", "Full")},
    "optimizer": {name: {"training": {"optimizer": name}} for name in ("AdamW", "AdamW8bit")},
    "merge": {name: {"output": {"merge": name}} for name in ("Adapter", "Merged")},
}
"""Each option with its values, and what of a spec says so."""

DRAWN: Sections = {"validationFraction": "0.3"}

FORBIDDEN = tuple(
    frozenset({("init", init), other})
    for init in ("PiSSA", "OLoRA")
    for other in (("variant", "DoRA"), *(("quantization", name) for name in ("NF4", "FP4", "INT8")))
)
"""Pairs of values that the contract refuses already."""

Cell = Mapping[str, str]
"""The value of each option, and under `family` the base."""


@cache
def covering_array() -> tuple[Cell, ...]:
    """Cells in which every two values of different options meet, and every value with every family."""
    names = ("family", *OPTIONS)

    def allowed(row: Sequence[str]) -> bool:
        chosen = set(zip(names, row, strict=False))
        return not any(pair <= chosen for pair in FORBIDDEN)

    rows = AllPairs([list(FAMILIES), *map(list, OPTIONS.values())], filter_func=allowed)
    cells = [dict(zip(names, row, strict=True)) for row in rows]
    met = {pair for cell in cells for pair in combinations(cell.items(), 2)}
    # Where pairs are forbidden, it gives up others that are not.
    for cell in single_changes():
        if not (pairs := set(combinations(cell.items(), 2))) <= met:
            cells.append(dict(cell))
            met |= pairs
    return tuple(cells)


def single_changes() -> Iterator[Cell]:
    """Every family with everything as it is by default, and with each other value of each option alone.

    Where a cell of many changes is refused for one of them, the others have not been tried.
    """
    plain = {name: next(iter(values)) for name, values in OPTIONS.items()}
    for family in FAMILIES:
        yield {"family": family, **plain}
        for option, values in OPTIONS.items():
            yield from ({"family": family, **plain, option: value} for value in list(values)[1:])


def name_of(cell: Cell) -> str:
    """The family, and what is not an option's first value."""
    told = [value for name, value in cell.items() if name != "family" and value != next(iter(OPTIONS[name]))]
    return "-".join((cell["family"], *told)).replace(" ", "_")


def config_of(cell: Cell, dataset: Sections = DRAWN) -> TrainConfig:
    """The run of a cell; `dataset` says where its held-out rows come from."""
    sections: dict[str, Any] = {
        "model": {"uri": f"pvc://models/{cell['family']}"},
        "dataset": {"uri": "pvc://data/train.jsonl", **dataset},
        "training": {"maxSteps": 3, "effectiveBatchSize": 8, "learningRate": "0.01"},
        "lora": {"rank": 4},
    }
    for name, value in cell.items():
        for section, fields in OPTIONS.get(name, {}).get(value, {}).items():
            sections[section] = {**sections.get(section, {}), **fields} if isinstance(fields, dict) else fields
    return make_config(**sections)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a cell: the folder of an adapter, or the sentence with which it was refused.

    `weights_read` says whether the base's weights had been read by then.
    """

    adapter: Path | None = None
    refusal: str = ""
    weights_read: bool = True


def run_cell(cell: Cell, claims: Path, folder: Path) -> Outcome:
    """Train, verify and, where it asks for it, merge in this process. What is not refused is raised."""
    config, volumes = config_of(cell), Volumes(claims=claims)
    outcome = train_cell(config, claims, folder)
    if outcome.adapter is not None:
        verify(outcome.adapter, volumes, Hub())
        if config.output.merge is not Merge.ADAPTER:
            merge_result(outcome.adapter, folder / "merged", config.output.merge, volumes, Hub())
    return outcome


def train_cell(config: TrainConfig, claims: Path, folder: Path) -> Outcome:
    """Train alone: the adapter of the outcome is not verified."""
    volumes, adapter = Volumes(claims=claims), folder / "adapter"
    read: list[Base] = []
    adapter.mkdir()

    def load(base: Base, *given: Any, **more: Any) -> Loaded:
        read.append(base)
        return load_model(base, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_trainer.train.session.load_model", load)
        try:
            data = prepared(config, volumes, folder / "prepared")
            run_training(
                config,
                data,
                volumes,
                Hub(),
                folder=adapter,
                reporter=Reporter(None),
                run_context=RunContext(),
                write_result=write_result,
            )
        except TrainerError as error:
            return Outcome(refusal=str(error), weights_read=bool(read))
    return Outcome(adapter=adapter)


def lay_out(claims: Path) -> Path:
    """Claims with data; models are added as they are needed."""
    tiny.write_jsonl(claims / "data/train.jsonl", tiny.chats(24))
    (claims / "models").mkdir()
    return claims


def chosen(cells: Sequence[Cell], count: int) -> Iterator[Cell]:
    """Some cells, every family and every value of an option among them."""
    seen: set[tuple[str, str]] = set()
    later: list[Cell] = []
    taken = 0
    for cell in cells:
        if set(cell.items()) <= seen:
            later.append(cell)
            continue
        seen |= set(cell.items())
        taken += 1
        yield cell
    yield from later[: max(0, count - taken)]
