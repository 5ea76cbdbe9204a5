"""What the operator knows of the cluster: stores fed by watches, lists, live reads and the operator's own writes."""

import dataclasses
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar, cast

import orjson

from lora_operator.cluster.tombstones import Tombstones
from lora_operator.views import names
from lora_operator.views.conditions import is_finished
from lora_operator.views.observe import (
    owner_of,
    parse_finetune,
    parse_job,
    parse_pod,
    parse_workload,
    pod_template_labels,
)
from lora_operator.views.pods import has_ended

if TYPE_CHECKING:
    from lora_operator.views.model import FineTune, JobView, PodView, WorkloadView

T = TypeVar("T")
Owner = tuple[str, str]
"""Name and uid of a LoRAFineTune."""
OwnerOf = Callable[[Mapping[str, Any]], Owner]


class Key(NamedTuple):
    """A LoRAFineTune's place in the cluster; what the work queue holds."""

    namespace: str
    name: str


def key_of(finetune: "FineTune") -> Key:
    """The key under which a resource is cached and queued."""
    return Key(finetune.namespace, finetune.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(Generic[T]):
    """One object: its place, its LoRAFineTune and the uid of that, its own uid, its version and the view of it.

    The view is there itself or packed.
    """

    place: Key
    owner: Key
    owner_uid: str
    uid: str
    version: str
    view: T | None
    packed: bytes = b""


class Packing(Protocol[T]):
    """How views that are seldom looked at are kept small."""

    def pack(self, view: T) -> bytes:
        """The view as bytes; empty for one that is not to be packed."""

    def unpack(self, packed: bytes) -> T:
        """The view again."""


# Of each kind. A list that takes a minute may be overtaken by as many deletions.
_MOST_DELETIONS = 5000


class Store(Generic[T]):
    """All objects of one kind, by place and by owner.

    An older version never replaces a newer one, nor brings back what was deleted: an answer to a request of ours, or a
    list that takes seconds, may be overtaken by the watch. A read that is not older than the deletion knows better: to
    a watch with a label selector, an object that has lost its label is deleted.
    """

    def __init__(
        self,
        parse: Callable[[Mapping[str, Any]], T],
        owner_of: OwnerOf,
        packing: Packing[T] | None = None,
        keeps: Callable[[T], bool] = lambda _: False,
    ) -> None:
        """`owner_of` gives no name for an object that is nobody's here: it is not kept.

        Where `keeps` is true of its last state, a deleted object leaves a tombstone until somebody has acknowledged it.
        """
        self._parse = parse
        self._owner_of = owner_of
        self._packing = packing
        self._keeps = keeps
        self._entries: dict[Key, Entry[T]] = {}
        self._by_owner: dict[Key, tuple[Key, ...]] = {}  # a set of one or two is four times as large
        self._deletions: dict[str, str] = {}  # by uid the version as of which it was known to be gone
        self._tombstones: Tombstones[T] = Tombstones()
        self.version = ""
        """The newest resource version seen of this kind, in an object, a list or a bookmark."""

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        """All objects of this moment; another thread may go through them."""
        return (self._view(entry) for entry in list(self._entries.values()))

    def places(self) -> tuple[Key, ...]:
        """Where there is an object at this moment."""
        return tuple(self._entries)

    def get(self, place: Key) -> T | None:
        """The object at a place."""
        entry = self._entries.get(place)
        return self._view(entry) if entry else None

    def uid_at(self, place: Key) -> str:
        """The uid of the object at a place; empty where there is none."""
        entry = self._entries.get(place)
        return entry.uid if entry else ""

    def is_packed(self, place: Key) -> bool:
        """Whether the object at a place is one that is seldom looked at."""
        entry = self._entries.get(place)
        return entry is not None and bool(entry.packed)

    def of(self, owner: Key, owner_uid: str) -> tuple[T, ...]:
        """The objects of a LoRAFineTune, by name; not those of an earlier one that had the same name."""
        return tuple(self._view(entry) for entry in self._owned_by(owner) if entry.owner_uid == owner_uid)

    def tombstones(self, owner: Key, owner_uid: str) -> tuple[T, ...]:
        """The last states of a LoRAFineTune's objects that are gone, as far as nobody has acknowledged them."""
        return self._tombstones.of(owner, owner_uid)

    def has_tombstones(self, owner: Key) -> bool:
        """Whether there are any of this name, whichever uid it had."""
        return owner in self._tombstones

    def owners_of_tombstones(self) -> tuple[Key, ...]:
        """Whose objects left them; they need not exist."""
        return tuple(Key(*owner) for owner in self._tombstones.owners())

    def acknowledge(self, owner: Key, uids: Iterable[str] | None = None) -> bool:
        """Drop the tombstones of these objects, or all that the owner has; whether there were any."""
        return self._tombstones.acknowledge(owner, uids)

    def saw(self, version: str) -> None:
        """A list or a bookmark is as of this version."""
        if _is_newer(version, self.version):
            self.version = version

    def put(
        self, document: Mapping[str, Any], owner: Owner | None = None, *, as_of: str = "", listed: bool = False
    ) -> Key | None:
        """Take in an object; return its owner if that was news, None if this version or a newer one is known.

        `owner` is the LoRAFineTune's name and uid where a live read has found out whose the object is, whatever its
        labels say. Otherwise an object stays with the owner it had first, whatever becomes of its labels. `as_of` is
        the version of the list that held the object, or for a read by name the store's `version` before it: what was
        deleted by then is back. `listed`: it was in such a list.
        """
        # Compared before it is parsed: each list and each write of ours is repeated by a watch.
        metadata = document["metadata"]
        uid, version = str(metadata.get("uid", "")), _version(metadata)
        self.saw(version)
        place = _place(document)
        moved = owner is not None and self._move(place, uid, owner)
        known = self._entries.get(place)
        if known is not None and not _replaces(version, known.version, as_of if listed else ""):
            return known.owner if moved else None
        if self._is_deleted(uid, version, as_of):
            return None
        name, owner_uid = owner or self._owner_of(document)
        if known is not None and known.uid != uid:
            self._drop(known, self._view(known), version)
        elif known is not None:
            name, owner_uid = known.owner.name, known.owner_uid
        if not name:
            return known.owner if known is not None else None
        entry = self._entry(document, known.place if known is not None else place, name, owner_uid)
        self._insert(entry)
        return entry.owner

    def remove(self, document: Mapping[str, Any]) -> Key | None:
        """A watch reports an object as deleted; return its owner if it was known. A successor by its name stays."""
        metadata = document["metadata"]
        uid, version = str(metadata.get("uid", "")), _version(metadata)
        self.saw(version)
        known = self._entries.get(_place(document))
        if known is None or known.uid != uid:
            self._note_deletion(uid, version)
            return None
        if is_older(version, known.version):
            return None  # it had lost its label for a while, and a watch that is behind reports that
        self._drop(known, self._parse(document), version)
        return known.owner

    def mark_deleted(self, place: Key, uid: str) -> None:
        """The API server says that the object with this uid is not at this place any more."""
        known = self._entries.get(place)
        if known is not None and known.uid == uid:
            self._drop(known, self._view(known), self.version)

    def prune(self, version: str, listed: Set[str], namespace: str | None = None) -> set[Key]:
        """Drop what a list as of `version`, of one namespace or of all, does not hold by its uid, unless it is newer.

        Returns the owners with news.
        """
        self.saw(version)
        within = [e for e in self._entries.values() if namespace is None or e.place.namespace == namespace]
        return self._prune(within, version, listed)

    def keep_only(
        self, owner: Key, owner_uid: str, listed: Set[str], version: str, covers: Callable[[T], bool] = lambda _: True
    ) -> None:
        """Drop the owner's objects for which `covers` holds and which a live list as of `version` does not hold.

        `listed` are the uids of that list. What is newer than the list stays.
        """
        self.saw(version)
        owned = [entry for entry in self._owned_by(owner) if entry.owner_uid == owner_uid]
        self._prune([entry for entry in owned if covers(self._view(entry))], version, listed)

    def _prune(self, entries: Iterable[Entry[T]], version: str, listed: Set[str]) -> set[Key]:
        gone = [entry for entry in entries if entry.uid not in listed and not _is_newer(entry.version, version)]
        for entry in gone:
            self._drop(entry, self._view(entry), version)
        return {entry.owner for entry in gone}

    def _owned_by(self, owner: Key) -> list[Entry[T]]:
        return [self._entries[place] for place in sorted(self._by_owner.get(owner, ()))]

    def _entry(self, document: Mapping[str, Any], place: Key, owner_name: str, owner_uid: str) -> Entry[T]:
        metadata = document["metadata"]
        view = self._parse(document)
        packed = self._packing.pack(view) if self._packing else b""
        return Entry(
            place=place,
            owner=place if owner_name == place.name else Key(place.namespace, sys.intern(owner_name)),
            owner_uid=sys.intern(owner_uid),
            uid=str(metadata.get("uid", "")),
            version=_version(metadata),
            view=None if packed else view,
            packed=packed,
        )

    def _view(self, entry: Entry[T]) -> T:
        if self._packing is not None and entry.packed:
            return self._packing.unpack(entry.packed)
        return cast("T", entry.view)

    def _move(self, place: Key, uid: str, owner: Owner) -> bool:
        """Give an object that is known to its true owner, which the version cannot show; whether it had another."""
        known = self._entries.get(place)
        if known is None or known.uid != uid or (known.owner.name, known.owner_uid) == owner:
            return False
        self._insert(dataclasses.replace(known, owner=Key(place.namespace, owner[0]), owner_uid=owner[1]))
        return True

    def _insert(self, entry: Entry[T]) -> None:
        self._deletions.pop(entry.uid, None)
        self.acknowledge(entry.owner, (entry.uid,))
        before = self._entries.get(entry.place)
        if before is not None and before.owner != entry.owner:
            self._delete(before)
        if before is None or before.owner != entry.owner:
            self._by_owner[entry.owner] = (*self._by_owner.get(entry.owner, ()), entry.place)
        self._entries[entry.place] = entry

    def _delete(self, entry: Entry[T]) -> None:
        del self._entries[entry.place]
        places = self._by_owner[entry.owner]
        if len(places) == 1:
            del self._by_owner[entry.owner]
        else:
            at = places.index(entry.place)  # a list shows the oldest gone first, so that thousands are soon found
            self._by_owner[entry.owner] = places[:at] + places[at + 1 :]

    def _drop(self, entry: Entry[T], view: T, as_of: str) -> None:
        """The object is gone as of a version, and `view` is its last state."""
        self._delete(entry)
        self._note_deletion(entry.uid, as_of)
        if self._keeps(view):
            self._tombstones.add(entry.owner, entry.owner_uid, entry.uid, view)

    def _note_deletion(self, uid: str, as_of: str) -> None:
        self._deletions.pop(uid, None)
        self._deletions[uid] = as_of
        while len(self._deletions) > _MOST_DELETIONS:
            del self._deletions[next(iter(self._deletions))]

    def _is_deleted(self, uid: str, version: str, as_of: str) -> bool:
        gone = self._deletions.get(uid)
        if gone is None or _is_newer(version, gone):
            return False
        return not as_of or _is_newer(gone, as_of)


class Cache:
    """LoRAFineTunes, the Jobs and Pods that carry our label, and Kueue's Workloads of those Jobs."""

    def __init__(self) -> None:
        self.finetunes: Store[FineTune] = Store(parse_finetune, _itself, _PackedWhenFinished())
        # What a Job that is gone looked like, and why a pod ended and what it proved, is not lost.
        self.jobs: Store[JobView] = Store(parse_job, owner_of, keeps=lambda _: True)
        self.pods: Store[PodView] = Store(parse_pod, _by_labels, keeps=has_ended)
        self.workloads: Store[WorkloadView] = Store(parse_workload, _by_pod_template)


class _PackedWhenFinished:
    """A finished run is seldom looked at: so it takes a tenth of the memory, and some 50 us to be read again."""

    def pack(self, view: "FineTune") -> bytes:
        if not is_finished(view):
            return b""
        try:
            return zlib.compress(orjson.dumps(view.manifest), level=1)
        except TypeError:
            return b""  # a number beyond 64 bits, which a foreign writer left

    def unpack(self, packed: bytes) -> "FineTune":
        return parse_finetune(orjson.loads(zlib.decompress(packed)))


def _place(document: Mapping[str, Any]) -> Key:
    metadata = document["metadata"]
    return Key(sys.intern(str(metadata.get("namespace", ""))), str(metadata["name"]))


def _version(metadata: Mapping[str, Any]) -> str:
    return str(metadata.get("resourceVersion", ""))


def _itself(document: Mapping[str, Any]) -> Owner:
    metadata = document["metadata"]
    return str(metadata["name"]), str(metadata.get("uid", ""))


def _by_labels(document: Mapping[str, Any]) -> Owner:
    labels = document["metadata"].get("labels") or {}
    return str(labels.get(names.NAME_LABEL, "")), str(labels.get(names.UID_LABEL, ""))


def _by_pod_template(document: Mapping[str, Any]) -> Owner:
    """A Workload has none of its Job's labels, but its pod template, which has them; somebody else's has no owner."""
    labels = pod_template_labels(document)
    ours = labels.get(names.MANAGED_BY_LABEL) == names.MANAGED_BY
    return (str(labels.get(names.NAME_LABEL, "")), str(labels.get(names.UID_LABEL, ""))) if ours else ("", "")


def _is_newer(version: str, than: str) -> bool:
    """Resource versions of one kind grow; a server whose versions are no numbers is believed in the order it speaks."""
    if version.isdecimal() and than.isdecimal():
        return int(version) > int(than)
    return version != than


def _replaces(version: str, known: str, listed_as_of: str) -> bool:
    """Whether an object in this version is news.

    What a list shows in an older version, though it is not older than what is known, was undone: etcd was restored.
    """
    undone = bool(listed_as_of) and version != known and not is_older(listed_as_of, known)
    return undone or _is_newer(version, known)


def is_older(version: str, than: str) -> bool:
    """Whether a resource version is for certain that of an earlier moment."""
    return version.isdecimal() and than.isdecimal() and int(version) < int(than)
