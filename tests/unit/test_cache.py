"""The cache: versions, owners, and lists that race with watches."""

import tracemalloc
from typing import Any

import pytest

from lora_operator.cluster.cache import Cache, Key
from lora_operator.cluster.tombstones import MOST
from lora_operator.views.names import QUEUE_LABEL, child_labels
from lora_trainer.contract.manifest import API_VERSION, KIND

OWNER = Key("team", "tone")


def job(name: str = "job", *, uid: str = "j1", version: str = "1", owner_uid: str = "u1") -> dict[str, Any]:
    owner = {"apiVersion": API_VERSION, "kind": KIND, "name": "tone", "uid": owner_uid, "controller": True}
    metadata = {"namespace": "team", "name": name, "uid": uid, "resourceVersion": version, "ownerReferences": [owner]}
    return {"metadata": metadata, "spec": {"suspend": version == "9"}}


def pod(name: str = "pod", *, uid: str = "p1", version: str = "1", phase: str = "Running") -> dict[str, Any]:
    metadata = {"namespace": "team", "name": name, "uid": uid, "resourceVersion": version}
    return {"metadata": {**metadata, "labels": child_labels("tone", "u1", 1)}, "status": {"phase": phase}}


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
    """Deleted while no watch could report it."""
    jobs = Cache().jobs
    jobs.put(job("a", uid="j1", version="1"))
    jobs.put(job("b", uid="j2", version="2"))
    assert jobs.prune("10", {"j2"}) == {OWNER}
    assert [view.uid for view in jobs.of(OWNER, "u1")] == ["j2"]


def test_a_list_does_not_remove_what_is_newer_than_it() -> None:
    """Created by us after the server had made the list."""
    jobs = Cache().jobs
    jobs.put(job(version="11"))
    assert jobs.prune("10", set()) == set()
    assert len(jobs) == 1


def test_a_list_of_one_namespace_leaves_the_others_alone() -> None:
    """Each namespace is listed by itself."""
    jobs = Cache().jobs
    jobs.put(job())
    assert jobs.prune("10", set(), "other") == set()
    assert len(jobs) == 1


def test_an_answer_that_a_deletion_has_overtaken_brings_nothing_back() -> None:
    """The watch reported the deletion before the answer to our own creation was read."""
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


def test_a_watch_that_is_behind_deletes_nothing_that_is_newer() -> None:
    """The label came back with version 8; a second API server still reports how it went."""
    jobs = Cache().jobs
    jobs.put(job(version="8"))
    assert jobs.remove(job(version="7")) is None
    assert len(jobs) == 1


def test_an_answer_about_an_earlier_object_does_not_replace_the_new_one() -> None:
    """Deleted and created again by the same name while a write to the old one was on its way."""
    jobs = Cache().jobs
    jobs.put(job(uid="new", version="9"))
    assert jobs.put(job(uid="old", version="7")) is None
    assert [view.uid for view in jobs] == ["new"]


@pytest.mark.parametrize(("as_of", "found"), [("6", False), ("7", True), ("8", True), ("", False)])
def test_a_read_that_is_not_older_than_the_deletion_finds_what_lost_its_label(as_of: str, found: bool) -> None:
    """A list as of an earlier version, or an answer of which nobody knows when it was made, proves nothing."""
    jobs = Cache().jobs
    jobs.put(job(version="5"))
    jobs.remove(job(version="7"))
    assert (jobs.put(job(version="7"), as_of=as_of) == OWNER) == found
    assert len(jobs) == found


@pytest.mark.parametrize(("as_of", "undone"), [("8", False), ("9", True), ("12", True)])
def test_what_a_list_shows_in_an_older_version_was_undone_if_the_list_is_not_older(as_of: str, undone: bool) -> None:
    """etcd was restored, and its versions have caught up; a list that is behind, or a read by name, shows the past."""
    jobs = Cache().jobs
    jobs.put(job(version="9"))
    assert jobs.put(job(version="5"), as_of="12") is None
    assert (jobs.put(job(version="5"), as_of=as_of, listed=True) == OWNER) == undone
    assert jobs.put(job(version="5"), as_of=as_of, listed=True) is None


