"""The cache: versions, owners, and lists that race with watches."""

import tracemalloc
from typing import Any

import pytest

from lora_operator.cluster.cache import Cache, Key, Scope
from lora_operator.views.names import child_labels

OWNER = Key("team", "tone")
ALL = Scope()


def job(name: str = "job", *, uid: str = "j1", version: str = "1", owner_uid: str = "u1") -> dict[str, Any]:
    labels = child_labels("tone", owner_uid, 1)
    return {
        "metadata": {"namespace": "team", "name": name, "uid": uid, "resourceVersion": version, "labels": labels},
        "spec": {"suspend": version == "9"},
    }


def test_an_object_is_news_once() -> None:
    """The same version again, as the watch repeats our own write, wakes nobody."""
    jobs = Cache().jobs
    assert jobs.put(job()) == OWNER
    assert jobs.put(job()) is None
    assert jobs.put(job(version="2")) == OWNER


def test_an_older_version_does_not_replace_a_newer_one() -> None:
    """Compared as numbers: 9 is older than 10."""
    jobs = Cache().jobs
    jobs.put(job(version="10"))
    assert jobs.put(job(version="9")) is None
    (view,) = jobs.of(OWNER, "u1")
    assert view.suspended is False


def test_versions_that_are_no_numbers_are_taken_in_order_of_arrival() -> None:
    """The API calls them opaque."""
    jobs = Cache().jobs
    jobs.put(job(version="b"))
    assert jobs.put(job(version="a")) == OWNER


def test_a_deletion_of_an_earlier_object_of_that_name_leaves_the_new_one() -> None:
    """Deleted and created again, with the events out of order."""
    jobs = Cache().jobs
    jobs.put(job(uid="old"))
    jobs.put(job(uid="new", version="5"))
    assert jobs.remove(job(uid="old", version="6")) is None
    assert len(jobs.of(OWNER, "u1")) == 1
    assert jobs.remove(job(uid="new", version="7")) == OWNER
    assert jobs.of(OWNER, "u1") == ()


def test_children_of_an_earlier_resource_of_the_same_name_are_not_ours() -> None:
    """Owners are told apart by uid."""
    jobs = Cache().jobs
    jobs.put(job("a", uid="j1", owner_uid="u1"))
    jobs.put(job("b", uid="j2", owner_uid="u2"))
    assert [view.uid for view in jobs.of(OWNER, "u2")] == ["j2"]


def test_a_list_removes_what_it_does_not_hold() -> None:
    """A ghost: deleted while no watch could tell."""
    jobs = Cache().jobs
    jobs.put(job("a", uid="j1", version="1"))
    jobs.put(job("b", uid="j2", version="2"))
    with jobs.listing() as listing:
        listing.take([job("b", uid="j2", version="2")], "10")
        listing.finish("10", ALL)
        assert listing.changed == {OWNER}
    assert [view.uid for view in jobs.of(OWNER, "u1")] == ["j2"]


def test_a_list_does_not_remove_what_is_newer_than_it() -> None:
    """Created by us after the server had made the list."""
    jobs = Cache().jobs
    with jobs.listing() as listing:
        jobs.put(job(version="11"))
        listing.finish("10", ALL)
        assert not listing.changed
    assert len(jobs) == 1


def test_a_list_does_not_bring_back_what_was_deleted_meanwhile() -> None:
    """The watch told of the deletion between the list's two chunks."""
    jobs = Cache().jobs
    jobs.put(job(version="1"))
    with jobs.listing() as listing:
        jobs.remove(job(version="12"))
        listing.take([job(version="1")], "10")
        listing.finish("10", ALL)
    assert len(jobs) == 0


def test_an_interrupted_list_removes_nothing_and_says_what_it_brought() -> None:
    """Half a list is no proof of absence, and what it held is no news to the next one."""
    jobs = Cache().jobs
    jobs.put(job("a", uid="j1"))
    with jobs.listing() as listing:
        listing.take([job("b", uid="j2")], "10")
    assert len(jobs) == 2
    assert listing.changed == {OWNER}


