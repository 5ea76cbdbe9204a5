"""Telling a second operator by what it writes, and not taking others for one."""

from typing import Any

import pytest
from tests.unit.builders import NAME, NAMESPACE, condition_object, make_finetune, with_status

from lora_operator.cluster.cache import Key
from lora_operator.cluster.carry_out import TryAgainError
from lora_operator.running.contention import LONGEST_PAUSE_S, Contention
from lora_operator.views.model import FineTune

KEY = Key(NAMESPACE, NAME)


def run(state: str, *, step: int = 0, foreign: str = "") -> FineTune:
    """A run in a state, at a step, with a condition of another controller."""
    status: dict[str, Any] = {"conditions": [condition_object("Complete", "Unknown", reason=state)]}
    status["progress"] = {"step": step}
    if foreign:
        status["conditions"].append(condition_object("Audited", foreign))
    return with_status(make_finetune(), status)


def test_an_operator_that_answers_each_of_our_statuses_is_given_more_and_more_time() -> None:
    """Each says what the other does not see; neither may write without an end."""
    now_s = 0.0
    contention = Contention(lambda: now_s)
    contention.wrote(KEY, run("Pending"), run("Training"))
    for pause_s in (0, 2, 4, 8):
        if pause_s:
            with pytest.raises(TryAgainError, match="second operator"):
                contention.is_disputed(KEY, run("Pending"), run("Training").status)
        now_s += pause_s
        assert contention.is_disputed(KEY, run("Pending"), run("Training").status)
        contention.wrote(KEY, run("Pending"), run("Training"))
    assert not contention.is_disputed(KEY, run("Training"), run("Publishing").status)


def test_two_operators_that_never_agree_wait_a_minute_each_time_for_days() -> None:
    """However often they have answered each other."""
    now_s = 0.0
    contention = Contention(lambda: now_s)
    contention.wrote(KEY, run("Pending"), run("Training"))
    for _ in range(2 * 24 * 60):
        contention.wrote(KEY, run("Pending"), run("Training"))
        now_s += LONGEST_PAUSE_S
        assert contention.is_disputed(KEY, run("Pending"), run("Training").status)
    contention.wrote(KEY, run("Pending"), run("Training"))
    now_s += LONGEST_PAUSE_S - 1
    with pytest.raises(TryAgainError, match="second operator"):
        contention.is_disputed(KEY, run("Pending"), run("Training").status)


def test_a_controller_that_keeps_a_condition_of_its_own_is_no_rival() -> None:
    """However often it writes it, our own news never wait for it."""
    contention = Contention(lambda: 0.0)
    contention.wrote(KEY, run("Pending"), run("Training"))
    for step in range(1, 9):
        present = run("Training", step=step - 1, foreign=("True", "False")[step % 2])
        assert not contention.is_disputed(KEY, present, run("Training", step=step).status)
        contention.wrote(KEY, present, run("Training", step=step))
