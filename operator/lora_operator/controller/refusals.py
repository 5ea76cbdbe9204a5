"""What the API server has refused lately: it is an input of the next passes, and is not asked for again for a while."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lora_operator.cluster.store import Key
from lora_operator.model.objects import Patch, Refusal, soonest

UNDONE = "Undone"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    refusal: Refusal
    until_s: float


class Refusals:
    """By run what was refused, and until when; and the changes that were taken, as somebody may undo them.

    A change that is wanted again soon after it was taken was undone, as by a mutating policy: it counts as refused.
    """

    def __init__(self, clock: Callable[[], float], *, pause_s: float, long_pause_s: float) -> None:
        """`pause_s` is for what may change at any moment, such as a quota; `long_pause_s` for what people must mend."""
        self._clock = clock
        self._pause_s = pause_s
        self._long_pause_s = max(pause_s, long_pause_s)
        self._refused: dict[Key, list[_Entry]] = {}
        self._taken: dict[Key, list[tuple[Patch, float]]] = {}

    def standing(self, key: Key) -> tuple[Refusal, ...]:
        """What is not to be tried again yet."""
        return tuple(entry.refusal for entry in self._standing(key))

    def due_in_s(self, key: Key) -> float | None:
        """Seconds until something is to be tried again; None where there is nothing."""
        return soonest(*(entry.until_s - self._clock() for entry in self._standing(key)))

    def refused(self, key: Key, refusal: Refusal) -> None:
        """The API server did not take it."""
        patient = refusal.is_name_conflict or refusal.reason == UNDONE
        until_s = self._clock() + (self._long_pause_s if patient else self._pause_s)
        self._refused[key] = [*self._standing(key), _Entry(refusal=refusal, until_s=until_s)]

    def note_undone(self, key: Key, wanted: Iterable[Patch]) -> bool:
        """Whether some of these changes were taken a while ago, and undone since: they count as refused now."""
        now_s = self._clock()
        taken = [patch for patch, until_s in self._taken.get(key, ()) if now_s < until_s]
        undone = [patch for patch in wanted if patch in taken]
        for patch in undone:
            fields = ", ".join(sorted({*patch.body.get("spec", ()), *patch.body["metadata"]} - {"uid"}))
            message = f"it does not keep {fields}: find what undoes the operator's changes, such as a mutating policy"
            self.refused(
                key, Refusal(kind=patch.kind, name=patch.name, code=0, reason=UNDONE, message=message, patch=patch)
            )
        return bool(undone)

    def taken(self, key: Key, patch: Patch) -> None:
        """The API server took a change."""
        others = [taken for taken in self._taken.get(key, ()) if taken[0].name != patch.name]
        # Of an object the last change alone is what it is to keep: a user may wish this and that in a minute.
        self._taken[key] = [*others, (patch, self._clock() + self._long_pause_s)]

    def forget(self, key: Key) -> None:
        """The run is gone."""
        self._refused.pop(key, None)
        self._taken.pop(key, None)

    def _standing(self, key: Key) -> list[_Entry]:
        now_s = self._clock()
        return [entry for entry in self._refused.get(key, ()) if now_s < entry.until_s]
