"""The last states of objects that are gone, until somebody has acknowledged them; bounded by owner and overall.

A process that stands by acknowledges few of them: another one accounts for what is gone. The newest are kept, since
those may be what that one has not accounted for when it ends.
"""

from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")
Place = tuple[str, str]

# Of one owner no more than a status keeps uids of, so that a new leader can tell which of them are counted.
MOST_OF_ONE = 256
MOST = 4000


class Tombstones(Generic[T]):
    """By owner, and within it by the object's uid: the uid of the owner and the last state."""

    def __init__(self) -> None:
        self._of: dict[Place, dict[str, tuple[str, T]]] = {}  # the owner that had news last comes last
        self._number = 0

    def __len__(self) -> int:
        return self._number

    def __contains__(self, owner: object) -> bool:
        return owner in self._of

    def owners(self) -> tuple[Place, ...]:
        """Whose objects are gone, the one that had news last coming last."""
        return tuple(self._of)

    def add(self, owner: Place, owner_uid: str, uid: str, view: T) -> None:
        """An object is gone. Where there are too many, the owner's oldest goes, or that of the most quiet owner."""
        mine = self._of.pop(owner, {})
        self._of[owner] = mine
        self._number += uid not in mine
        mine.pop(uid, None)
        mine[uid] = (owner_uid, view)
        if len(mine) > MOST_OF_ONE:
            self.acknowledge(owner, (next(iter(mine)),))
        elif self._number > MOST:
            quiet = next(iter(self._of))
            self.acknowledge(quiet, (next(iter(self._of[quiet])),))

    def of(self, owner: Place, owner_uid: str) -> tuple[T, ...]:
        """The last states of the objects of this owner, not of an earlier one that had the same name."""
        return tuple(view for uid, view in self._of.get(owner, {}).values() if uid == owner_uid)

    def acknowledge(self, owner: Place, uids: Iterable[str] | None = None) -> bool:
        """Drop those of these objects, or all that the owner has; whether there were any."""
        mine = self._of.get(owner)
        if mine is None:
            return False
        dropped = [uid for uid in (list(mine) if uids is None else uids) if mine.pop(uid, None)]
        self._number -= len(dropped)
        if not mine:
            del self._of[owner]
        return bool(dropped)
