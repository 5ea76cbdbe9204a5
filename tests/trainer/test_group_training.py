"""Training in several processes: the same losses as in one, sharded or not, and a state for any number of them."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.trainer import rank_programs
from tests.trainer.conftest import make_config
from tests.trainer.processes import together
from tests.trainer.rank_programs import Given, Outcome, Plan, Stopped

from lora_trainer.spec.config import Quantization, TrainingConfig
from lora_trainer.train.checkpoint import Checkpoints
from lora_trainer.train.evaluate import ASK_EVERY

CONFIG = TrainingConfig(epochs=None, max_steps=4, learning_rate=0.01, effective_batch_size=6, seed=5)
SAME = 2e-5
"""Nats per token by which a loss may differ, since numbers are added in another order."""


def outcomes(world: int, plan: Plan) -> list[Outcome]:
    """What each of the processes saw."""
    found = together(world, rank_programs.train, plan)
    for one in found:
        assert isinstance(one, Outcome), one
    return found


@pytest.fixture(scope="module")
def plan(tiny_folder: Path) -> Plan:
    """Four steps of six rows."""
    return Plan(folder=tiny_folder, config=CONFIG)


@pytest.fixture(scope="module")
def alone(plan: Plan) -> Outcome:
    """One process, all rows of a step at once."""
    return outcomes(1, plan)[0]


def close(found: Outcome, wanted: Outcome) -> None:
    """The same course and the same adapter, but for rounding."""
    assert found.losses == pytest.approx(wanted.losses, abs=SAME)
    assert found.norms == pytest.approx(wanted.norms, rel=1e-3)
    assert found.after == pytest.approx(wanted.after, abs=SAME)
    for name, values in wanted.adapter.items():
        assert found.adapter[name] == pytest.approx(values, abs=2e-4), name


@pytest.mark.parametrize(
    ("world", "changes"),
    [
        (1, {"micro": 1}),
        (2, {}),
        (2, {"micro": 1}),
        (2, {"packed": True}),
        (4, {"micro": 1}),
    ],
)
def test_any_number_of_processes_and_micro_batches_gives_the_same_losses(
    plan: Plan, alone: Outcome, world: int, changes: dict[str, Any]
) -> None:
    """The effective batch counts examples, and the loss is a mean over the target tokens of all of them."""
    found = outcomes(world, dataclasses.replace(plan, **changes))
    close(found[0], alone)
    assert found[0].rows == alone.rows == [6, 6, 6, 6]
    assert all(one.adapter == found[0].adapter for one in found)


@pytest.mark.parametrize(("world", "scaled"), [(4, False), (2, True)], ids=["", "scaled losses as in fp16"])
def test_a_process_without_rows_takes_part(plan: Plan, world: int, *, scaled: bool) -> None:
    """Half as many rows a step as processes."""
    few = dataclasses.replace(plan, config=dataclasses.replace(CONFIG, effective_batch_size=world // 2))
    found = outcomes(world, dataclasses.replace(few, scaled=scaled))
    close(found[0], outcomes(1, few)[0])
    assert all(one.adapter == found[0].adapter for one in found)


def test_two_steps_and_two_more_are_four_steps(plan: Plan) -> None:
    """Bit for bit, where as many processes go on as were stopped; process 0 alone has the state."""
    whole = outcomes(2, plan)
    resumed = outcomes(2, dataclasses.replace(plan, resume_at=2))
    assert resumed[0].losses == whole[0].losses
    assert resumed[1].adapter == whole[1].adapter == whole[0].adapter


@pytest.mark.parametrize("world", [1, 4])
def test_another_number_of_processes_may_go_on(plan: Plan, alone: Outcome, tmp_path: Path, world: int) -> None:
    """The state has no part of any one process: the rest is the same but for rounding."""
    handed_over = dataclasses.replace(plan, resume_at=2, state=tmp_path / "state")
    first = outcomes(2, handed_over)
    then = outcomes(world, handed_over)
    assert first[0].losses[:2] == pytest.approx(alone.losses[:2], abs=SAME)
    assert then[0].losses == pytest.approx(alone.losses[2:], abs=SAME)
    assert then[0].after == pytest.approx(alone.after, abs=SAME)


def test_all_processes_end_with_the_weights_of_the_best_evaluation(plan: Plan) -> None:
    """Which the first one alone keeps, also in a run that goes on."""
    patient = dataclasses.replace(CONFIG, eval_steps=1, early_stopping_patience=4)
    best = dataclasses.replace(plan, config=patient, evaluated=(3.0, 1.0, 2.0, 2.0))
    last = dataclasses.replace(best, evaluated=(3.0, 1.0, 2.0, 0.5))
    whole, resumed, other = (outcomes(2, one) for one in (best, dataclasses.replace(best, resume_at=3), last))
    assert whole[0].adapter == whole[1].adapter == resumed[0].adapter == resumed[1].adapter
    assert whole[0].adapter != other[0].adapter == other[1].adapter


def test_a_state_is_handed_out_bit_for_bit_and_tensor_by_tensor() -> None:
    """Of 128 MiB no process beside the first needs more than once as much. Sent as one it would take three times of it,
    in each of all processes of a node. What only the first process needs, only that one has."""
    size = 4 * 2**22
    here, there = together(2, rank_programs.hand_out_state, 8, size // 4)
    assert isinstance(here, Given), here
    assert there.text == here.text
    assert (here.others, there.others) == (9, 0)
    assert there.grown < 1.5 * 8 * size
    assert here.grown < size


@pytest.mark.parametrize("divided", [False, True])
def test_a_request_to_stop_that_one_process_hears_ends_the_evaluation_of_all(
    plan: Plan, tmp_path: Path, divided: bool
) -> None:
    """Within a few batches, also on one that has evaluated all of its rows; the step before is saved."""
    config = dataclasses.replace(CONFIG, eval_steps=2)
    evaluating = dataclasses.replace(plan, config=config, sharded_over=2 if divided else None)
    found = together(2, rank_programs.stop_in_an_evaluation, evaluating, tmp_path)
    for one in found:
        assert isinstance(one, Stopped), one
        assert "its state after step 2 of 4 is saved" in one.sentence
        assert one.losses[0] == one.losses[1] == found[0].losses[0]
    newest = Checkpoints(tmp_path, keep=1).newest()
    assert newest is not None
    assert newest.step == 2
    assert [one.batches for one in found] == ([ASK_EVERY] * 2 if divided else [1, ASK_EVERY])
    assert [one.code for one in found] == [76, 143], "the other one's end counts"


def test_one_process_without_memory_makes_all_repeat_the_step_with_smaller_micro_batches(
    plan: Plan, alone: Outcome
) -> None:
    """The effective batch stays, and nothing of the failed attempt counts."""
    found = outcomes(2, dataclasses.replace(plan, short_of_memory_at=3))
    close(found[0], alone)
    assert [one.limit_tokens for one in found] == [alone.limit_tokens // 2] * 2


def test_memory_that_does_not_suffice_for_one_row_is_reported_by_the_process_that_lacks_it(plan: Plan) -> None:
    """The other one ends as well, and does not claim the fault."""
    there, here = together(2, rank_programs.train, dataclasses.replace(plan, micro=1, short_of_memory_at=1))
    assert str(here).startswith("CudaOutOfMemoryError: the memory does not suffice for one example of")
    assert str(there).startswith("PeerFailedError: another process of the run ended")


def test_memory_that_does_not_suffice_for_one_row_makes_all_recompute_where_that_is_open(
    plan: Plan, alone: Outcome
) -> None:
    """The same losses, since activations are the same when they are computed again."""
    found = outcomes(2, dataclasses.replace(plan, micro=1, short_of_memory_at=1, may_recompute=True, selective=True))
    close(found[0], alone)
    assert [one.recomputes for one in found] == [True, True]


@pytest.mark.parametrize("init", ["PiSSA", "OLoRA"])
def test_all_processes_take_the_directions_that_the_first_one_found(tiny_folder: Path, init: str) -> None:
    """Whatever another one would find: what is left in the base is the same on all, bit for bit."""
    config = make_config(lora={"init": init, "rank": 4}, quantization="None")
    here, there = together(2, rank_programs.start_from_directions, tiny_folder, config)
    assert isinstance(here, tuple), here
    assert len(here[1]) == 14
    assert here == there


@pytest.mark.parametrize("recompute", [False, True])
def test_a_sharded_base_gives_the_losses_of_a_whole_one(plan: Plan, alone: Outcome, recompute: bool) -> None:
    """Each process holds half of the layers' weights and all of the adapter; packed, too, in as many packs on each."""
    checkpointing: dict[str, Any] = (
        {"recompute": True, "micro": 1} if recompute else {"selective": True, "fused": True, "packed": True, "micro": 2}
    )
    found = outcomes(2, dataclasses.replace(plan, sharded_over=2, **checkpointing))
    close(found[0], alone)
    assert all(one.adapter == found[0].adapter for one in found)
    assert [one.layer_weights for one in found] == [alone.layer_weights // 2] * 2


@pytest.mark.parametrize("kind", [Quantization.NF4, Quantization.FP4])
@pytest.mark.parametrize("checkpointing", [{}, {"recompute": True}, {"selective": True, "fused": True, "packed": True}])
def test_a_base_in_4_bits_is_divided_as_it_is_packed(
    plan: Plan, kind: Quantization, checkpointing: dict[str, Any]
) -> None:
    """Each process holds half of the bytes; kept, recomputed, and read by the fused adapter past the module itself."""
    in_4_bits = dataclasses.replace(plan, quantization=kind)
    whole = outcomes(1, in_4_bits)[0]
    found = outcomes(2, dataclasses.replace(in_4_bits, sharded_over=2, micro=2, **checkpointing))
    close(found[0], whole)
    assert all(one.adapter == found[0].adapter for one in found)
    assert [one.layer_weights for one in found] == [whole.layer_weights // 2] * 2


def test_what_is_gathered_of_packed_weights_has_its_scales(tiny_folder: Path) -> None:
    """For the fused adapter, which reads both; and bitsandbytes puts nothing of its own in the weight's place."""
    for found in together(2, rank_programs.packed_weights_of_a_divided_base, tiny_folder):
        assert not isinstance(found, Exception), found
        assert found == [("Parameter", True)] * 28


def test_a_base_that_is_divided_within_each_node_gives_what_one_divided_over_all_gives(
    plan: Plan, alone: Outcome
) -> None:
    """Two nodes of two processes: whichever parts of the weights are gathered, they are the same weights."""
    within, flat = (outcomes(4, dataclasses.replace(plan, sharded_over=over, micro=1)) for over in (2, 4))
    close(within[0], alone)
    assert [one.adapter for one in within] == [one.adapter for one in flat]
    assert within[0].norms == flat[0].norms
    assert {one.layer_weights for one in within} == {alone.layer_weights // 2}
    assert {one.layer_weights for one in flat} == {alone.layer_weights // 4}


@pytest.mark.parametrize(("over", "groups"), [(2, 2), (4, 1)])
def test_a_layers_collectives_wait_as_long_as_all_others(over: int, groups: int) -> None:
    """Half an hour would be the library's own time, whatever stallTimeoutSeconds is."""
    assert together(4, rank_programs.timeouts, 77.0, over, nodes=2) == [[77.0] * groups] * 4


@pytest.mark.parametrize("wrong", [False, True])
def test_what_one_process_of_a_divided_base_finds_wrong_all_leave_out(tiny_folder: Path, *, wrong: bool) -> None:
    """Each pass through divided layers is one of all processes: none makes one more."""
    here, there = together(2, partial(rank_programs.check_on_a_divided_base, wrong=wrong), tiny_folder)
    assert not isinstance(here, Exception), here
    assert here == there
    names, left_out = here
    assert names == ("fused-adapter", "recomputed-swiglu")[wrong:]
    assert [sentence.partition(":")[0] for sentence in left_out] == ["fused-adapter"] * wrong


def test_a_sharded_process_without_rows_goes_through_the_layers_with_the_others(plan: Plan) -> None:
    """One row a step for two processes, whose layers gather their weights from each other."""
    one_row = dataclasses.replace(plan, config=dataclasses.replace(CONFIG, effective_batch_size=1))
    found = outcomes(2, dataclasses.replace(one_row, sharded_over=2))
    close(found[0], outcomes(1, one_row)[0])
