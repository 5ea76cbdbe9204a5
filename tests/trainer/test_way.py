"""How many tokens a micro-batch has: what fits the device by the plan, and what the checkpoint had that a run goes on
from."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.trainer.conftest import make_config
from tests.trainer.test_sharding import planned
from tests.trainer.trainings import RESOLVED
from transformers import LlamaConfig

from lora_trainer.contract.fit.limits import CPU_TOKEN_BUDGET
from lora_trainer.contract.run_plan import RunPlan
from lora_trainer.data.store import Examples
from lora_trainer.data.tokens import Example
from lora_trainer.model.attention import Attention
from lora_trainer.model.device import Device
from lora_trainer.model.fast_paths import Chosen
from lora_trainer.model.flexible import Choice
from lora_trainer.ranks.collectives import ALONE, Ranks
from lora_trainer.recipe import way
from lora_trainer.recipe.way import budget_of, passes_of
from lora_trainer.training.batches import Budget
from lora_trainer.training.resume import Saved

GPU = Device(torch_device=torch.device("cuda"), name="H200", dtype=torch.bfloat16)
LARGE = {"micro_batch_tokens": 16384}


def plan(*, tokens: int, fits: bool | None = True) -> RunPlan:
    """One of so many tokens."""
    return replace(planned(sharded=False, fits=fits), micro_batch_tokens=tokens)


@pytest.mark.parametrize(
    ("made", "rows", "kept", "tokens"),
    [
        (None, None, None, 4096),
        (plan(tokens=16384), None, None, 16384),
        (plan(tokens=2048), None, None, 2048),
        (plan(tokens=100), None, None, 512),
        (plan(tokens=1024, fits=None), None, None, 4096),
        (plan(tokens=16384), 4, None, 4 * 512),
        (plan(tokens=1024), 4, None, 1024),
        (plan(tokens=16384), None, 4096, 4096),
        (plan(tokens=2048), None, 16384, 2048),
        (plan(tokens=16384), 4, 1024, 4 * 512),
    ],
    ids=[
        "no plan",
        "much memory",
        "little memory",
        "less than the longest row",
        "not sure",
        "rows that are asked for",
        "more rows than fit",
        "a checkpoint with fewer",
        "a checkpoint of a larger GPU",
        "a checkpoint, and rows that are asked for",
    ],
)
def test_a_micro_batch_holds_what_fits(made: RunPlan | None, rows: int | None, kept: int | None, tokens: int) -> None:
    """On a GPU, with rows of up to 512 tokens."""
    found = budget_of(rows, 512, packed=True, device=GPU, plan=made, kept=kept)
    assert (found.tokens, found.longest, found.packed) == (tokens, 512, True)


@pytest.mark.parametrize(
    ("longest", "rows", "kept", "warned"),
    [
        (512, None, 16384, True),
        (512, None, 1024, True),
        (512, None, CPU_TOKEN_BUDGET, False),
        (512, None, None, False),
        (1024, None, 1024, True),
        (384, 2, 1024, False),
    ],
    ids=[
        "of a GPU",
        "of a smaller machine",
        "of this one",
        "none",
        "of a smaller machine with long rows",
        "rows that are asked for",
    ],
)
def test_a_cpu_has_its_own_number(
    cpu: Device, caplog: pytest.LogCaptureFixture, *, longest: int, rows: int | None, kept: int | None, warned: bool
) -> None:
    """Whatever a checkpoint had, and says where that was more: packs are cut otherwise, and round otherwise."""
    planned = plan(tokens=CPU_TOKEN_BUDGET, fits=None)
    assert budget_of(rows, longest, packed=False, device=cpu, plan=planned, kept=kept).tokens == CPU_TOKEN_BUDGET
    sentence = "micro-batches hold fewer tokens than the checkpoint's did: other rows are computed together"
    assert [sentence in line for line in caplog.messages] == [True] * warned


@pytest.mark.parametrize(
    ("resolved", "training", "tokens"),
    [(LARGE, {}, 16384), (LARGE, {"microBatchSize": 4}, None)],
    ids=["by the plan", "rows that were asked for"],
)
def test_a_checkpoint_keeps_the_size_of_micro_batches(
    resolved: dict[str, Any], training: dict[str, Any], tokens: int | None
) -> None:
    """Packs are cut by it: another one would round otherwise."""
    record: Any = SimpleNamespace(resolved=replace(RESOLVED, **resolved), config=make_config(training=training))
    checkpoint: Any = SimpleNamespace(step=4)
    assert Saved(checkpoint=checkpoint, record=record, own=True).budget_tokens == tokens


def some_rows(*lengths: int) -> Examples:
    """Rows of so many tokens."""
    ids = [np.arange(length) for length in lengths]
    return Examples.of([Example(input_ids=one, labels=one, truncated=False) for one in ids])


@pytest.mark.parametrize(("processes", "passes"), [(1, 15), (2, 10)])
def test_a_run_knows_how_many_micro_batches_it_will_compute(processes: int, passes: int) -> None:
    """Five steps of five rows, of which a micro-batch holds two, on the process that has the most."""
    training = make_config(training={"effectiveBatchSize": 5, "maxSteps": 5}).training
    budget = Budget(tokens=16, longest=8)
    assert passes_of(training, some_rows(*9 * [8]), budget, Ranks(world=processes)) == passes


class Others(Ranks):
    """Two processes, of which the other one cannot pack."""

    def gather(self, value: Any, kind: Any) -> list[Any]:
        """By rank."""
        return [value, Attention(kernel="sdpa", packs=False, unpacked="its kernel fails", broken=True)]


def test_where_one_process_cannot_pack_none_does(
    cpu: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They cut the same micro-batches, and say why."""
    packing = Attention(kernel="varlen", packs=True)
    monkeypatch.setattr(way, "choose_attention", lambda *_: packing)
    monkeypatch.setattr(way, "choose_kernels", lambda *_, **more: more["packed"])
    for ranks, packed in ((Ranks(), True), (Others(), False)):
        found = way_on(cpu, ranks, saved=None)
        assert (found.budget.packed, found.kernels) == (packed, packed)
    assert "rows are padded: its kernel fails" in caplog.messages


