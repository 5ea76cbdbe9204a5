"""What the API server refused is not asked for again for a while."""

from tests.unit.builders import NAME, NAMESPACE

from lora_operator.cluster.store import Key
from lora_operator.controller.refusals import UNDONE, Refusals
from lora_operator.model.objects import Patch, Refusal

KEY = Key(NAMESPACE, NAME)
HOLD = Patch(name="job", body={"metadata": {"uid": "1"}, "spec": {"suspend": True}})
GO = Patch(name="job", body={"metadata": {"uid": "1"}, "spec": {"suspend": False}})
QUOTA = Refusal(kind="Job", name="job", code=403, reason="Forbidden", message="exceeded quota")
CONFLICT = Refusal(kind="Job", name="job", code=409, reason="AlreadyExists", message="somebody else's")
DENIED = Refusal(
    kind="Job", name="job", code=409, reason="Conflict", message='admission webhook "a.b" denied the request: no'
)


class Clock:
    """Goes on when it is told to."""

    now_s = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now_s


def make() -> tuple[Clock, Refusals]:
    """Quotas are tried again after a minute, what people must mend after five."""
    clock = Clock()
    return clock, Refusals(clock, pause_s=60, long_pause_s=300)


def test_a_refusal_stands_until_it_is_to_be_tried_again() -> None:
    """A name that is taken for longer than a quota, which others free at any moment, or what a webhook denies."""
    for refusal, pause_s in ((QUOTA, 60), (DENIED, 60), (CONFLICT, 300)):
        clock, refusals = make()
        refusals.refused(KEY, refusal)
        assert (refusals.standing(KEY), refusals.due_in_s(KEY)) == ((refusal,), pause_s)
        clock.now_s = pause_s
        assert (refusals.standing(KEY), refusals.due_in_s(KEY)) == ((), None)


def test_a_change_that_is_wanted_again_soon_after_it_was_taken_was_undone() -> None:
    """By a mutating policy, say: it is not fought over, and tried again later."""
    clock, refusals = make()
    assert not refusals.note_undone(KEY, [HOLD])
    refusals.taken(KEY, HOLD)
    assert refusals.note_undone(KEY, [HOLD])
    (refusal,) = refusals.standing(KEY)
    assert (refusal.reason, refusal.patch) == (UNDONE, HOLD)
    assert "does not keep suspend" in refusal.message
    clock.now_s = 300
    assert refusals.standing(KEY) == ()
    assert not refusals.note_undone(KEY, [HOLD])


def test_a_user_may_wish_this_and_that_in_a_minute() -> None:
    """Of an object the last change alone is what it is to keep."""
    _, refusals = make()
    for patch in (HOLD, GO, HOLD):
        assert not refusals.note_undone(KEY, [patch])
        refusals.taken(KEY, patch)


def test_a_run_that_is_gone_leaves_nothing_behind() -> None:
    """Another one by its name begins anew."""
    _, refusals = make()
    refusals.refused(KEY, QUOTA)
    refusals.taken(KEY, HOLD)
    refusals.forget(KEY)
    assert refusals.standing(KEY) == ()
    assert not refusals.note_undone(KEY, [HOLD])
