"""Models and data of a bucket in the cache: each version once, resumable, safe under concurrent runs."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lora_trainer.errors import storage_error
from lora_trainer.spec.uri import S3Uri
from lora_trainer.storage.cache_folders import cache_home
from lora_trainer.storage.lock import held
from lora_trainer.storage.model_folder import is_terms
from lora_trainer.storage.roles import Role
from lora_trainer.storage.room import check_room
from lora_trainer.storage.s3 import Connection, Item, connect, partial_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A folder with the named files, and the digest over names, sizes and ETags that pins their content."""

    folder: Path
    revision: str
    names: tuple[str, ...]


def fetch_folder(
    uri: S3Uri, role: Role, choose: Callable[[Sequence[str]], Sequence[str]], environment: Mapping[str, str]
) -> Fetched:
    """The objects directly below `uri` that `choose` picks of their names. Raises `TrainerError`.

    Among these names are those of folders, which end in a slash and are none to pick.
    """
    connection, items = list_folder(uri, role, environment)
    return fetch(connection, uri, {name: items[name] for name in choose(sorted(items))}, environment)


def list_folder(uri: S3Uri, role: Role, environment: Mapping[str, str]) -> tuple[Connection, Mapping[str, Item]]:
    """The server, and what lies directly below `uri` by name. Raises `TrainerError`."""
    connection = connect(role, environment)
    items = {item.key.removeprefix(f"{uri.key}/"): item for item in connection.folder(uri)}
    if not items:
        raise role.missing(f"{role.field} is {uri}: there is no object below {uri.key}/ in bucket {uri.bucket}")
    return connection, items


def fetch_data(
    uri: S3Uri, role: Role, choose: Callable[[Sequence[str]], Sequence[str]], environment: Mapping[str, str]
) -> Fetched:
    """The object at `uri`, or else those directly below it that `choose` picks. Raises `TrainerError`."""
    connection = connect(role, environment)
    item = connection.item(uri)
    if item is None:
        return fetch_folder(uri, role, choose, environment)
    name = PurePosixPath(uri.key).name
    choose((name,))
    return fetch(connection, uri, {name: item}, environment)


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where objects are cached."""
    return cache_home(environment) / "s3"


def revision_of(items: Mapping[str, Item]) -> str:
    """The digest that pins the content of some objects, licenses and notices apart: with another one of these a model
    computes the same."""
    return _digest({name: item for name, item in items.items() if not is_terms(name)})


def _digest(items: Mapping[str, Item]) -> str:
    listing = "\n".join(f"{name} {item.size_bytes} {item.etag}" for name, item in sorted(items.items()))
    return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"


def fetch(connection: Connection, uri: S3Uri, items: Mapping[str, Item], environment: Mapping[str, str]) -> Fetched:
    """Some objects of a folder, by name, in the cache. Raises `TrainerError`."""
    digest = _digest(items).removeprefix("sha256:")
    place = hashlib.sha256(f"{environment.get('AWS_ENDPOINT_URL_S3', '')}/{uri.bucket}/{uri.key}".encode()).hexdigest()
    folder = cache_folder(environment) / f"{PurePosixPath(uri.key).name}-{place[:12]}" / digest[:16]
    # What is cached already may be of another run: this one's credentials must open it, too.
    first = next(iter(items.values()))
    connection.item(S3Uri(bucket=uri.bucket, key=first.key))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        what = f"{connection.role.field} is {uri}"
        # A full cache that has all is good enough.
        if _missing(folder, items):
            with held(folder / ".lock", what) as lock:
                missing = _missing(folder, items)
                check_room(folder, [(partial_of(path), item.size_bytes) for path, item in missing.items()], what)
                for path, item in missing.items():
                    connection.download(uri, item, path, lock.check)
    except OSError as error:
        raise storage_error(error, "the cache (HF_HOME)") from error
    return Fetched(folder=folder, revision=revision_of(items), names=tuple(items))


def _missing(folder: Path, items: Mapping[str, Item]) -> Mapping[Path, Item]:
    return {
        path: item
        for name, item in items.items()
        for path in (folder / name,)
        if not path.is_file() or path.stat().st_size != item.size_bytes
    }
