"""A process that stands by knows of all runs and works on none."""

import asyncio
import dataclasses
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, cast

import pytest
from tests.unit.builders import CONFIG, NAME, NAMESPACE, make_manifest

from lora_operator.cluster.api import Api
from lora_operator.cluster.cache import Key
from lora_operator.running.operator import Operator, make_operator
from lora_operator.running.watch import sources_of
from lora_operator.views.wording import instant

if TYPE_CHECKING:
    from kubernetes.aio.client.api_client import ApiClient

    from lora_operator.cluster.reflector import Reflector

KEY = Key(NAMESPACE, NAME)


def operator_with(**changes: Any) -> Operator:
    """One with these settings, and an API server that is never asked."""
    return make_operator(dataclasses.replace(CONFIG, **changes), Api(cast("ApiClient", None)))


async def test_news_pile_up_nowhere_and_all_runs_are_looked_at_when_the_work_begins() -> None:
    """Runs that came and went while another process worked are not remembered; a run that is there is."""
    operator = operator_with()
    operator.cache.finetunes.put(make_manifest())
    sources = sources_of(operator.cache, operator.kueue, operator.wake)
    for source in sources:
        source.wake(Key(NAMESPACE, "came-and-went"))
    operator.begin_work()
    assert len(operator.queue) == 1
    assert await operator.queue.take() == KEY
    manifest = make_manifest()
    manifest["metadata"]["resourceVersion"] = "1000"
    operator.take_in("MODIFIED", manifest)
    operator.queue.done(KEY)
    assert len(operator.queue) == 1


async def test_namespaces_take_turns() -> None:
    """A namespace with many runs delays another's by a turn."""
    operator = operator_with()
    operator.begin_work()
    for key in (*(Key("flood", str(number)) for number in range(3)), KEY):
        operator.wake(key)
    assert [(await operator.queue.take()).namespace for _ in range(4)] == ["flood", NAMESPACE, "flood", "flood"]


async def test_a_namespace_whose_turns_never_end_leaves_workers_to_others() -> None:
    """Of the 16 that are configured it holds 12."""
    operator = operator_with(workers=16)
    operator.begin_work()
    for number in range(40):
        operator.wake(Key("slow", str(number)))
    for _ in range(12):
        await operator.queue.take()
    operator.wake(KEY)
    assert await operator.queue.take() == KEY


@pytest.mark.parametrize("shown", [True, False])
async def test_the_series_of_runs_are_shown_once_the_work_begins_unless_they_are_switched_off(*, shown: bool) -> None:
    """A process that stands by has none, since sums would count each run twice."""
    operator = operator_with(run_metrics=shown)
    operator.cache.finetunes.put(make_manifest())
    whose = {"namespace": NAMESPACE, "name": NAME}
    assert operator.registry.get_sample_value("lorafinetune_attempts", whose) is None
    operator.begin_work()
    assert operator.registry.get_sample_value("lorafinetune_attempts", whose) == (0.0 if shown else None)


def shown(operator: Operator) -> list[tuple[str, str]]:
    """Series about runs, by name and labels."""
    samples = (sample for family in operator.registry.collect() for sample in family.samples)
    kept = ("lorafinetune_finished", "lorafinetune_queue_wait")
    return [
        (sample.name, str(sorted(sample.labels.items())))
        for sample in samples
        if sample.name.startswith("lorafinetune_") and not sample.name.startswith(kept)
    ]


async def test_a_hand_over_doubles_no_series() -> None:
    """The next leader shows what the last one did, and that one was the only one until its process ended."""
    leader, waiting = operator_with(), operator_with()
    for operator in (leader, waiting):
        operator.cache.finetunes.put(make_manifest())
    leader.begin_work()
    before = shown(leader)
    assert shown(waiting) == []
    assert len(before) == len(set(before)) > 5
    assert {"lorafinetune_info", "lorafinetune_attempts"} <= {name for name, _ in before}
    waiting.begin_work()
    assert shown(waiting) == before


