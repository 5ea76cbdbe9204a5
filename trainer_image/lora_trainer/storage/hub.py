"""Models and data sets of a Hugging Face Hub: every revision a commit, needed files only, every failure a sentence."""

import functools
import logging
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lora_trainer.errors import TransientError
from lora_trainer.spec.uri import HubUri
from lora_trainer.storage import network
from lora_trainer.storage.hub_cache import LargeFile, blob_or_partial, fetch_large, opened
from lora_trainer.storage.hub_errors import explain_hub, retry_after_s
from lora_trainer.storage.network import ATTEMPTS, RemoteFile, read_part
from lora_trainer.storage.roles import Role, or_in_environment
from lora_trainer.storage.room import check_room

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """One commit of a repository: `files` are its paths, `large` those of them with a sha256 (large file storage)."""

    repo: str
    role: Role
    commit: str
    files: tuple[str, ...]
    large: Mapping[str, LargeFile]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """A Hub, reached with the tokens and at the `HF_ENDPOINT` in `environment`. `sleep` takes seconds.

    `cache` None is the client library's own place, below `HF_HOME`. With `HF_HUB_OFFLINE` only the cache is asked.
    """

    cache: Path | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    sleep: Callable[[float], None] = time.sleep

    def api(self, role: Role) -> Any:
        """The library's client with this role's token."""
        from huggingface_hub import HfApi  # noqa: PLC0415 - half a second that runs without a Hub do not pay

        _bound_waits()
        return HfApi(endpoint=self.environment.get("HF_ENDPOINT"), token=self.token(role))

    def repository(self, uri: HubUri, role: Role) -> Repository:
        """Resolve the revision to a commit and list the files.

        Raises `NotFoundError`, `AccessDeniedError`, `TransientError`.
        """
        if self.offline:
            return self._cached_repository(uri, role)
        info = self.call(
            uri,
            role,
            lambda: self.api(role).repo_info(
                uri.repo, revision=uri.revision, repo_type=role.section, files_metadata=True
            ),
        )
        siblings = info.siblings or ()
        return Repository(
            repo=uri.repo,
            role=role,
            commit=info.sha or uri.revision,
            files=tuple(sorted(sibling.rfilename for sibling in siblings)),
            large={
                sibling.rfilename: LargeFile(sha256=sibling.lfs.sha256, size_bytes=sibling.lfs.size)
                for sibling in siblings
                if sibling.lfs is not None
            },
        )

    def download(self, uri: HubUri, repository: Repository, wanted: Sequence[str], *, complete: bool = True) -> Path:
        """Fetch `wanted` files of the commit into the cache; the folder that holds them. Raises as `repository`.

        If they are `complete`, all that a run needs, the cache notes the commit as what the revision is at, for those
        who load it without asking. Access is checked with this run's token also where everything is cached: another run
        may have filled the cache.
        """
        from huggingface_hub import snapshot_download  # noqa: PLC0415 - as above

        role = repository.role
        if self.offline:
            return self._storage(repository.repo, role) / "snapshots" / repository.commit
        self._check_access(uri, repository, wanted[0])
        storage = self._storage(repository.repo, role)
        large = [repository.large[name] for name in wanted if name in repository.large]
        begun = [(blob_or_partial(storage, file), file.size_bytes) for file in large]
        check_room(storage, begun, f"{role.field} is {uri}")
        for name in wanted:
            if name in repository.large:
                self._fetch_large(uri, repository, name)

        def fetch() -> str:
            return snapshot_download(
                repository.repo,
                repo_type=role.section,
                revision=repository.commit,
                allow_patterns=[_literal(name) for name in wanted],
                token=self.token(role),
                endpoint=self.environment.get("HF_ENDPOINT"),
                cache_dir=self.cache,
            )

        folder = Path(self.call(uri, role, fetch))
        if complete:
            self.call(uri, role, lambda: self._remember(uri, repository))
        return folder

    def remote_file(self, uri: HubUri, repository: Repository, name: str) -> RemoteFile:
        """A file to read parts of. Raises as `repository`, and so does reading."""
        role = repository.role
        found = self.call(uri, role, lambda: self._metadata(repository, name))

        def read(start: int, count: int) -> bytes:
            token, endpoint, wanted = (
                self.token(role),
                self.environment.get("HF_ENDPOINT"),
                f"bytes={start}-{start + count - 1}",
            )
            try:
                return read_part(
                    lambda: opened(found.location, (200, 206), token, endpoint, wanted=wanted), start, count
                )
            except Exception as error:  # as in `call`, but each request is tried several times already
                raise explain_hub(error, uri, role) from error

        large = repository.large.get(name)
        return RemoteFile(size_bytes=large.size_bytes if large else found.size, read=read)

    @property
    def offline(self) -> bool:
        """Whether the Hub may not be asked."""
        return self.environment.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}

    def token(self, role: Role) -> str | bool:
        """The role's token, else the plain one; False keeps the library from sending a token that it finds on the
        machine and that was not meant for this run. Raises `AccessDeniedError` for what cannot be a token."""
        for variable in (f"{role.prefix}HF_TOKEN", "HF_TOKEN"):
            # A token that was read from a file often ends with a newline.
            token = self.environment.get(variable, "").strip()
            if not all("!" <= character <= "~" for character in token):
                # The HTTP client would refuse the header with a message that quotes the token.
                raise role.denied(
                    f"{role.section}.secretRef's HF_TOKEN holds characters that no token has, such as a space or a "
                    f"line break: store the token alone{or_in_environment('HF_TOKEN')}"
                )
            if token:
                return token
        return False

    def call(self, uri: HubUri, role: Role, action: Callable[[], T]) -> T:
        """Try `action` until it neither fails for the network nor for a busy Hub. Raises `TrainerError`."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return action()
            except Exception as error:  # the library raises a dozen kinds; `explain_hub` keeps what it doesn't know
                failure = explain_hub(error, uri, role)
                if not isinstance(failure, TransientError) or attempt == ATTEMPTS:
                    raise failure from error
                pause_s = 2 ** (attempt - 1) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
                asked_s = retry_after_s(error) or 0.0
                if asked_s > pause_s:
                    log.info("%s: waiting %.0f s", failure, asked_s)
                self.sleep(max(pause_s, asked_s))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _metadata(self, repository: Repository, name: str) -> Any:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url  # noqa: PLC0415 - as above

        endpoint = self.environment.get("HF_ENDPOINT")
        url = hf_hub_url(
            repository.repo, name, repo_type=repository.role.section, revision=repository.commit, endpoint=endpoint
        )
        return get_hf_file_metadata(url, token=self.token(repository.role), endpoint=endpoint)

    def _check_access(self, uri: HubUri, repository: Repository, name: str) -> None:
        self.call(uri, repository.role, lambda: self._metadata(repository, name))

    def _fetch_large(self, uri: HubUri, repository: Repository, name: str) -> None:
        """Not by way of `call`: each part of it is tried several times already."""
        role = repository.role
        try:
            fetch_large(
                self._storage(repository.repo, role),
                repository.large[name],
                lambda: self.call(uri, role, lambda: self._metadata(repository, name)).location,
                token=self.token(role),
                endpoint=self.environment.get("HF_ENDPOINT"),
                what=f"{role.field} is {uri}: {name}",
            )
        except Exception as error:  # as in `call`
            raise explain_hub(error, uri, role) from error

    def _storage(self, repo: str, role: Role) -> Path:
        """The repository's folder in the cache, as the client library lays it out."""
        from huggingface_hub import constants  # noqa: PLC0415 - as above

        return (self.cache or Path(constants.HF_HUB_CACHE)) / f"{role.section}s--{repo.replace('/', '--')}"

    def _cached_repository(self, uri: HubUri, role: Role) -> Repository:
        storage = self._storage(uri.repo, role)
        reference = storage / "refs" / uri.revision
        commit = reference.read_text(encoding="ascii").strip() if reference.is_file() else uri.revision
        folder = storage / "snapshots" / commit
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        if not files:
            raise role.missing(
                f"{role.field} is {uri}: the Hub may not be asked (HF_HUB_OFFLINE), and its cache holds "
                f"nothing of it ({storage.parent}); fill the cache claim where the Hub can be reached"
            )
        return Repository(repo=uri.repo, role=role, commit=commit, files=tuple(files), large={})

    def _remember(self, uri: HubUri, repository: Repository) -> None:
        """Note which commit the revision is at, for runs that may not ask."""
        if uri.revision != repository.commit:
            reference = self._storage(uri.repo, repository.role) / "refs" / uri.revision
            reference.parent.mkdir(parents=True, exist_ok=True)
            temporary = reference.with_name(f".{reference.name}.{os.getpid()}")
            temporary.write_text(repository.commit, encoding="ascii")
            temporary.rename(reference)


@functools.cache
def _bound_waits() -> None:
    """Give every request of the library a timeout: its own clients wait for ever, some calls even ask for that."""
    from huggingface_hub import get_session, set_client_factory  # noqa: PLC0415 - as above

    default = get_session()
    client, hooks = type(default), default.event_hooks
    bounded = {**hooks, "request": [*hooks["request"], _bound]}
    set_client_factory(lambda: client(event_hooks=bounded, follow_redirects=True))


def _bound(request: Any) -> None:
    bounds = {"connect": network.CONNECT_S, "read": network.READ_S, "write": network.READ_S, "pool": network.CONNECT_S}
    asked = {name: seconds for name, seconds in request.extensions["timeout"].items() if seconds is not None}
    request.extensions = {**request.extensions, "timeout": {**bounds, **asked}}


def _literal(name: str) -> str:
    """A file name as a glob that matches only it."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)
