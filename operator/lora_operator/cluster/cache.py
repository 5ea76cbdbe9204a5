"""What the operator knows of the cluster: plain dictionaries, fed by watches, by resyncs and by its own writes."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar, cast

import orjson

from lora_operator.views import names
from lora_operator.views.conditions import is_finished
from lora_operator.views.observe import parse_finetune, parse_job, parse_pod, parse_workload, pod_template_labels
from lora_operator.views.pods import has_ended

if TYPE_CHECKING:
    from lora_operator.views.model import FineTune, JobView, PodView, WorkloadView

T = TypeVar("T")
OwnerOf = Callable[[Mapping[str, Any]], tuple[str, str]]
"""Name and uid of the LoRAFineTune that a document belongs to."""


class Key(NamedTuple):
    """A LoRAFineTune's place in the cluster; what the work queue holds."""

    namespace: str
    name: str


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a list covers: the objects of one namespace, of one LoRAFineTune by its uid, or, without either, all."""

    namespace: str | None = None
    owner: Key | None = None
    owner_uid: str | None = None

    def covers(self, entry: "Entry[Any]") -> bool:
        """Whether the list would have held it."""
        in_namespace = self.namespace is None or entry.place.namespace == self.namespace
        return in_namespace and (self.owner_uid is None or entry.owner_uid == self.owner_uid)


_MOST_REMOVED = 1000


class _Removal(NamedTuple):
    """As of which version an object was known to be gone, and which removal of its store that was."""

    version: str
    number: int


class Store(Generic[T]):
    """All objects of one kind, by place and by owner.

    An older version never replaces a newer one, nor brings back what was removed: an answer to a request of ours, or a
    list that takes seconds, may be overtaken by the watch. Of what was removed, the last ones are remembered. A list
    that began later knows better: to a watch with a selector, an object that has lost a label is deleted.
    """

    def __init__(
        self,
        parse: Callable[[Mapping[str, Any]], T],
        owner_of: OwnerOf,
        packing: Packing[T] | None = None,
        outlives: Callable[[T], bool] = lambda _: False,
    ) -> None:
        """`owner_of` gives no name for an object that is nobody's here: it is not kept.

        Where `outlives` is true of its last state, an object is shown as departed until somebody has read of it.
        """
        self._outlives = outlives
        self._departed: dict[Key, dict[str, tuple[str, T]]] = {}
        self._parse = parse
        self._packing = packing
        self._owner_of = owner_of
        self._entries: dict[Key, Entry[T]] = {}
        self._by_owner: dict[Key, set[Key]] = {}
        self._removed: dict[str, _Removal] = {}
        self.removals = 0
        """How often something was removed."""
        self._listings = 0

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

    def is_packed(self, place: Key) -> bool:
        """Whether the object at a place is one that is seldom looked at."""
        entry = self._entries.get(place)
        return entry is not None and bool(entry.packed)

    def of(self, owner: Key, owner_uid: str) -> tuple[T, ...]:
        """The objects of a LoRAFineTune, by name; not those of an earlier one that had the same name."""
        return tuple(self._view(entry) for entry in self._owned_by(owner) if entry.owner_uid == owner_uid)

    def put(self, document: Mapping[str, Any]) -> Key | None:
        """Take in an object; return its owner if that was news, None if this version or a newer one is known."""
        # Compared before it is read: each list and each write of ours is told again by a watch.
        metadata = document["metadata"]
        known = self._entries.get(_place(document))
        former = known or self._removed.get(str(metadata.get("uid", "")))
        if former is not None and not _is_newer(_version(metadata), former.version):
            return None
        if not self._owner_of(document)[0]:
            if known is not None:  # it has lost its labels, or is another object
                self._delete(known)
            return known.owner if known is not None else None
        entry = self._entry(document)
        self._insert(entry)
        return entry.owner

    def remove(self, document: Mapping[str, Any]) -> Key | None:
        """Forget an object; return its owner if it was known. Another object by the same name stays."""
        metadata = document["metadata"]
        uid = str(metadata.get("uid", ""))
        self._bury(uid, _version(metadata))
        known = self._entries.get(_place(document))
        if known is None or known.uid != uid:
            return None
        self._delete(known)
        self._depart(known, self._parse(document))
        return known.owner

    def departed(self, owner: Key, owner_uid: str) -> tuple[T, ...]:
        """The last states of a LoRAFineTune's objects that are gone and that nobody has read of yet."""
        return tuple(view for uid, view in self._departed.get(owner, {}).values() if uid == owner_uid)

    def let_go(self, owner: Key, uids: Iterable[str] | None = None) -> None:
        """Of these somebody has read, or of all that the owner had."""
        departed = self._departed.get(owner)
        if departed is None:
            return
        for uid in list(departed) if uids is None else uids:
            departed.pop(uid, None)
        if not departed:
            del self._departed[owner]

    def uid_at(self, place: Key) -> str:
        """The uid of the object at a place; empty where there is none."""
        entry = self._entries.get(place)
        return entry.uid if entry else ""

    def vacate(self, place: Key, uid: str) -> None:
        """Forget the object with this uid, of which the server says that it is not at this place."""
        known = self._entries.get(place)
        if known is not None and known.uid == uid:
            self._bury(known.uid, known.version)
            self._delete(known)

    @contextmanager
    def listing(self) -> Iterator["Listing[T]"]:
        """Around a list request: whatever is removed meanwhile is remembered, and does not come back with it."""
        self._listings += 1
        try:
            yield Listing(self, self.removals)
        finally:
            self._listings -= 1

    def dig_up(self, uid: str, *, before: int, version: str = "") -> None:
        """Take a removal back, if it was among the first `before` and a read that began after those found the object.

        `version` is that of a list, which may be of a cache that is behind; what was read by name is of the moment.
        """
        removal = self._removed.get(uid)
        if removal is not None and removal.number <= before and not (version and _is_newer(removal.version, version)):
            del self._removed[uid]

    def prune(self, version: str, listed: set[str], scope: Scope) -> set[Key]:
        """Forget what a list as of `version` does not hold, unless it is newer; return the owners with news."""
        entries = self._entries.values() if scope.owner is None else self._owned_by(scope.owner)
        gone = [
            entry
            for entry in entries
            if entry.uid not in listed and not _is_newer(entry.version, version) and scope.covers(entry)
        ]
        for entry in gone:
            self._bury(entry.uid, version)
            self._delete(entry)
            self._depart(entry, self._view(entry))
        return {entry.owner for entry in gone}

    def _owned_by(self, owner: Key) -> list[Entry[T]]:
        return [self._entries[place] for place in sorted(self._by_owner.get(owner, ()))]

    def _entry(self, document: Mapping[str, Any]) -> Entry[T]:
        metadata = document["metadata"]
        place = _place(document)
        owner_name, owner_uid = self._owner_of(document)
        view = self._parse(document)
        packed = self._packing.pack(view) if self._packing else b""
        return Entry(
            place=place,
            owner=Key(place.namespace, owner_name),
            owner_uid=owner_uid,
            uid=str(metadata.get("uid", "")),
            version=_version(metadata),
            view=None if packed else view,
            packed=packed,
        )

    def _view(self, entry: Entry[T]) -> T:
        if self._packing is not None and entry.packed:
            return self._packing.unpack(entry.packed)
        return cast("T", entry.view)

    def _insert(self, entry: Entry[T]) -> None:
        known = self._entries.get(entry.place)
        if known is not None:
            self._delete(known)
        self.let_go(entry.owner, (entry.uid,))
        self._entries[entry.place] = entry
        self._by_owner.setdefault(entry.owner, set()).add(entry.place)

    def _bury(self, uid: str, version: str) -> None:
        self.removals += 1
        self._removed.pop(uid, None)
        self._removed[uid] = _Removal(version, self.removals)
        while len(self._removed) > _MOST_REMOVED and not self._listings:
            del self._removed[next(iter(self._removed))]

    def _depart(self, entry: Entry[T], view: T) -> None:
        if not self._outlives(view):
            return
        self._departed.setdefault(entry.owner, {})[entry.uid] = (entry.owner_uid, view)
        if len(self._departed) > _MOST_REMOVED:
            del self._departed[next(iter(self._departed))]

    def _delete(self, entry: Entry[T]) -> None:
        del self._entries[entry.place]
        places = self._by_owner[entry.owner]
        places.discard(entry.place)
        if not places:
            del self._by_owner[entry.owner]