def test_what_one_list_removed_another_older_one_does_not_bring_back() -> None:
    """Two lists of a kind cross: a watch that begins anew, and a resync."""
    jobs = Cache().jobs
    jobs.put(job(version="5"))
    jobs.prune("10", set())
    assert jobs.put(job(version="5"), as_of="8") is None
    assert jobs.put(job(version="5"), as_of="11") == OWNER


def test_the_newest_version_seen_is_that_of_objects_lists_and_bookmarks() -> None:
    """A read by name that begins now is as of that or of a later one; a list of the past changes nothing."""
    jobs = Cache().jobs
    seen = []
    for act in (
        lambda: jobs.put(job(version="5")),
        lambda: jobs.remove(job("other", uid="j2", version="9")),
        lambda: jobs.saw("10"),
        lambda: jobs.prune("8", {"j1"}),
    ):
        act()
        seen.append(jobs.version)
    assert seen == ["5", "9", "10", "10"]


def test_a_job_without_labels_is_its_controllers() -> None:
    """Labels are an index for watches alone; of a Job that somebody else controls they prove nothing."""
    jobs = Cache().jobs
    assert jobs.put(job()) == OWNER
    others = job("other", uid="j2", version="2")
    others["metadata"]["labels"] = child_labels("tone", "u1", 1)
    for key, value in (("apiVersion", "other.io/v1"), ("kind", "Other"), ("controller", False)):
        owner = {**job()["metadata"]["ownerReferences"][0], key: value}
        others["metadata"] = {**others["metadata"], "ownerReferences": [owner]}
        assert jobs.put(others) is None
    assert [view.uid for view in jobs] == ["j1"]


def test_an_object_that_names_no_owner_any_more_keeps_the_one_it_had() -> None:
    """A live read or an answer shows it without its labels; another object in its place is nobody's."""
    pods = Cache().pods
    pods.put(pod(version="5"))
    bare = pod(version="6")
    del bare["metadata"]["labels"]
    assert pods.put(bare) == OWNER
    assert len(pods.of(OWNER, "u1")) == 1
    bare["metadata"] = {**bare["metadata"], "uid": "other", "resourceVersion": "7"}
    assert pods.put(bare) == OWNER
    assert len(pods) == 0


def test_a_live_read_says_whose_an_object_is() -> None:
    """A pod without labels, found by the Job controller's own."""
    pods = Cache().pods
    bare = pod()
    del bare["metadata"]["labels"]
    assert pods.put(bare) is None
    assert pods.put(bare, ("tone", "u1")) == OWNER
    assert len(pods.of(OWNER, "u1")) == 1


def test_a_live_list_replaces_what_it_covers() -> None:
    """Of one owner the objects that are not in it are gone; others, and what is newer, stay."""
    jobs = Cache().jobs
    for document in (job("a", uid="j1"), job("b", uid="j2"), job("new", uid="j3", version="12")):
        jobs.put(document)
    jobs.put(job("other", uid="j4", owner_uid="u2"))
    jobs.replace(OWNER, "u1", [job("b", uid="j2", version="2"), job("c", uid="j5", version="3")], "10")
    assert [view.name for view in jobs.of(OWNER, "u1")] == ["b", "c", "new"]
    jobs.replace(OWNER, "u1", [], "13", covers=lambda view: view.name == "c")
    assert [view.name for view in jobs.of(OWNER, "u1")] == ["b", "new"]
    assert [view.name for view in jobs.of(OWNER, "u2")] == ["other"]


def test_a_live_list_finds_what_a_watch_with_a_selector_reported_as_deleted() -> None:
    """And gives it back to its owner, whatever its labels say."""
    pods = Cache().pods
    pods.put(pod(version="5"))
    pods.remove(pod(version="7"))
    bare = pod(version="7")
    del bare["metadata"]["labels"]
    pods.replace(OWNER, "u1", [bare], "9")
    assert [view.name for view in pods.of(OWNER, "u1")] == ["pod"]


