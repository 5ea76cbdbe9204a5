"""What the operator knows of the cluster: objects that watches, lists, live reads and its own writes bring.

One rule keeps them in order: an older version replaces nothing. A list runs beside the watch every few minutes, and
heals what that has lost; it drops only what is not newer than itself.
"""

import contextlib
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar, cast

import orjson

from lora_operator.model import names
from lora_operator.model.conditions import is_finished
from lora_operator.model.observe import (
    owner_of,
    parse_finetune,
    parse_job,
    parse_pod,
    parse_workload,
    pod_template_labels,
)
from lora_operator.model.pods import has_ended

if TYPE_CHECKING:
    from lora_operator.model.objects import FineTune, JobView, PodView, WorkloadView

T = TypeVar("T")
Owner = tuple[str, str]
"""Name and uid of a LoRAFineTune."""
OwnerOf = Callable[[Mapping[str, Any]], Owner]

# Last states of a run's objects that are gone, until its status is written.
_MOST_GONE = 64


class Key(NamedTuple):
    """A LoRAFineTune's place in the cluster; what the work queue holds."""

    namespace: str
    name: str


def key_of(finetune: "FineTune") -> Key:
    """The key under which a resource is stored and queued."""
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


class Store(Generic[T]):
    """All objects of one kind, by place and by owner."""

    def __init__(
        self,
        parse: Callable[[Mapping[str, Any]], T],
        owner_of: OwnerOf,
        packing: Packing[T] | None = None,
        keeps: Callable[[T], bool] = lambda _: False,
    ) -> None:
        """`owner_of` gives no name for an object that is nobody's here: it is not kept.

        Where `keeps` is true of its last state, that of a deleted object stays until its owner's status is written.
        """
        self._parse = parse
        self._owner_of = owner_of
        self._packing = packing
        self._keeps = keeps
        self._entries: dict[Key, Entry[T]] = {}
        self._by_owner: dict[Key, tuple[Key, ...]] = {}  # a set of one or two is four times as large
        self._gone: dict[Key, dict[str, tuple[str, T]]] = {}  # by owner and uid: the owner's uid, and the last state
        self._lists: list[Listing[T]] = []
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

    def version_at(self, place: Key) -> str:
        """The version known of the object at a place; empty where there is none."""
        entry = self._entries.get(place)
        return entry.version if entry else ""

    def is_packed(self, place: Key) -> bool:
        """Whether the object at a place is one that is seldom looked at."""
        entry = self._entries.get(place)
        return entry is not None and bool(entry.packed)

    def of(self, owner: Key, owner_uid: str) -> tuple[T, ...]:
        """The objects of a LoRAFineTune, by name; not those of an earlier one that had the same name."""
        owned = (self._entries[place] for place in sorted(self._by_owner.get(owner, ())))
        return tuple(self._view(entry) for entry in owned if entry.owner_uid == owner_uid)

    def gone(self, owner: Key, owner_uid: str) -> tuple[T, ...]:
        """The last states of a LoRAFineTune's objects that are gone since its status was written."""
        return tuple(view for uid, view in self._gone.get(owner, {}).values() if uid == owner_uid)

    def forget_gone(self, owner: Key, unless: Callable[[T], bool] = lambda _: False) -> None:
        """The status accounts for what is gone, but for what `unless` holds of."""
        kept = {uid: (owner_uid, view) for uid, (owner_uid, view) in self._gone.pop(owner, {}).items() if unless(view)}
        if kept:
            self._gone[owner] = kept

    def saw(self, version: str) -> None:
        """A list or a bookmark is as of this version."""
        if _is_newer(version, self.version):
            self.version = version

    def put(self, document: Mapping[str, Any]) -> Key | None:
        """Take in an object; return its owner if that was news, None if this version or a newer one is known."""
        # Compared before it is parsed: each list and each write of ours is repeated by a watch.
        version = _version(document)
        self.saw(version)
        known = self._entries.get(_place(document))
        if known is not None and not _is_newer(version, known.version):
            return None
        return self._take(document, known)

    def remove(self, document: Mapping[str, Any]) -> Key | None:
        """A watch reports an object as deleted; return its owner if it was known. A successor by its name stays."""
        self.saw(_version(document))
        uid = str(document["metadata"].get("uid", ""))
        for listing in self._lists:
            listing.gone.add(uid)
        known = self._entries.get(_place(document))
        if known is None or known.uid != uid:
            return None
        self._drop(known, self._parse(document))
        return known.owner

    def drop(self, place: Key, uid: str) -> None:
        """The API server says that the object with this uid is not at this place any more."""
        known = self._entries.get(place)
        if known is not None and known.uid == uid:
            self._drop(known, self._view(known))

    @contextlib.contextmanager
    def listing(self, namespace: str | None) -> Iterator["Listing[T]"]:
        """A list is asked for, of one namespace or of all."""
        listing = Listing(self, namespace)
        self._lists.append(listing)
        try:
            yield listing
        finally:
            self._lists.remove(listing)

    def take_answer(self, document: Mapping[str, Any], *, replaces: bool) -> Key | None:
        """Take in an object of a list or a live read; where it `replaces`, whatever version is known."""
        if not replaces:
            return self.put(document)
        known = self._entries.get(_place(document))
        return self._take(document, known) if known is None or known.version != _version(document) else None

    def prune(self, listed: Set[str], version: str, namespace: str | None) -> set[Key]:
        """Drop what a list as of `version` does not hold by its uid, unless it is newer; with no version, all of that.

        Returns the owners with news.
        """
        within = [e for e in self._entries.values() if namespace is None or e.place.namespace == namespace]
        gone = [e for e in within if e.uid not in listed and not (version and _is_newer(e.version, version))]
        for entry in gone:
            self._drop(entry, self._view(entry))
        return {entry.owner for entry in gone}

    def _take(self, document: Mapping[str, Any], known: Entry[T] | None) -> Key | None:
        place, uid = _place(document), str(document["metadata"].get("uid", ""))
        if known is not None and known.uid != uid:
            self._drop(known, self._view(known))
            known = None
        name, owner_uid = self._owner_of(document)
        if known is not None:  # an object stays with the owner it had first, whatever becomes of its labels
            name, owner_uid = known.owner.name, known.owner_uid
        if not name:
            return None
        view = self._parse(document)
        packed = self._packing.pack(view) if self._packing else b""
        entry = Entry(
            place=known.place if known is not None else place,
            owner=place if name == place.name else Key(place.namespace, sys.intern(name)),
            owner_uid=sys.intern(owner_uid),
            uid=uid,
            version=_version(document),
            view=None if packed else view,
            packed=packed,
        )
        self._entries[entry.place] = entry
        if known is None:
            self._by_owner[entry.owner] = (*self._by_owner.get(entry.owner, ()), entry.place)
            self._gone.get(entry.owner, {}).pop(uid, None)
        return entry.owner

    def _drop(self, entry: Entry[T], view: T) -> None:
        """The object is gone, and `view` is its last state."""
        del self._entries[entry.place]
        places = self._by_owner[entry.owner]
        if len(places) == 1:
            del self._by_owner[entry.owner]
        else:
            at = places.index(entry.place)  # a list shows the oldest gone first, so that thousands are soon found
            self._by_owner[entry.owner] = places[:at] + places[at + 1 :]
        if self._keeps(view):
            gone = self._gone.setdefault(entry.owner, {})
            gone[entry.uid] = (entry.owner_uid, view)
            if len(gone) > _MOST_GONE:
                del gone[next(iter(gone))]

    def _view(self, entry: Entry[T]) -> T:
        if self._packing is not None and entry.packed:
            return self._packing.unpack(entry.packed)
        return cast("T", entry.view)


