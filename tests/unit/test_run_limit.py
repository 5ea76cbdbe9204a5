"""Which runs of a namespace are beyond its limit."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.builders import CREATED, NAME, NAMESPACE, UID, condition_object, make_job_object, make_manifest

from lora_operator.cluster.cache import Cache, Key
from lora_operator.running.run_limit import RunLimit
from lora_operator.views.wording import instant

ENDED = {"conditions": [condition_object("Complete", "True")]}
STARTED = {"jobName": "tone-1"}


class Cluster:
    """A cache that is told of runs, and the limit that follows it."""

    def __init__(self, most: int) -> None:
        self.cache = Cache()
        self.woken: list[Key] = []
        self.limit = RunLimit(most, self.cache, self.woken.append)
        self._version = 0

    def put(
        self,
        name: str,
        minute: int = 0,
        status: dict[str, Any] | None = None,
        namespace: str = "team",
        deleted: str | None = None,
    ) -> None:
        self._version += 1
        manifest = make_manifest(status=status or {})
        manifest["metadata"] |= {
            "name": name,
            "namespace": namespace,
            "uid": UID if name == NAME else f"uid-{name}",
            "creationTimestamp": instant(CREATED.replace(minute=minute)),
            "resourceVersion": str(self._version),
            "deletionTimestamp": deleted,
        }
        self.cache.finetunes.put(manifest)
        self.limit.update(Key(namespace, name))

    def delete(self, name: str) -> None:
        finetune = self.cache.finetunes.get(Key("team", name))
        assert finetune is not None
        self.cache.finetunes.remove(finetune.manifest)
        self.limit.update(Key("team", name))

    def beyond(self, names: str) -> str:
        """Those of these runs that are beyond the limit."""
        return "".join(name for name in names if self.limit.exceeded_by(Key("team", name)) is not None)


def test_the_oldest_runs_go_first_and_one_by_name_where_they_are_of_one_second() -> None:
    """Whatever the order in which they were heard of."""
    cluster = Cluster(2)
    for name, minute in (("d", 5), ("b", 1), ("a", 1), ("c", 0)):
        cluster.put(name, minute)
    assert cluster.beyond("abcd") == "bd"
    assert cluster.limit.exceeded_by(Key("team", "b")) == 2


@pytest.mark.parametrize("end", ["it ends", "it is deleted"])
def test_the_next_one_goes_on_by_itself(end: str) -> None:
    """It alone is woken."""
    cluster = Cluster(2)
    for name in "abcd":
        cluster.put(name, status=STARTED if name in "ab" else None)
    cluster.woken.clear()
    cluster.put("a", status=ENDED) if end == "it ends" else cluster.delete("a")
    assert cluster.woken == [Key("team", "c")]
    assert cluster.beyond("bcd") == "d"


def test_a_deleted_run_that_a_finalizer_keeps_gives_its_place_up_with_its_job() -> None:
    """Its name may stay for weeks, and the others would wait for it to be deleted, which it is."""
    cluster, job, waiting = Cluster(1), make_job_object(), Key(NAMESPACE, "b")
    cluster.cache.jobs.put(job)
    cluster.put(NAME, status=STARTED, namespace=NAMESPACE)
    cluster.put("b", 1, namespace=NAMESPACE)
    cluster.put(NAME, status=STARTED, namespace=NAMESPACE, deleted=instant(CREATED))
    assert cluster.limit.exceeded_by(waiting) == 1
    cluster.cache.jobs.remove(job)
    cluster.limit.update(Key(NAMESPACE, NAME))
    assert cluster.limit.exceeded_by(waiting) is None


def test_a_run_that_has_had_a_job_is_never_beyond() -> None:
    """Neither by its status nor, after a crash before that, by its Job; however many older ones there are."""
    cluster = Cluster(1)
    cluster.put("a", 1, namespace=NAMESPACE)
    cluster.put("z", 3, STARTED, namespace=NAMESPACE)
    cluster.put(NAME, 2, namespace=NAMESPACE)
    beyond = {name: cluster.limit.exceeded_by(Key(NAMESPACE, name)) for name in ("a", "z", NAME)}
    assert beyond == {"a": 1, "z": None, NAME: 1}
    cluster.cache.jobs.put(make_job_object())
    cluster.limit.update(Key(NAMESPACE, NAME))
    assert cluster.limit.exceeded_by(Key(NAMESPACE, NAME)) is None


def test_news_that_change_nothing_wake_nobody() -> None:
    """The progress of runs that train costs those that wait nothing."""
    cluster = Cluster(2)
    cluster.put("a", status=STARTED)
    cluster.put("b")
    cluster.woken.clear()
    cluster.put("a", status={**STARTED, "progress": {"step": 2}})
    assert cluster.woken == []


def test_namespaces_have_a_limit_each_and_without_a_limit_nobody_waits() -> None:
    """0 is none."""
    cluster = Cluster(1)
    cluster.put("a", namespace="other", status=STARTED)
    cluster.put("a")
    assert cluster.beyond("a") == ""
    unlimited = Cluster(0)
    for name in "abc":
        unlimited.put(name)
    assert unlimited.beyond("abc") == ""


CHANGES = st.tuples(st.sampled_from("abcdef"), st.integers(0, 3), st.sampled_from([None, STARTED, ENDED, "deleted"]))


@given(st.integers(1, 3), st.lists(CHANGES, max_size=30))
def test_the_index_says_what_counting_anew_would(most: int, changes: list[tuple[str, int, Any]]) -> None:
    """After any news: those that have started, then the oldest, as long as there is room."""
    cluster = Cluster(most)
    runs: dict[str, tuple[int, Any]] = {}
    for name, minute, status in changes:
        before = set(cluster.beyond("abcdef"))
        cluster.woken.clear()
        if status != "deleted":
            created = runs[name][0] if name in runs else minute
            runs[name] = (created, status)
            cluster.put(name, created, status)
        elif runs.pop(name, None):
            cluster.delete(name)
        started = {name for name, (_, status) in runs.items() if status == STARTED}
        waiting = sorted((minute, name) for name, (minute, status) in runs.items() if status is None)
        beyond = {name for _, name in waiting[max(0, most - len(started)) :]}
        assert set(cluster.beyond("abcdef")) == beyond
        let_in = {name for name in before - beyond if runs.get(name, (0, ENDED))[1] is None}
        assert let_in <= {key.name for key in cluster.woken} | {name}
