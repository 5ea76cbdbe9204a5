"""A process that stands by knows of all runs and works on none."""

from typing import TYPE_CHECKING, cast

from prometheus_client import CollectorRegistry
from tests.unit.builders import CONFIG, NAME, NAMESPACE, make_manifest

from lora_operator.cluster.cache import Key
from lora_operator.running.metrics import Metrics
from lora_operator.running.parts import Operator
from lora_operator.running.watch import sources_of

if TYPE_CHECKING:
    from kubernetes.aio.client.api_client import ApiClient

KEY = Key(NAMESPACE, NAME)


async def test_news_pile_up_nowhere_and_all_runs_are_looked_at_when_the_work_begins() -> None:
    """Runs that came and went while another process worked are not remembered; a run that is there is."""
    registry = CollectorRegistry()
    operator = Operator(CONFIG, cast("ApiClient", None), Metrics(registry), registry)
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
    registry = CollectorRegistry()
    operator = Operator(CONFIG, cast("ApiClient", None), Metrics(registry), registry)
    operator.begin_work()
    for key in (*(Key("flood", str(number)) for number in range(3)), KEY):
        operator.wake(key)
    assert [(await operator.queue.take()).namespace for _ in range(4)] == ["flood", NAMESPACE, "flood", "flood"]
