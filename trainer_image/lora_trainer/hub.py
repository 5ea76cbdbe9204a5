"""Models and data sets of a Hugging Face Hub: every revision a commit, needed files only, every failure a sentence."""

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lora_trainer.contract.reasons import Reason
from lora_trainer.contract.uri import HubUri
from lora_trainer.errors import (
    AccessDeniedError,
    NotFoundError,
    TrainerError,
    TransientError,
    one_sentence,
    storage_error,
)

T = TypeVar("T")
TOKEN_VARIABLES = {"model": "MODEL_HF_TOKEN", "dataset": "DATASET_HF_TOKEN"}
ATTEMPTS = 4
_FIELDS = {"model": "model.uri", "dataset": "dataset.uri"}
_NOT_FOUND = {"model": Reason.MODEL_NOT_FOUND, "dataset": Reason.DATASET_NOT_FOUND}
_DENIED = {"model": Reason.MODEL_ACCESS_DENIED, "dataset": Reason.DATASET_ACCESS_DENIED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """One commit of a repository: `files` are its paths."""

    repo: str
    kind: str
    commit: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """A Hub, reached with the tokens and at the `HF_ENDPOINT` in `environment`. `sleep` takes seconds.

    `cache` None is the client library's own place, `HF_HOME`.
    """

    cache: Path | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    sleep: Callable[[float], None] = time.sleep

    def repository(self, uri: HubUri, kind: str) -> Repository:
        """Resolve the revision to a commit and list the files. `kind` is `model` or `dataset`."""
        from huggingface_hub import HfApi  # noqa: PLC0415 - half a second that runs without a Hub do not pay

        api = HfApi(endpoint=self.environment.get("HF_ENDPOINT"), token=self._token(kind))
        info = self._call(uri, kind, lambda: api.repo_info(uri.repo, revision=uri.revision, repo_type=kind))
        files = tuple(sorted(sibling.rfilename for sibling in getattr(info, "siblings", None) or ()))
        return Repository(repo=uri.repo, kind=kind, commit=info.sha or uri.revision, files=files)

    def download(self, uri: HubUri, repository: Repository, wanted: Sequence[str]) -> Path:
        """Fetch `wanted` files of the commit into the cache; the folder that holds them."""
        from huggingface_hub import snapshot_download  # noqa: PLC0415 - as above

        def fetch() -> str:
            return snapshot_download(
                repository.repo,
                repo_type=repository.kind,
                revision=repository.commit,
                allow_patterns=[_literal(name) for name in wanted],
                token=self._token(repository.kind),
                endpoint=self.environment.get("HF_ENDPOINT"),
                cache_dir=self.cache,
            )

        return Path(self._call(uri, repository.kind, fetch))

    def _token(self, kind: str) -> str | bool:
        # False keeps the library from sending a token that it finds on the machine and that was not meant for this run.
        for variable in (TOKEN_VARIABLES[kind], "HF_TOKEN"):
            # A token that was read from a file often ends with a newline.
            token = self.environment.get(variable, "").strip()
            if not all("!" <= character <= "~" for character in token):
                # The HTTP client would refuse the header with a message that quotes the token.
                raise AccessDeniedError(
                    f"{kind}.secretRef's HF_TOKEN holds characters that no token has, such as a space or a line break: "
                    "store the token alone",
                    _DENIED[kind],
                )
            if token:
                return token
        return False

    def _call(self, uri: HubUri, kind: str, action: Callable[[], T]) -> T:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return action()
            except (
                Exception
            ) as error:  # the library raises a dozen unrelated kinds; `_explain` keeps what it doesn't know
                failure = _explain(error, uri, kind)
                if not isinstance(failure, TransientError) or attempt == ATTEMPTS:
                    raise failure from error
                self.sleep(2 ** (attempt - 1) * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
        raise AssertionError("unreachable: the last attempt returns or raises")


_ABSENT = frozenset({"RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError"})


def _explain(error: Exception, uri: HubUri, kind: str) -> TrainerError:
    """The sentence of a failed call. The HTTP status, which the library may wrap, is sought in the chain of causes."""
    where = f"{_FIELDS[kind]} is {uri}"
    status = _status(error)
    if status == 404 or any(type(item).__name__ in _ABSENT for item in _chain(error)):
        # To those who may not know of it, the Hub calls a private repository absent: a misspelt name is more likely.
        return NotFoundError(
            f"{where}: the Hub knows no such repository, revision or file; check the spelling, and for a private one "
            f"name in {kind}.secretRef a Secret whose HF_TOKEN may read it",
            _NOT_FOUND[kind],
        )
    if status in (401, 403):
        return AccessDeniedError(
            f"{where}: the Hub answered {status}, the repository is gated or private; accept its licence, and name in "
            f"{kind}.secretRef a Secret whose HF_TOKEN may read it",
            _DENIED[kind],
        )
    storage = _storage(error)
    if storage is not None:
        return storage_error(storage, "the Hub's cache (HF_HOME)")
    detail = f"the Hub answered {status}" if status else f"the Hub cannot be reached ({one_sentence(error)[:200]})"
    return TransientError(f"{where}: {detail}; check HF_ENDPOINT, proxy and network if this lasts")


def _chain(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _status(error: Exception) -> int | None:
    for item in _chain(error):
        response: Any = getattr(item, "response", None)
        if isinstance(getattr(response, "status_code", None), int):
            return int(response.status_code)
    return None


def _storage(error: Exception) -> OSError | None:
    for item in _chain(error):
        if type(item) in (OSError, PermissionError) and isinstance(item, OSError) and item.filename is not None:
            return item
        if isinstance(item, OSError) and item.errno in (28, 122):
            return item
    return None


def _literal(name: str) -> str:
    """A file name as a glob that matches only it."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)
