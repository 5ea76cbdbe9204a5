"""Where the rows of a run lie: the address of a data set to local files, each with the name to show in messages."""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from lora_trainer.data.file_kinds import ENDINGS, file_kind, holds_unread_rows, is_hidden, may_hold_rows, some
from lora_trainer.errors import ConfigError, DatasetError, NotFoundError
from lora_trainer.spec.config import DatasetConfig, TrainConfig
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.uri import ClaimUri, ConfigMapUri, HubUri, S3Uri, Uri, at_commit, parse_uri
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.roles import Role
from lora_trainer.storage.volumes import Volumes, plain_files, readable

log = logging.getLogger(__name__)

Files = tuple[tuple[str, Path], ...]
"""The name to show and the path of each file, in the order in which they are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """The files of an address, and of a data set on the Hub the commit that they are of."""

    files: Files = ()
    commit: str | None = None


_MOVE = "convert what belongs to the data, and move the rest out of the folder"
_COPY = "copy the files that you want, converted to one of these, to a volume or a bucket"
_METADATA = frozenset({"dataset_infos.json", "dataset_info.json", "state.json", "config.json"})
_SHARD = re.compile(r"(?:.*/)?(?P<split>[A-Za-z0-9_.]+?)-\d+-of-\d+(?:-[0-9a-f]+)?(?:\.[a-z0-9]+)+", re.IGNORECASE)
_WORDS = {
    "train": "train(?:ing|set|data|split)?",
    "validation": "(?:val|valid|validation|dev|development|eval|evaluation)(?:set|data|split)?",
    "test": "test(?:ing|set|data|split)?",
}
"""Words that name a split in a file's path, as whole words: `constraints.jsonl` is no training file."""


def at_commits(config: TrainConfig, dataset: str | None, validation: str | None, hub: Hub) -> TrainConfig:
    """The configuration with data sets of the Hub at these commits, to read the rows again that a run has read.

    A commit that is gone, as after a history was squashed, leaves the address as it is: its rows may be the same, which
    their fingerprint decides. Raises the errors of the Hub.
    """
    section = config.dataset
    held_out = section.validation_uri
    pinned = replace(
        section,
        uri=_pinned(section.uri, dataset, Role.DATASET, hub),
        validation_uri=None if held_out is None else _pinned(held_out, validation, Role.VALIDATION, hub),
    )
    return replace(config, dataset=pinned)


def _pinned(address: str, commit: str | None, role: Role, hub: Hub) -> str:
    pinned = at_commit(address, commit)
    uri = parse_uri(pinned)
    if pinned == address or not isinstance(uri, HubUri):
        return address
    try:
        hub.repository(uri, role)
    except NotFoundError:
        log.warning("%s is read at %s: the commit %s that the run read is no longer found", role.field, address, commit)
        return address
    return pinned


def locate(dataset: DatasetConfig, volumes: Volumes, hub: Hub) -> Located:
    """The files of the training rows. Raises `TrainerError`."""
    return _located(Role.DATASET, dataset.uri, (dataset.split,), volumes, hub)


def locate_validation(dataset: DatasetConfig, volumes: Volumes, hub: Hub) -> Located:
    """The files of the held-out rows where `validation_uri` names some, else none. Raises `TrainerError`.

    Of a data set on the Hub they are those of the split validation, test, or, without either, of `split`.
    """
    if dataset.validation_uri is None:
        return Located()
    own = () if dataset.validation_uri == dataset.uri else (dataset.split,)
    splits = ("validation", "test", *own)
    return _located(Role.VALIDATION, dataset.validation_uri, splits, volumes, hub)


def _located(role: Role, address: str, splits: Sequence[str], volumes: Volumes, hub: Hub) -> Located:
    uri = parse_uri(address)
    if isinstance(uri, HubUri):
        return _on_hub(role, uri, splits, hub)
    return Located(files=_files(role, address, uri, volumes, hub))


