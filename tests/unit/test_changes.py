"""Changes of Jobs that are refused or undone, and when each is sent again."""

from lora_operator.cluster.cache import Key
from lora_operator.running.changes import Changes
from lora_operator.views.model import Patch, Rejection

KEY = Key("team-a", "tone")
DEADLINE = Patch(name="tone-1", body={"spec": {"activeDeadlineSeconds": None}})
SUSPEND = Patch(name="tone-1", body={"spec": {"suspend": True}})
DENIED = Rejection(kind="Job", name="tone-1", code=403, reason="Forbidden", message="no")


class World:
    """The time, and the Job that has the name."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.uid = "job-1"
        self.changes = Changes(lambda: self.now_s, uid_of=lambda _key, _patch: self.uid, first_s=60, longest_s=300)


def test_a_change_that_lasts_leaves_nothing_to_wait_for() -> None:
    """It is not undone before it is wanted again."""
    world = World()
    world.changes.sent(KEY, DEADLINE, None)
    assert (world.changes.undone(KEY), world.changes.due_in_s(KEY)) == ((), None)


def test_a_change_that_is_wanted_again_was_undone_and_waits_twice_as_long_each_time() -> None:
    """Up to the longest pause."""
    world = World()
    for pause_s in (60, 120, 240, 300, 300):
        world.changes.sent(KEY, DEADLINE, None)
        assert world.changes.held_back(KEY, [DEADLINE]) == (True, None)
        assert world.changes.undone(KEY) == (DEADLINE,)
        assert world.changes.due_in_s(KEY) == pause_s
        world.now_s += pause_s
        assert world.changes.held_back(KEY, [DEADLINE]) == (False, None)
        assert (world.changes.undone(KEY), world.changes.due_in_s(KEY)) == ((), None)


def test_one_that_was_undone_long_ago_begins_anew() -> None:
    """Somebody edits the Job by hand, once a day."""
    world = World()
    world.changes.sent(KEY, DEADLINE, None)
    world.now_s += 86_400
    world.changes.sent(KEY, DEADLINE, None)
    world.changes.held_back(KEY, [DEADLINE])
    assert world.changes.due_in_s(KEY) == 60


def test_a_refusal_is_kept_and_asked_for_again_after_the_same_time() -> None:
    """Who refuses may be away, or repaired, at any moment."""
    world = World()
    for _ in range(3):
        world.changes.sent(KEY, DEADLINE, DENIED)
        assert world.changes.held_back(KEY, [DEADLINE]) == (True, DENIED)
        assert (world.changes.undone(KEY), world.changes.due_in_s(KEY)) == ((), 60)
        assert world.changes.was_refused(KEY, DEADLINE)
        assert not world.changes.was_refused(KEY, SUSPEND)
        world.now_s += 60


def test_other_changes_other_objects_and_other_runs_wait_for_nothing() -> None:
    """Nor does a run by the same name, once the last one is forgotten."""
    world = World()
    world.changes.sent(KEY, DEADLINE, None)
    world.changes.held_back(KEY, [DEADLINE])
    assert world.changes.held_back(KEY, [SUSPEND]) == (False, None)
    assert world.changes.held_back(Key("team-b", "tone"), [DEADLINE]) == (False, None)
    world.uid = "job-2"
    assert world.changes.held_back(KEY, [DEADLINE]) == (False, None)
    assert world.changes.undone(KEY) == ()
    world.uid = "job-1"
    world.changes.forget(KEY)
    assert world.changes.held_back(KEY, [DEADLINE]) == (False, None)


def test_a_refusal_outlasts_another_change_of_the_same_object() -> None:
    """A suspension that is taken says nothing of the rest, which is not sent at every look."""
    world = World()
    world.changes.sent(KEY, DEADLINE, DENIED)
    world.changes.sent(KEY, SUSPEND, None)
    assert world.changes.refused(KEY) == (DEADLINE,)
    assert world.changes.held_back(KEY, [DEADLINE]) == (True, DENIED)
    world.now_s += 60
    assert world.changes.refused(KEY) == ()


def test_a_suspension_that_is_refused_alone_leaves_the_refusal_of_the_whole() -> None:
    """Both would be sent at every look."""
    world = World()
    whole = Patch(name="tone-1", body={"metadata": {"labels": {"a": "b"}, "uid": "job-1"}, "spec": {"suspend": True}})
    for change in (whole, SUSPEND):
        world.changes.sent(KEY, change, DENIED)
    assert world.changes.refused(KEY) == (whole, SUSPEND)
    assert world.changes.held_back(KEY, [whole]) == (True, DENIED)
