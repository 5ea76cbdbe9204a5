"""What a store makes of watches, lists and answers: an older version replaces nothing, and a list heals."""

from typing import Any

import pytest
from tests.unit.builders import (
    NAME,
    NAMESPACE,
    UID,
    condition_object,
    make_job_object,
    make_manifest,
    make_pod_object,
)

from lora_operator.cluster.store import Key, Stores
from lora_operator.model.pods import has_ended

OWNER = Key(NAMESPACE, NAME)


def pod(version: str, *, uid: str = "pod-1", name: str = "pod", **changes: Any) -> dict[str, Any]:
    """A pod as the API server has it at that version."""
    document = make_pod_object(**changes)
    document["metadata"] |= {"resourceVersion": version, "uid": uid, "name": name}
    return document


@pytest.fixture
def stores() -> Stores:
    """One pod is known at version 20."""
    stores = Stores()
    stores.pods.put(pod("20"))
    return stores


def versions(stores: Stores) -> dict[str, str]:
    """By name the version of each pod that is known."""
    return {entry.place.name: entry.version for entry in stores.pods._entries.values()}


@pytest.mark.parametrize(("version", "news", "known"), [("19", False, "20"), ("20", False, "20"), ("21", True, "21")])
def test_an_older_version_replaces_nothing(stores: Stores, version: str, *, news: bool, known: str) -> None:
    """An answer to a request of ours may be overtaken by the watch."""
    assert (stores.pods.put(pod(version)) == OWNER) == news
    assert versions(stores) == {"pod": known}


def test_a_list_drops_what_it_does_not_hold_and_nothing_that_is_newer(stores: Stores) -> None:
    """It takes seconds, in which the watch goes on."""
    stores.pods.put(pod("10", uid="lost", name="lost"))
    with stores.pods.listing(None) as listing:
        news = listing.put([pod("20")], "25")
        stores.pods.put(pod("26", uid="made", name="made"))
        news |= listing.finish("25")
    assert versions(stores) == {"pod": "20", "made": "26"}
    assert news == {OWNER}, "the run whose pod was lost, and nobody else"


def test_a_list_of_one_namespace_says_nothing_of_others(stores: Stores) -> None:
    """Each has a list of its own."""
    with stores.pods.listing("elsewhere") as listing:
        assert listing.put([], "25") == set()
        assert listing.finish("25") == set()
    assert versions(stores) == {"pod": "20"}


def test_what_a_watch_reports_as_deleted_is_not_brought_back_by_a_list_that_is_older(stores: Stores) -> None:
    """Its chunk was read before."""
    with stores.pods.listing(None) as listing:
        stores.pods.remove(pod("22"))
        assert listing.put([pod("20")], "21") == set()
        listing.finish("21")
    assert versions(stores) == {}


def test_a_list_that_fails_half_way_drops_nothing(stores: Stores) -> None:
    """The next one heals."""
    with stores.pods.listing(None) as listing:
        listing.put([], "25")
    assert versions(stores) == {"pod": "20"}


def test_after_etcd_was_restored_all_is_as_the_list_has_it(stores: Stores) -> None:
    """No list is of a time before what was seen, but after that: then newer versions are of a history that is gone."""
    stores.pods.put(pod("30", uid="after", name="after"))
    with stores.pods.listing(None) as listing:
        listing.put([pod("12")], "15")
        listing.finish("15")
    assert versions(stores) == {"pod": "12"}
    assert stores.pods.put(pod("16", uid="new", name="new")) == OWNER


def test_an_object_that_takes_the_place_of_another_is_another(stores: Stores) -> None:
    """The watch may report the deletion of the first one later."""
    stores.pods.put(pod("30", uid="pod-2"))
    assert stores.pods.remove(pod("29")) is None
    assert stores.pods.uid_at(Key(NAMESPACE, "pod")) == "pod-2"
    stores.pods.drop(Key(NAMESPACE, "pod"), "pod-1")
    assert versions(stores) == {"pod": "30"}


def test_an_object_stays_with_the_owner_that_it_had_first(stores: Stores) -> None:
    """Whatever becomes of its labels."""
    changed = pod("21")
    changed["metadata"]["labels"]["lora-operator.io/name"] = "other"
    assert stores.pods.put(changed) == OWNER
    assert len(stores.pods.of(OWNER, UID)) == 1
    assert stores.pods.of(OWNER, "of an earlier run") == ()


def test_the_last_state_of_what_is_gone_stays_until_the_status_tells_of_it() -> None:
    """How a pod ended, and what it proved; and each Job."""
    stores = Stores()
    stores.jobs.put(make_job_object())
    stores.jobs.remove(make_job_object(version="99"))
    lived, died = pod("1", uid="a", name="a"), pod("2", uid="b", name="b")
    died["status"] = {"phase": "Failed", "conditions": [condition_object("Ready", "False")]}
    for document in (lived, died):
        stores.pods.put(document)
        stores.pods.remove(document)
    assert [job.name for job in stores.jobs.gone(OWNER, UID)] == [make_job_object()["metadata"]["name"]]
    assert [view.name for view in stores.pods.gone(OWNER, UID)] == ["b"]
    assert stores.pods.gone(OWNER, "of an earlier run") == ()
    stores.pods.forget_gone(OWNER, unless=has_ended)
    assert len(stores.pods.gone(OWNER, UID)) == 1
    stores.forget_gone(OWNER)
    assert (stores.pods.gone(OWNER, UID), stores.jobs.gone(OWNER, UID)) == ((), ())


def test_a_finished_run_is_kept_packed_and_read_as_it_was() -> None:
    """Thousands of them take a tenth of the memory."""
    stores = Stores()
    status = {"conditions": [condition_object("Complete", reason="Succeeded")]}
    stores.finetunes.put(make_manifest(status=status))
    assert stores.finetunes.is_packed(OWNER)
    finetune = stores.finetunes.get(OWNER)
    assert finetune is not None
    assert finetune.status == status