def _files(role: Role, address: str, uri: Uri, volumes: Volumes, hub: Hub) -> Files:
    if isinstance(uri, ConfigMapUri):
        path = volumes.config_map_path(uri)
        if not path.is_file():
            raise _missing(role, address, f"the ConfigMap has no key {uri.key}: there is no file {path}")
        if holds_unread_rows(uri.key):
            raise _unread(uri)
        return ((uri.key, path),)
    if isinstance(uri, ClaimUri):
        with readable(f"{role.field} is {uri}"):
            files = _claim_files(role, uri, volumes)
            for _, path in files:
                path.open("rb").close()
        return files
    if isinstance(uri, S3Uri):
        return _bucket_files(role, uri, hub)
    raise ConfigError(f"{role.field} is {uri}: data is read from hf://, s3://, pvc:// and configmap:// addresses")


def _bucket_files(role: Role, uri: S3Uri, hub: Hub) -> Files:
    from lora_trainer.storage.s3_source import fetch_data  # noqa: PLC0415 - a quarter second that other runs do not pay

    def tables(names: Sequence[str]) -> tuple[str, ...]:
        # The name of an object that the address itself names is the only one, and may be hidden.
        own = PurePosixPath(uri.key).name
        found = tuple(name for name in names if file_kind(name) and (name == own or not is_hidden(name)))
        if not found:
            raise DatasetError(
                f"{role.field} is {uri}: it holds no file that ends in {ENDINGS} ({_present(names)}); "
                "convert it to Parquet or JSONL"
            )
        _check_one_split(role, uri, found)
        folders = [name for name in names if name.endswith("/")]
        _check_folder(role, uri, [name for name in names if name not in folders], folders)
        return found

    fetched = fetch_data(uri, role, tables, hub.environment)
    return tuple((name, fetched.folder / name) for name in fetched.names)


def _on_hub(role: Role, uri: HubUri, splits: Sequence[str], hub: Hub) -> Located:
    repository = hub.repository(uri, role)
    wanted = choose_split(repository.files, splits, where=f"{role.field} is {uri}")
    folder = hub.download(uri, repository, wanted)
    return Located(files=tuple((name, folder / name) for name in wanted), commit=repository.commit)


def _claim_files(role: Role, uri: ClaimUri, volumes: Volumes) -> Files:
    path = volumes.claim_path(uri)
    if volumes.claim_missing(uri):
        raise _missing(role, str(uri), volumes.not_mounted(uri))
    if path.is_dir():
        present = plain_files(path, str(uri))
        files = tuple(file for file in present if file_kind(file.name) and not is_hidden(file.name))
        if not files:
            names = [file.name for file in present]
            raise _missing(role, str(uri), f"the folder holds no file that ends in {ENDINGS} ({_present(names)})")
        _check_one_split(role, uri, [file.name for file in files])
        folders = [f"{entry.name}/" for entry in sorted(path.iterdir()) if entry.is_dir()]
        _check_folder(role, uri, [file.name for file in present], folders)
        return tuple((file.name, file) for file in files)
    if not path.exists():
        raise _missing(role, str(uri), "there is no such file")
    if not path.is_file():
        raise ConfigError(f"{role.field} is {uri}: must be a file or a folder of files")
    if not file_kind(path.name):
        raise _unread(uri)
    return ((path.name, path),)


def _unread(uri: ClaimUri | ConfigMapUri) -> DatasetError:
    return DatasetError(f"{uri}: files end in {ENDINGS}; save the data as JSONL, JSON, CSV or Parquet")


def _check_one_split(role: Role, uri: ClaimUri | S3Uri, names: Sequence[str]) -> None:
    """A folder is read whole, and nobody is to train on their test set without knowing. Raises `DatasetError`."""
    named = {split: [name for name in names if _has_word(name, words)] for split, words in _WORDS.items()}
    if len({tuple(found) for found in named.values() if found}) > 1:
        listed = "; ".join(f"{split}: {some(found)}" for split, found in named.items() if found)
        raise DatasetError(
            f"{role.field} is {uri}: its files are named for several splits ({listed}), and all files of a folder are "
            "read; name one file, or move the others out of the folder, or rename them"
        )


