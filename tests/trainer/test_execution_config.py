"""How many tokens a micro-batch has: what fits the device by the plan, and what the checkpoint had that a run goes on
from."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.trainer.conftest import make_config
from tests.trainer.test_kernels import adapted
from tests.trainer.test_sharding import planned
from tests.trainer.trainings import RESOLVED

from lora_trainer.data.store import Examples
from lora_trainer.data.tokens import Example
from lora_trainer.distributed.collectives import ALONE, Ranks
from lora_trainer.model.device import Device
from lora_trainer.model.fast import VARLEN, family_of
from lora_trainer.model.loading import Adapted
from lora_trainer.plan.limits import CPU_TOKEN_BUDGET
from lora_trainer.spec.config import LoraConfig
from lora_trainer.spec.run_plan import RunPlan
from lora_trainer.storage.base import Base
from lora_trainer.train import execution_config
from lora_trainer.train.execution_config import limit_of
from lora_trainer.train.resume import Saved
from lora_trainer.train.self_check import Taken

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
    found = limit_of(rows, 512, packed=True, device=GPU, plan=made, kept=kept)
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
    assert limit_of(rows, longest, packed=False, device=cpu, plan=planned, kept=kept).tokens == CPU_TOKEN_BUDGET
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
    assert Saved(checkpoint=checkpoint, record=record, own=True).limit_tokens == tokens


def some_rows(*lengths: int) -> Examples:
    """Rows of so many tokens."""
    ids = [np.arange(length) for length in lengths]
    return Examples.of([Example(input_ids=one, labels=one, truncated=False) for one in ids])


class Others(Ranks):
    """Two processes, of which the other one can use this alone."""

    def gather(self, value: Any, kind: Any) -> list[Any]:
        """By rank."""
        return [value, ("recomputed-swiglu",)]


@pytest.mark.parametrize(
    ("kernels", "ranks", "taken"),
    [
        ("Auto", Ranks(), ("fused-adapter", "recomputed-swiglu")),
        ("Auto", Others(), ("recomputed-swiglu",)),
        ("Reference", Ranks(), ()),
    ],
)
def test_a_run_takes_what_its_family_may_and_every_process_can(
    tiny_base: Base, cpu: Device, *, kernels: str, ranks: Ranks, taken: tuple[str, ...]
) -> None:
    """And nothing with Reference, which packs all the same; on a CPU without a check."""
    model = adapted(tiny_base, cpu, LoraConfig(rank=2, alpha=4))
    found = way_on(model, cpu, ranks, kernels=kernels)
    assert found.kernels == Taken(entries=tuple(one for one in family_of(model.model).fast if one.name in taken))
    assert (found.attention, found.limit.packed) == ("sdpa", True)
    computing = [module for module in model.model.modules() if "forward" in vars(module)]
    assert len(computing) == {2: 16, 1: 2, 0: 0}[len(taken)]


def test_what_is_not_in_the_table_is_padded_and_computed_plainly(
    tiny_base: Base, cpu: Device, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log says so."""
    caplog.set_level("INFO")
    model = adapted(tiny_base, cpu, LoraConfig(rank=2, alpha=4))
    model.model.config.model_type = "unheard"
    before = model.model.config._attn_implementation
    found = way_on(model, cpu)
    assert (found.kernels, found.limit.packed, found.attention) == (Taken(), False, before)
    assert "rows are padded: this kind of model is not known to keep the rows of a pack apart" in caplog.messages


def test_the_plan_is_made_again_where_the_kernel_for_packs_is_left_out(
    tiny_base: Base, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which plans count on: micro-batches hold no more than the plan for the plain path."""
    model = adapted(tiny_base, cpu, LoraConfig(rank=2, alpha=4))
    again = SimpleNamespace(config=make_config(), plan=plan(tokens=300))
    monkeypatch.setattr(execution_config, "plain_setup", lambda *_: again)
    for taken, tokens in (
        (Taken(left_out=("varlen: it fails",)), 300),
        (Taken(entries=(VARLEN,), left_out=("liger-rope: it fails",)), 600),
        (Taken(), 600),
    ):
        monkeypatch.setattr(execution_config, "take_fast", lambda *_, taken=taken: taken)
        found = way_on(model, cpu, made=plan(tokens=600))
        assert (found.limit.tokens, found.attention) == (tokens, "varlen" if taken.entries else "sdpa")


def way_on(
    model: Adapted, device: Device, ranks: Ranks = ALONE, *, kernels: str = "Auto", made: RunPlan | None = None
) -> Any:
    """Of a run with rows of up to 8 tokens."""
    setup: Any = SimpleNamespace(config=make_config(training={"kernels": kernels}), plan=made)
    rows = some_rows(*3 * [8])
    data: Any = SimpleNamespace(stats=SimpleNamespace(longest_tokens=8), training=rows, evaluation=rows)
    return execution_config.choose_execution(setup, model, data, device, ranks)
