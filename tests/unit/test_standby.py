"""A process that stands by knows of all runs and works on none."""

import dataclasses
from typing import TYPE_CHECKING, Any, cast

import pytest
from prometheus_client import CollectorRegistry
from tests.unit.builders import CONFIG, NAME, NAMESPACE, make_manifest

from lora_operator.cluster.cache import Key
from lora_operator.running.metrics import Metrics
from lora_operator.running.parts import Operator
from lora_operator.running.watch import sources_of

if TYPE_CHECKING:
    from kubernetes.aio.client.api_client import ApiClient

KEY = Key(NAMESPACE, NAME)


def make_operator(**changes: Any) -> Operator:
    registry = CollectorRegistry()
    config = dataclasses.replace(CONFIG, **changes)
    return Operator(config, cast("ApiClient", None), Metrics(registry), registry)


async def test_news_pile_up_nowhere_and_all_runs_are_looked_at_when_the_work_begins() -> None:
    """Runs that came and went while another process worked are not remembered; a run that is there is."""
    operator = make_operator()
    operator.cache.finetunes.put(make_manifest())
    sources = sources_of(operator.cache, operator.kueue, operator.wake)
    for source in sources:
        source.wake(Key(NAMESPACE, "came-and-went"))
    operator.begin_work()
    assert len(operator.queue) == 1
    assert await operator.queue.take() == KEY
    sources[0].wake(KEY)
    operator.queue.done(KEY)
    assert len(operator.queue) == 1


async def test_namespaces_take_turns() -> None:
    """A namespace with many runs delays another's by a turn."""
    operator = make_operator()
    operator.begin_work()
    for key in (*(Key("flood", str(number)) for number in range(3)), KEY):
        operator.wake(key)
    assert [(await operator.queue.take()).namespace for _ in range(4)] == ["flood", NAMESPACE, "flood", "flood"]


@pytest.mark.parametrize("shown", [True, False])
async def test_the_series_of_runs_are_shown_once_the_work_begins_unless_they_are_switched_off(*, shown: bool) -> None:
    """A process that stands by has none, since sums would count each run twice."""
    operator = make_operator(run_metrics=shown)
    operator.cache.finetunes.put(make_manifest())
    whose = {"namespace": NAMESPACE, "name": NAME}
    assert operator.registry.get_sample_value("lorafinetune_attempts", whose) is None
    operator.begin_work()
    assert operator.registry.get_sample_value("lorafinetune_attempts", whose) == (0.0 if shown else None)


async def test_the_limit_of_runs_is_known_before_the_first_turn() -> None:
    """Whichever run is looked at first after a start, those beyond the limit are the same."""
    operator = make_operator(most_unfinished_runs_per_namespace=1)
    for name in ("b", "a"):
        manifest = make_manifest()
        manifest["metadata"] |= {"name": name, "uid": f"uid-{name}"}
        operator.cache.finetunes.put(manifest)
    operator.begin_work()
    assert [operator.run_limit.exceeded_by(Key(NAMESPACE, name)) for name in "ab"] == [None, 1]
