"""Who is looked at first."""

import pytest
from tests.unit.builders import condition_object, make_finetune, make_job_object

from lora_operator.cluster.store import Key, Stores
from lora_operator.controller.priority import is_urgent
from lora_operator.model.objects import FineTune


def cache_with(finetune: FineTune, *, job: bool = False) -> tuple[Stores, Key]:
    cache = Stores()
    cache.finetunes.put(finetune.manifest)
    if job:
        cache.jobs.put(make_job_object())
    return cache, Key(finetune.namespace, finetune.name)


@pytest.mark.parametrize(
    ("status", "job", "urgent"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"observedGeneration": 1}, True, False),
        ({"observedGeneration": 0}, True, True),
        ({"conditions": [condition_object("Complete", "True")], "observedGeneration": 1}, True, False),
        ({"conditions": [condition_object("Failed", "True")], "observedGeneration": 0}, True, False),
    ],
    ids=["nobody has looked", "it has a Job", "it has a status", "its spec has changed", "it succeeded", "it failed"],
)
def test_a_run_that_nobody_has_looked_at_or_that_has_changed_comes_first(
    status: dict[str, object], job: bool, urgent: bool
) -> None:
    """Thousands of others after a start hold up no new one."""
    assert is_urgent(*cache_with(make_finetune(status=status), job=job)) is urgent


def test_one_that_is_gone_is_not_urgent() -> None:
    """There is nothing to do but to forget it."""
    assert not is_urgent(Stores(), Key("team", "gone"))