def test_an_answer_that_a_deletion_has_overtaken_brings_nothing_back() -> None:
    """The watch told of the deletion before the answer to our own creation was read."""
    jobs = Cache().jobs
    jobs.put(job(version="5"))
    jobs.remove(job(version="7"))
    assert jobs.put(job(version="5")) is None
    assert len(jobs) == 0


def test_an_object_that_takes_our_label_off_and_on_again_is_back() -> None:
    """To a watch with a selector this looks like a deletion, and the uid stays."""
    jobs = Cache().jobs
    jobs.put(job(version="5"))
    jobs.remove(job(version="7"))
    assert jobs.put(job(version="8")) == OWNER


def test_an_answer_about_an_earlier_object_does_not_replace_the_new_one() -> None:
    """Deleted and created again by the same name while a write to the old one was on its way."""
    jobs = Cache().jobs
    jobs.put(job(uid="new", version="9"))
    assert jobs.put(job(uid="old", version="7")) is None
    assert [view.uid for view in jobs] == ["new"]


def test_what_one_list_removed_another_older_one_does_not_bring_back() -> None:
    """Two lists of a kind cross: a watch that begins anew, and a resync."""
    jobs = Cache().jobs
    jobs.put(job(version="5"))
    with jobs.listing() as older:
        with jobs.listing() as newer:
            newer.finish("10", ALL)
        older.take([job(version="5")], "8")
        older.finish("8", ALL)
    assert len(jobs) == 0


@pytest.mark.parametrize(("version", "found"), [("8", True), ("6", False)])
def test_a_list_that_began_later_finds_what_a_watch_with_a_selector_told_as_deleted(version: str, found: bool) -> None:
    """Somebody changed the label that we select by; a list of a cache that is behind proves nothing."""
    jobs = Cache().jobs
    jobs.put(job(version="5"))
    jobs.remove(job(version="7"))
    with jobs.listing() as listing:
        listing.take([job(version="7")], version)
        listing.finish(version, ALL)
    assert (len(jobs) == 1) == found


def test_what_an_earlier_list_did_not_hold_a_later_one_finds() -> None:
    """The resync lists by label, and the look at one run by its uid."""
    jobs = Cache().jobs
    jobs.put(job(version="5"))
    with jobs.listing() as listing:
        listing.finish("10", ALL)
    with jobs.listing() as listing:
        listing.take([job(version="5")], "11")
        assert listing.changed == {OWNER}


def test_an_object_that_has_lost_its_label_is_nobodys() -> None:
    """Its former owner is told; what another object by the same name was is gone as well."""
    jobs = Cache().jobs
    for uid in ("j1", "other"):
        jobs.put(job(version="5"))
        bare = job(uid=uid, version="7")
        del bare["metadata"]["labels"]
        assert jobs.put(bare) == OWNER
        assert len(jobs) == 0
        jobs = Cache().jobs


def test_an_object_that_was_not_found_may_have_a_successor_already() -> None:
    """The watch told of it before the answer to a request to the earlier one was read."""
    jobs = Cache().jobs
    jobs.put(job(uid="new", version="9"))
    jobs.vacate(Key("team", "job"), "old")
    assert [view.uid for view in jobs] == ["new"]


def test_what_the_server_does_not_find_is_forgotten() -> None:
    """Whatever it was: a later one by that name is another object, or a newer version."""
    jobs = Cache().jobs
    jobs.put(job(version="5"))
    jobs.vacate(Key("team", "job"), "j1")
    jobs.vacate(Key("team", "never there"), "")
    assert jobs.put(job(version="5")) is None
    assert jobs.put(job(uid="j2", version="6")) == OWNER