def _check_folder(role: Role, uri: ClaimUri | S3Uri, names: Sequence[str], folders: Sequence[str] = ()) -> None:
    kept_by_others = (".", "lost+found")
    doubtful = [name for name in names if may_hold_rows(name)]
    doubtful += [name for name in folders if not name.startswith(kept_by_others)]
    _check_left_out(names, doubtful, f"{role.field} is {uri}", _MOVE)


def _check_left_out(names: Iterable[str], doubtful: Sequence[str], where: str, remedy: str) -> None:
    """Nobody is to train on a part of the data without knowing. Raises `DatasetError`."""
    left_out = [name for name in names if holds_unread_rows(name)]
    if left_out:
        raise DatasetError(
            f"{where}: {some(left_out)} would be left out, since what is read ends in {ENDINGS}; {remedy}"
        )
    if doubtful:
        log.warning("%s: not read: %s; names of files that are read end in %s", where, some(doubtful), ENDINGS)


def _present(names: Sequence[str]) -> str:
    """What is there where nothing is read, as the part of a sentence."""
    hidden = any(file_kind(name) and is_hidden(name) for name in names)
    return f"found {some(names)}{'; hidden files are not read' if hidden else ''}"


def _missing(role: Role, address: str, what: str) -> NotFoundError:
    return NotFoundError(f"{role.field} is {address}: {what}", Reason.DATASET_NOT_FOUND)


def choose_split(names: Sequence[str], splits: Sequence[str], *, where: str) -> tuple[str, ...]:
    """Of a repository's files those of the first of `splits` that there is. Raises `DatasetError`.

    Shards (`data/train-00000-of-00005.parquet`) name their split exactly. Other files are known by whole words in their
    paths; for the split train, files that are named for no split at all count where none is named so. A split is
    refused of which a file would be left out, since it is of a kind that is not read. Hidden files are of none.
    """
    seen = [name for name in names if not is_hidden(name) and PurePosixPath(name).name not in _METADATA]
    tables = [name for name in seen if file_kind(name) or holds_unread_rows(name)]
    if not any(file_kind(name) for name in tables):
        raise DatasetError(
            f"{where}: it holds no file that ends in {ENDINGS} ({_present(names)}); "
            "convert it to Parquet or JSONL and upload that, or put it on a volume"
        )
    shards = {name: match["split"] for name in tables if (match := _SHARD.fullmatch(name))}
    if not any(file_kind(name) for name in shards):
        shards = {}
    for split in splits:
        chosen = [name for name in shards if shards[name] == split] if shards else _by_words(tables, split)
        if chosen:
            doubtful = [] if shards else _by_words([name for name in seen if may_hold_rows(name)], split)
            _check_left_out(chosen, doubtful, f"{where}, split {split}", _COPY)
            _check_one_subset(chosen if shards else (), where)
            return tuple(chosen)
    raise DatasetError(
        f"{where}: it has no split {' or '.join(splits)}; "
        + (f"its splits are {some(sorted(set(shards.values())))}" if shards else f"its files are {some(tables)}")
        + ("; set dataset.split to one of them" if len(splits) == 1 else "; name the file itself on a volume")
    )


def _by_words(tables: Sequence[str], split: str) -> list[str]:
    named = [name for name in tables if _has_word(name, _WORDS.get(split, re.escape(split.lower())))]
    if named or split != "train":
        return named
    return [name for name in tables if not any(_has_word(name, words) for words in _WORDS.values())]


def _has_word(name: str, words: str) -> bool:
    """`trainSet` counts as `train_set`."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    return re.search(f"(?<![a-z]){words}(?![a-z])", spaced) is not None


def _check_one_subset(shards: Iterable[str], where: str) -> None:
    subsets = sorted({str(PurePosixPath(name).parent) for name in shards})
    if len(subsets) > 1:
        raise DatasetError(
            f"{where}: it holds several subsets ({some(subsets)}), and an address cannot choose one; "
            "copy the files of one subset to a volume or a bucket"
        )