class Followed:
    """What is followed of a kind in a namespace, as far as it has come."""

    def __init__(self, path: str, *, silent_s: float = 0.0, behind_s: float | None = None) -> None:
        self.path = path
        self.plural = path.rpartition("/")[2]
        self.silent_for_s = silent_s
        self.quiet_for_s: float | None = silent_s
        self.behind_for_s = behind_s
        self.listed = asyncio.Event()


def follow(operator: Operator, *followed: Followed) -> None:
    operator.reflectors = [cast("Reflector", one) for one in followed]


def test_one_watch_among_several_that_is_silent_or_in_the_past_is_trouble() -> None:
    """The sentence names it; before there are watches none is silent, however long the definition is waited for."""
    operator = operator_with(watch_stale_s=150.0, stale_list_s=120.0)
    assert operator.trouble() == ""
    fine = Followed("/api/v1/pods", silent_s=150, behind_s=120)
    follow(operator, fine)
    assert operator.trouble() == ""
    follow(operator, fine, Followed("/apis/batch/v1/jobs", silent_s=151))
    assert operator.trouble() == ("The watch of /apis/batch/v1/jobs has brought neither event nor bookmark for 151 s")
    follow(operator, fine, Followed("/apis/batch/v1/jobs", behind_s=121))
    assert operator.trouble().startswith(
        "The API server has been in the past for 121 s, as the list of /apis/batch/v1/jobs shows"
    )


def test_it_is_ready_with_the_first_list_of_each_kind() -> None:
    """Until then it says what hinders it."""
    operator = operator_with()
    operator.hindrance = "no definition"
    assert operator.unready() == "no definition"
    operator.hindrance = ""
    jobs, pods = Followed("/apis/batch/v1/jobs"), Followed("/api/v1/pods")
    follow(operator, jobs, pods)
    jobs.listed.set()
    assert operator.unready() == "The first list of the cluster is not complete"
    pods.listed.set()
    assert operator.unready() == ""


def test_the_metric_shows_the_most_silent_watch_of_each_kind() -> None:
    """A kind is as fresh as its most silent namespace; one that was never heard is 0."""
    operator = operator_with()
    jobs = [Followed(f"/apis/batch/v1/namespaces/{name}/jobs", silent_s=s) for name, s in (("a", 5), ("b", 60))]
    pods = [Followed(f"/api/v1/namespaces/{name}/pods") for name in "ab"]
    pods[0].quiet_for_s = None
    follow(operator, *jobs, *pods)
    now_s = time.time()
    heard = operator.last_heard()
    assert heard["jobs"] == pytest.approx(now_s - 60, abs=50)
    assert heard["pods"] == 0.0


@pytest.mark.parametrize("skew", [timedelta(hours=2), timedelta(hours=-2)])
async def test_times_that_metrics_show_are_the_api_servers(skew: timedelta) -> None:
    """Prometheus' clock and the status' times are compared with them: a node with a wrong clock raises no alert."""
    operator = operator_with()
    server = datetime.now(UTC) + skew
    operator.api.clock.saw(format_datetime(server, usegmt=True))
    follow(operator, Followed("/api/v1/pods", silent_s=60))
    assert operator.last_heard()["pods"] == pytest.approx(server.timestamp() - 60, abs=50)
    operator.cache.finetunes.put(
        make_manifest(status={"runSeconds": 0, "activeSince": instant(server - timedelta(minutes=10))})
    )
    operator.begin_work()
    active_s = operator.registry.get_sample_value("lorafinetune_active_seconds", {"namespace": NAMESPACE, "name": NAME})
    assert active_s == pytest.approx(600, abs=300)


def test_each_kind_is_followed_in_each_namespace_that_can_be_looked_after() -> None:
    """Everywhere where none is named."""
    operator = operator_with(namespaces=("a", "b"))
    operator.namespaces = ("a",)
    operator.follow()
    assert [one.path.partition("/namespaces/")[2] for one in operator.followed] == [
        "a/lorafinetunes",
        "a/jobs",
        "a/pods",
    ]
    everywhere = operator_with()
    everywhere.follow()
    assert [one.plural for one in everywhere.followed] == ["lorafinetunes", "jobs", "pods"]