def test_of_what_was_removed_only_so_much_is_remembered() -> None:
    """A cluster removes pods for as long as it lives; all of them are remembered only while a list is under way."""
    jobs = Cache().jobs
    with jobs.listing() as listing:
        for number in range(1500):
            jobs.remove(job(uid=f"j{number}", version="7"))
        listing.take([job(uid="j0", version="6")], "10")
        assert len(jobs) == 0
    jobs.remove(job(uid="last", version="7"))
    assert jobs.put(job(uid="j1499", version="6")) is None
    assert jobs.put(job(uid="j0", version="6")) == OWNER, "forgotten"


def test_a_list_of_one_owner_leaves_the_others_alone() -> None:
    """Absence is confirmed for one resource at a time."""
    jobs = Cache().jobs
    jobs.put(job("a", uid="j1", owner_uid="u1"))
    jobs.put(job("b", uid="j2", owner_uid="u2"))
    with jobs.listing() as listing:
        listing.finish("10", Scope(owner=OWNER, owner_uid="u1"))
    assert [view.uid for view in jobs] == ["j2"]


def test_a_list_of_one_namespace_leaves_the_others_alone() -> None:
    """Each namespace is listed by itself."""
    jobs = Cache().jobs
    jobs.put(job())
    with jobs.listing() as listing:
        listing.finish("10", Scope(namespace="other"))
    assert len(jobs) == 1


def test_a_resource_is_its_own_owner_and_is_kept_without_labels() -> None:
    """What is queued for a LoRAFineTune is its own place."""
    finetunes = Cache().finetunes
    document = {"metadata": {"namespace": "team", "name": "tone", "uid": "u1", "resourceVersion": "3"}}
    assert finetunes.put(document) == OWNER
    found = finetunes.get(OWNER)
    assert found is not None
    assert found.uid == "u1"


def test_a_finished_resource_is_the_same_however_it_is_kept() -> None:
    """Packed away: found by its place, among all, and by a list; a later version replaces it."""
    finetunes = Cache().finetunes
    done = {"type": "Complete", "status": "True", "reason": "Succeeded", "message": "ü" * 1000}
    metadata = {"namespace": "team", "name": "tone", "uid": "u1", "resourceVersion": "3", "labels": {"a": "b"}}
    document = {"metadata": metadata, "spec": {"suspend": False}, "status": {"conditions": [done]}}
    finetunes.put(document)
    found = finetunes.get(OWNER)
    assert found is not None
    assert found.manifest == document
    assert list(finetunes) == [found]
    assert finetunes.put(document) is None
    assert finetunes.put({**document, "metadata": {**metadata, "resourceVersion": "4"}}) == OWNER


def test_a_thousand_finished_resources_take_little_memory() -> None:
    """They stay for years, with long messages: some 2 KB each, not the 14 KB of their documents."""
    finetunes = Cache().finetunes

    def document(number: int) -> dict[str, Any]:
        metadata = {"namespace": "team", "name": f"tone-{number}", "uid": f"u{number}", "resourceVersion": "3"}
        message = f"Pod tone-{number}-0 has done its work and ended well, and the verified result lies where it shall"
        kinds = ("Complete", "Failed", "Accepted", "PodsReady", "Suspended", "ArtifactPublished")
        conditions = [{"type": kind, "status": "True", "reason": "Succeeded", "message": message} for kind in kinds]
        return {"metadata": metadata, "spec": {"model": {"uri": "hf://a/b"}}, "status": {"conditions": conditions}}

    tracemalloc.start()
    try:
        for number in range(1000):
            finetunes.put(document(number))
        assert tracemalloc.get_traced_memory()[0] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_finished_resource_with_a_number_beyond_64_bits_is_kept_as_it_is() -> None:
    """A foreign writer left it."""
    finetunes = Cache().finetunes
    done = {"type": "Failed", "status": "True"}
    metadata = {"namespace": "team", "name": "tone", "uid": "u1", "resourceVersion": "3"}
    finetunes.put({"metadata": metadata, "status": {"conditions": [done], "odd": 2**70}})
    found = finetunes.get(OWNER)
    assert found is not None
    assert found.status["odd"] == 2**70