class Listing(Generic[T]):
    """A list on its way into a store, chunk by chunk."""

    def __init__(self, store: Store[T], removals: int) -> None:
        """`removals` are those before the request."""
        self._store = store
        self._removals = removals
        self._listed: set[str] = set()
        self.changed: set[Key] = set()
        """The owners with news so far: nobody else is told of those, even where the list comes to nothing."""

    def take(self, documents: Iterable[Mapping[str, Any]], version: str) -> None:
        """Take in a chunk of a list as of `version`."""
        for document in documents:
            uid = str(document["metadata"].get("uid", ""))
            self._listed.add(uid)
            self._store.dig_up(uid, before=self._removals, version=version)
            news = self._store.put(document)
            if news is not None:
                self.changed.add(news)

    def finish(self, version: str, scope: Scope) -> None:
        """The list of all that `scope` covers is complete."""
        self.changed |= self._store.prune(version, self._listed, scope)


class Cache:
    """LoRAFineTunes, the Jobs and Pods that carry our label, and Kueue's Workloads of those Jobs."""

    def __init__(self) -> None:
        self.finetunes: Store[FineTune] = Store(parse_finetune, _itself, _PackedWhenFinished())
        self.jobs: Store[JobView] = Store(parse_job, _by_labels)
        # A pod that is deleted ends, and may be gone a moment later: why it ended, and what it proved, is not lost.
        self.pods: Store[PodView] = Store(parse_pod, _by_labels, outlives=has_ended)
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
    return Key(str(metadata.get("namespace", "")), str(metadata["name"]))


def _version(metadata: Mapping[str, Any]) -> str:
    return str(metadata.get("resourceVersion", ""))


def _itself(document: Mapping[str, Any]) -> tuple[str, str]:
    metadata = document["metadata"]
    return str(metadata["name"]), str(metadata.get("uid", ""))


def _by_labels(document: Mapping[str, Any]) -> tuple[str, str]:
    labels = document["metadata"].get("labels") or {}
    return str(labels.get(names.NAME_LABEL, "")), str(labels.get(names.UID_LABEL, ""))


def _by_pod_template(document: Mapping[str, Any]) -> tuple[str, str]:
    """A Workload has none of its Job's labels, but its pod template, which has them; somebody else's has no owner."""
    labels = pod_template_labels(document)
    ours = labels.get(names.MANAGED_BY_LABEL) == names.MANAGED_BY
    return (str(labels.get(names.NAME_LABEL, "")), str(labels.get(names.UID_LABEL, ""))) if ours else ("", "")


def _is_newer(version: str, than: str) -> bool:
    """Resource versions of one kind grow; a server whose versions are no numbers is believed in the order it speaks."""
    if version.isdecimal() and than.isdecimal():
        return int(version) > int(than)
    return version != than