def way_on(device: Device, ranks: Ranks = ALONE, *, saved: Saved | None, goes_on: bool = False) -> Any:
    """Of a run with rows of up to 8 tokens."""
    settled: Any = SimpleNamespace(config=make_config(), plan=None)
    rows = some_rows(*3 * [8])
    data: Any = SimpleNamespace(stats=SimpleNamespace(longest_tokens=8), training=rows, evaluation=rows)
    adapted: Any = SimpleNamespace(model=SimpleNamespace(config=LlamaConfig()))
    return way.way_of(settled, adapted, data, device, ranks, saved=saved, goes_on=goes_on)


@pytest.mark.parametrize("goes_on", [True, False], ids=["with its optimizer", "with its weights alone"])
def test_the_kernels_of_a_checkpoint_are_kept(cpu: Device, monkeypatch: pytest.MonkeyPatch, *, goes_on: bool) -> None:
    """A run that begins with one takes no others and times none; one that begins anew chooses freely."""
    handed: list[tuple[Any, int]] = []
    monkeypatch.setattr(way, "choose_attention", lambda *_: Attention(kernel="sdpa", packs=True))
    monkeypatch.setattr(way, "choose_kernels", lambda *_, **more: handed.append((more["kept"], more["step"])))
    record: Any = SimpleNamespace(resolved=replace(RESOLVED, kernels=("fused-adapter",)), config=make_config())
    checkpoint: Any = SimpleNamespace(step=4)
    way_on(cpu, saved=Saved(checkpoint=checkpoint, record=record, own=goes_on), goes_on=goes_on)
    way_on(cpu, saved=None)
    assert handed == [(Chosen(taken=("fused-adapter",)), 4), (None, 0)]


FLEX, LEFT_OUT = Choice(kernel="flex"), Choice(left_out="it fails: no kernel")
KEPT = Chosen(taken=("fused-adapter",), left_out=("liger-rope: it fails",))


@pytest.mark.parametrize(
    ("kernels", "kept", "found", "attention", "sentence", "changed"),
    [
        ("Auto", None, FLEX, "flex", None, None),
        ("Auto", None, LEFT_OUT, "sdpa", "flex-attention: it fails: no kernel", None),
        ("Auto", None, Choice(), "sdpa", None, None),
        ("Reference", None, FLEX, "sdpa", None, None),
        ("Auto", "flex", FLEX, "flex", None, None),
        ("Auto", "flex+varlen", FLEX, "flex", None, None),
        ("Auto", "sdpa", FLEX, "sdpa", None, None),
        ("Auto", "flex", LEFT_OUT, "sdpa", "flex-attention: it fails: no kernel; it was taken up to step 7", 7),
        (
            *("Auto", "flex", Choice(), "sdpa"),
            "flex-attention: there is none for this model here; it was taken up to step 7",
            7,
        ),
    ],
)
def test_flex_attention_is_taken_where_it_proves_itself_and_later_only_where_it_was(
    cpu: Device,
    monkeypatch: pytest.MonkeyPatch,
    *,
    kernels: str,
    kept: str | None,
    found: Choice,
    attention: str,
    sentence: str | None,
    changed: int | None,
) -> None:
    """A run that goes on has the numbers that it began with; only a new one takes times, on rows of a micro-batch."""
    timed: list[Any] = []

    def choose(_model: Any, attention: Attention, *_: Any) -> Choice:
        timed.append(None if _[-1] is None else _[-1]())
        assert attention.kernel == "sdpa"
        return found

    monkeypatch.setattr(way, "choose_attention", lambda *_: Attention(kernel="sdpa", packs=True))
    monkeypatch.setattr(way, "choose_flex", choose)
    compiled: list[bool] = []

    def kernels_of(*_: Any, kept: Chosen | None, passes: int, **__: Any) -> Chosen:
        compiled.append(passes > 0)
        return kept or Chosen(taken=("fused-adapter",))

    monkeypatch.setattr(way, "choose_kernels", kernels_of)
    resolved = replace(RESOLVED, attention=kept or "", kernels=KEPT.taken, kernels_left_out=KEPT.left_out)
    record: Any = SimpleNamespace(resolved=resolved, config=make_config())
    checkpoint: Any = SimpleNamespace(step=7)
    saved = None if kept is None else Saved(checkpoint=checkpoint, record=record, own=True)
    settled: Any = SimpleNamespace(config=make_config(training={"kernels": kernels}), plan=None)
    rows = some_rows(100, 100, 50, 60)
    data: Any = SimpleNamespace(stats=SimpleNamespace(longest_tokens=100), training=rows, evaluation=rows)
    adapted: Any = SimpleNamespace(model=SimpleNamespace(config=LlamaConfig()))
    chosen = way.way_of(settled, adapted, data, cpu, Ranks(), saved=saved, goes_on=saved is not None)
    assert chosen.attention == attention
    left_out = KEPT.left_out if saved else ()
    assert chosen.kernels.left_out == (left_out if sentence is None else (*left_out, sentence))
    assert chosen.kernels.changed_step == changed
    tried = kernels == "Auto" and kept != "sdpa"
    assert timed == ([None if saved else [100, 100, 50]] if tried else [])
    assert compiled == [attention != "flex"]