class Listing(Generic[T]):
    """A list on its way into a store, chunk by chunk, beside the watch.

    A list that names no version is never of a time before what was seen when it was asked for. One that is comes from
    an etcd that was restored from a backup: what is known is of a history that there is no more, and all is taken as
    the list has it.
    """

    def __init__(self, store: Store[T], namespace: str | None) -> None:
        self._store = store
        self._namespace = namespace
        self._seen = store.version
        self._listed: set[str] = set()
        self.gone: set[str] = set()
        """The uids of objects that a watch has reported as deleted meanwhile."""

    def put(self, documents: Iterable[Mapping[str, Any]], version: str) -> set[Key]:
        """Take in a chunk of the list, which is as of this version; returns the owners with news."""
        news = set[Key]()
        for document in documents:
            uid = str(document["metadata"].get("uid", ""))
            self._listed.add(uid)
            if uid in self.gone:
                continue
            owner = self._store.take_answer(document, replaces=is_older(version, self._seen))
            if owner is not None:
                news.add(owner)
        return news

    def finish(self, version: str) -> set[Key]:
        """The list is whole: drop what it does not hold; returns the owners with news."""
        if is_older(version, self._seen):
            self._store.version = version
            return self._store.prune(self._listed, "", self._namespace)
        self._store.saw(version)
        return self._store.prune(self._listed, version, self._namespace)


class Stores:
    """LoRAFineTunes, the Jobs and Pods that carry our label, and Kueue's Workloads of those Jobs."""

    def __init__(self) -> None:
        self.finetunes: Store[FineTune] = Store(parse_finetune, _itself, _PackedWhenFinished())
        # What a Job that is gone looked like, and why a pod ended and what it proved, is not lost.
        self.jobs: Store[JobView] = Store(parse_job, owner_of, keeps=lambda _: True)
        self.pods: Store[PodView] = Store(parse_pod, _by_labels, keeps=has_ended)
        self.workloads: Store[WorkloadView] = Store(parse_workload, _by_pod_template)

    def forget_gone(self, key: Key) -> None:
        """Nobody will ask any more how this run's children ended that are gone."""
        self.jobs.forget_gone(key)
        self.pods.forget_gone(key)


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


def _version(document: Mapping[str, Any]) -> str:
    return str(document["metadata"].get("resourceVersion", ""))


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


def is_older(version: str, than: str) -> bool:
    """Whether a resource version is for certain that of an earlier moment."""
    return version.isdecimal() and than.isdecimal() and int(version) < int(than)
