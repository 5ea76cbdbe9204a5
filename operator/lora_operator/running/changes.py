"""Changes of Jobs that the cluster refused or undid: each is tried again after a while, and not at every look."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lora_operator.cluster.cache import Key
from lora_operator.views.model import Patch, Rejection, soonest

# Kind and name of an object, and the fields that a change is about.
_Place = tuple[str, str, frozenset[str]]


@dataclass(slots=True, kw_only=True)
class _Change:
    """The last change that was sent to an object, and until when the same one is not sent again."""

    patch: Patch
    uid: str
    pause_s: float
    until_s: float
    refusal: Rejection | None
    undone: bool = False


class Changes:
    """Remembers what was last sent to each Job and Workload of a run, and what it refused; after a restart it is sent
    once more.

    A policy that denies a change is asked again after `first_s`. One that undoes it is so after twice as long each
    time, up to `longest_s`: every try costs the API server reads, too. Another change is sent at once, and so is one
    to another object by the name, which `uid_of` tells apart.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        uid_of: Callable[[Key, Patch], str],
        first_s: float,
        longest_s: float,
    ) -> None:
        self._clock = clock
        self._uid_of = uid_of
        self._first_s = first_s
        self._longest_s = max(first_s, longest_s)
        self._sent: dict[Key, dict[_Place, _Change]] = {}

    def sent(self, key: Key, patch: Patch, refusal: Rejection | None) -> None:
        """The API server has taken a change, or refused it."""
        now_s, before = self._clock(), self._last(key, patch)
        pause_s = self._first_s
        if before is not None and refusal is None and now_s < before.until_s + self._longest_s:
            pause_s = min(2 * before.pause_s, self._longest_s)
        changes = self._sent.setdefault(key, {})
        if refusal is None:  # of those that were taken the last alone is what the object is to keep
            for place in [place for place, c in changes.items() if place[:2] == _place(patch)[:2] and not c.refusal]:
                del changes[place]
        changes[_place(patch)] = _Change(
            patch=patch,
            uid=self._uid_of(key, patch),
            pause_s=pause_s,
            until_s=now_s + pause_s,
            refusal=refusal,
        )

    def held_back(self, key: Key, patches: Iterable[Patch]) -> tuple[bool, Rejection | None]:
        """Whether some of these were sent a while ago and are not to be sent again yet, and how one was refused.

        What was taken and is wanted again was undone.
        """
        now_s = self._clock()
        held = [change for patch in patches if (change := self._last(key, patch)) and now_s < change.until_s]
        for change in held:
            change.undone = change.refusal is None
        return bool(held), next((change.refusal for change in held if change.refusal is not None), None)

    def undone(self, key: Key) -> tuple[Patch, ...]:
        """The changes that somebody undid and that are not to be sent again yet."""
        now_s = self._clock()
        changes = self._sent.get(key, {}).values()
        return tuple(c.patch for c in changes if c.undone and now_s < c.until_s and self._last(key, c.patch))

    def refused(self, key: Key) -> tuple[Patch, ...]:
        """The changes that were refused and that are not to be sent again yet."""
        now_s = self._clock()
        changes = self._sent.get(key, {}).values()
        return tuple(c.patch for c in changes if c.refusal and now_s < c.until_s and self._last(key, c.patch))

    def was_refused(self, key: Key, patch: Patch) -> bool:
        """Whether the same was refused when it was sent last."""
        last = self._last(key, patch)
        return last is not None and last.refusal is not None

    def due_in_s(self, key: Key) -> float | None:
        """Seconds until one of them is to be sent again; None where there is none."""
        now_s = self._clock()
        changes = self._sent.get(key, {}).values()
        return soonest(*(c.until_s - now_s for c in changes if (c.undone or c.refusal) and now_s < c.until_s))

    def forget(self, key: Key) -> None:
        """The run is over, or gone."""
        self._sent.pop(key, None)

    def _last(self, key: Key, patch: Patch) -> _Change | None:
        change = self._sent.get(key, {}).get(_place(patch))
        same = change is not None and change.patch == patch and change.uid == self._uid_of(key, patch)
        return change if same else None


def _place(patch: Patch) -> _Place:
    return patch.kind, patch.name, frozenset((*patch.body.get("metadata", ()), *patch.body.get("spec", ())))
