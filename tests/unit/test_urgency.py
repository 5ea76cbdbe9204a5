"""Who is looked at first."""

import pytest
from tests.unit.builders import condition_object, make_finetune, make_job_object

from lora_operator.cluster.cache import Cache, Key
from lora_operator.running.urgency import ENDED, GOING_ON, NEW, rank_of
from lora_operator.views.model import FineTune


def cache_with(finetune: FineTune, *, job: bool = False) -> tuple[Cache, Key]:
    cache = Cache()
    cache.finetunes.put(finetune.manifest)
    if job:
        cache.jobs.put(make_job_object())
    return cache, Key(finetune.namespace, finetune.name)


@pytest.mark.parametrize(
    ("status", "job", "rank"),
    [
        ({}, False, NEW),
        ({}, True, GOING_ON),
        ({"observedGeneration": 1}, False, GOING_ON),
        ({"conditions": [condition_object("Complete", "True")], "observedGeneration": 1}, True, ENDED),
        ({"conditions": [condition_object("Failed", "True")], "observedGeneration": 1}, True, ENDED),
    ],
    ids=["nobody has looked", "it has a Job", "it has a status", "it succeeded", "it failed"],
)
def test_a_run_that_nobody_has_looked_at_comes_first_and_one_that_has_ended_last(
    status: dict[str, object], job: bool, rank: int
) -> None:
    """Thousands of finished ones after a start hold up no new one."""
    assert rank_of(*cache_with(make_finetune(status=status), job=job)) == rank


def test_one_that_is_gone_is_not_urgent() -> None:
    """There is nothing to do but to forget it."""
    assert rank_of(Cache(), Key("team", "gone")) == ENDED