def test_an_object_that_was_not_found_may_have_a_successor_already() -> None:
    """The watch reported it before the answer to a request to the earlier one was read."""
    jobs = Cache().jobs
    jobs.put(job(uid="new", version="9"))
    jobs.mark_deleted(Key("team", "job"), "old")
    assert [view.uid for view in jobs] == ["new"]


def test_what_the_server_does_not_find_is_deleted() -> None:
    """A later object by that name is another one, or a newer version."""
    jobs = Cache().jobs
    jobs.put(job(version="5"))
    jobs.mark_deleted(Key("team", "job"), "j1")
    jobs.mark_deleted(Key("team", "never there"), "")
    assert jobs.put(job(version="5")) is None
    assert jobs.put(job(uid="j2", version="6")) == OWNER


@pytest.mark.parametrize("how", ["watch", "list", "404", "successor"])
def test_a_job_that_is_gone_leaves_a_tombstone(how: str) -> None:
    """Its last state, until somebody has acknowledged it."""
    jobs = Cache().jobs
    jobs.put(job(version="9"))
    if how == "watch":
        jobs.remove(job(version="10"))
    elif how == "list":
        jobs.prune("10", set())
    elif how == "404":
        jobs.mark_deleted(Key("team", "job"), "j1")
    else:
        jobs.put(job(uid="j2", version="10"))
    assert [view.uid for view in jobs.tombstones(OWNER, "u1")] == ["j1"]
    assert jobs.tombstones(OWNER, "u2") == ()
    jobs.acknowledge(OWNER, ["another"])
    assert len(jobs.tombstones(OWNER, "u1")) == 1
    jobs.acknowledge(OWNER, ["j1"])
    assert jobs.tombstones(OWNER, "u1") == ()


def test_an_object_that_is_back_has_no_tombstone() -> None:
    """Its labels were put back."""
    jobs = Cache().jobs
    jobs.put(job(version="5"))
    jobs.remove(job(version="7"))
    jobs.put(job(version="8"))
    assert jobs.tombstones(OWNER, "u1") == ()


def test_only_pods_that_ended_leave_a_tombstone() -> None:
    """What a pod proved, or why it failed, is not lost; one that was deleted while it waited says nothing."""
    pods = Cache().pods
    for uid, phase in (("p1", "Pending"), ("p2", "Failed")):
        pods.put(pod(uid, uid=uid))
        pods.remove(pod(uid, uid=uid, version="2", phase=phase))
    assert [view.uid for view in pods.tombstones(OWNER, "u1")] == ["p2"]
    pods.acknowledge(OWNER)
    assert pods.tombstones(OWNER, "u1") == ()


def test_of_what_was_deleted_only_so_much_is_remembered() -> None:
    """A cluster deletes pods for as long as it lives."""
    jobs = Cache().jobs
    for number in range(5001):
        jobs.remove(job(uid=f"j{number}", version="7"))
    assert jobs.put(job(uid="j5000", version="6")) is None
    assert jobs.put(job(uid="j0", version="6")) == OWNER, "forgotten"


def test_only_so_many_tombstones_are_kept() -> None:
    """Nobody acknowledges those of a run that is looked after no more: those of the runs without news go first."""
    jobs = Cache().jobs
    jobs.put(job("again", uid="again"))
    jobs.remove(job("again", uid="again"))
    for number in range(MOST):
        document = job(f"job-{number}", uid=f"j{number}")
        document["metadata"]["ownerReferences"][0]["name"] = f"tone-{number}"
        jobs.put(document)
        jobs.remove(document)
        if number == 0:
            jobs.put(job("anew", uid="anew"))
            jobs.remove(job("anew", uid="anew"))
    assert jobs.tombstones(Key("team", "tone-0"), "u1") == ()
    assert len(jobs.tombstones(OWNER, "u1")) == 1
    assert len(jobs.tombstones(Key("team", f"tone-{MOST - 1}"), "u1")) == 1
    for key in jobs.owners_of_tombstones():
        jobs.acknowledge(key)
    assert (jobs.owners_of_tombstones(), jobs.has_tombstones(OWNER)) == ((), False)


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
    metadata = {"namespace": "team", "name": "tone", "uid": "u1", "resourceVersion": "3", "labels": {QUEUE_LABEL: "q"}}
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
