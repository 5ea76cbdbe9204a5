"""A result in a repository of a Hugging Face Hub: one commit, which appears whole, compared file by file afterwards.

A repository that is missing is made, private. One that holds anything but the Hub's own `.gitattributes` is another's:
the result then goes into `<name>-<suffix of the run>`, never over it.
"""

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lora_trainer.errors import ConfigError, StorageError, TransientError
from lora_trainer.spec.names import run_suffix
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.uri import HubUri
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.manifest import Published, manifest_digest, read_manifest, run_of_manifest
from lora_trainer.storage.roles import Role, or_in_environment, upload_failed
from lora_trainer.storage.sealed import MANIFEST

_OWN_FILES = frozenset({".gitattributes"})
_LONGEST_NAME = 96
_COMMIT = re.compile(r"[0-9a-fA-F]{5,40}")
"""What the client takes for a parent."""
_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HubPublisher:
    """The `Publisher` of `hf://` for the run `uid`, called `run_name` in the commit's message."""

    hub: Hub
    uri: HubUri
    uid: str
    run_name: str

    def check(self) -> None:
        """Ask who the token is and whether it may write, and find a repository. Nothing is made yet."""
        if self.hub.offline:
            raise ConfigError(f"output.uri is {self.uri}: the Hub may not be asked (HF_HUB_OFFLINE)")
        if self.hub.token(Role.OUTPUT) is False:
            raise Role.OUTPUT.denied(
                f"output.uri is {self.uri}: the Hub takes nothing without a token; name in output.secretRef a "
                f"Secret whose HF_TOKEN may write to it{or_in_environment('HF_TOKEN')}"
            )
        who = self.hub.call(self.uri, Role.OUTPUT, self._api().whoami)
        if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise Role.OUTPUT.denied(
                f"output.uri is {self.uri}: the token in output.secretRef may only read; make one that may write"
                f"{or_in_environment('HF_TOKEN')}"
            )
        self._check_namespace(who)
        self._free_place()

    def _check_namespace(self, who: Mapping[str, Any]) -> None:
        """Raises `AccessDeniedError` where the token's owner is no writing member of the repository's namespace."""
        name, namespace = str(who.get("name") or ""), self.uri.repo.partition("/")[0]
        roles = {str(org.get("name")).lower(): str(org.get("roleInOrg") or "") for org in who.get("orgs") or ()}
        if not name or namespace.lower() == name.lower() or roles.get(namespace.lower(), "read") != "read":
            return
        membership = "only reads there" if namespace.lower() in roles else "is not a member of it"
        raise Role.OUTPUT.denied(
            f"output.uri is {self.uri}: the token in output.secretRef is of {name}, who {membership}; write to "
            f"hf://{name}/{self.uri.repo.partition('/')[2]}, or take a token of a member of {namespace} that may write"
            f"{or_in_environment('HF_TOKEN')}"
        )

    def published(self) -> Published | None:
        """The repository whose manifest names this run."""
        for place in self._places():
            info = self._info(place)
            text = self._manifest(place, info) if info is not None else None
            if info is not None and text is not None and run_of_manifest(text) == self.uid:
                return _described(place, info.sha, text)
        return None

    def publish(self, folder: Path) -> Published:
        """Commit all files at once and compare what the Hub holds. Raises `StorageError` (`UploadFailed`)."""
        try:
            place, commit = self._committed(folder)
            self._check(place, commit, folder)
        except TransientError as error:
            raise upload_failed(error) from error
        return Published(uri=f"hf://{place.repo}@{commit}", digest=manifest_digest(folder))

    def _committed(self, folder: Path) -> tuple[HubUri, str]:
        """Commit where there is room, if nobody else has since that was seen; else look again."""
        for last in (False, False, True):
            place, parent = self._made_place()
            try:
                return place, self.hub.call(place, Role.OUTPUT, partial(self._commit, place, parent, folder))
            except StorageError as error:
                if last or error.reason is not Reason.UPLOAD_FAILED:
                    raise
                self.hub.sleep(_PAUSE_S)
        raise AssertionError("unreachable: the last try returns or raises")

    def _made_place(self) -> tuple[HubUri, str | None]:
        """A repository that has room, made where it is missing, and the commit at which it has, None if unknown.

        While one is made, another run may have taken it: then it is the second one that is missing.
        """
        place, info = self._free_place()
        for _ in self._places():
            if info is not None:
                break
            create = partial(self._api().create_repo, place.repo, private=True, exist_ok=True)
            self.hub.call(place, Role.OUTPUT, create)
            place, info = self._free_place()
        commit = str(info.sha) if info is not None else ""
        return place, commit if _COMMIT.fullmatch(commit) else None

    def fetch(self, published: Published, folder: Path) -> None:
        """Download the commit."""
        from huggingface_hub import snapshot_download  # noqa: PLC0415 - only this output needs it

        repo, _, commit = published.uri.removeprefix("hf://").partition("@")
        place = HubUri(repo=repo, revision=commit)

        def fetch() -> str:
            return snapshot_download(
                repo,
                revision=commit,
                local_dir=folder,
                ignore_patterns=sorted(_OWN_FILES),
                token=self.hub.token(Role.OUTPUT),
                endpoint=self.hub.environment.get("HF_ENDPOINT"),
            )

        self.hub.call(place, Role.OUTPUT, fetch)
        _remove_download_notes(folder)

    def _api(self) -> Any:
        return self.hub.api(Role.OUTPUT)

    def _places(self) -> tuple[HubUri, HubUri]:
        suffix = f"-{run_suffix(self.uid)}"
        organisation, _, name = self.uri.repo.partition("/")
        return self.uri, HubUri(repo=f"{organisation}/{name[: _LONGEST_NAME - len(suffix)]}{suffix}")

    def _free_place(self) -> tuple[HubUri, Any]:
        """A repository that is missing, empty, or this run's from an earlier attempt, and what the Hub says of it."""
        for place in self._places():
            info = self._info(place)
            if info is None or {sibling.rfilename for sibling in info.siblings or ()} <= _OWN_FILES:
                return place, info
            text = self._manifest(place, info)
            if text is not None and run_of_manifest(text) == self.uid:
                return place, info
        first, second = self._places()
        raise StorageError(f"output.uri {first} and {second} both hold something already: nothing is overwritten")

    def _info(self, place: HubUri, revision: str = "main") -> Any:
        """What the Hub says of a repository, None where there is none."""
        try:
            return self.hub.call(
                place,
                Role.OUTPUT,
                lambda: self._api().repo_info(place.repo, revision=revision, files_metadata=True),
            )
        except StorageError as error:
            # For an output, what the Hub does not know is a place that is missing.
            if error.reason is not Reason.STORAGE_ERROR:
                raise
            return None

    def _manifest(self, place: HubUri, info: Any) -> bytes | None:
        if MANIFEST not in {sibling.rfilename for sibling in info.siblings or ()}:
            return None
        return self._read(place, MANIFEST, info.sha)

    def _read(self, place: HubUri, name: str, commit: str) -> bytes:
        from huggingface_hub import get_session, hf_hub_url  # noqa: PLC0415 - as above

        url = hf_hub_url(place.repo, name, revision=commit, endpoint=self.hub.environment.get("HF_ENDPOINT"))

        def read() -> bytes:
            token = self.hub.token(Role.OUTPUT)
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            answer = get_session().get(url, headers=headers, follow_redirects=True)
            return bytes(answer.raise_for_status().content)

        return self.hub.call(place, Role.OUTPUT, read)

    def _commit(self, place: HubUri, parent: str | None, folder: Path) -> str:
        from huggingface_hub import CommitOperationAdd  # noqa: PLC0415 - as above

        names = [*(entry.path for entry in read_manifest(folder).files), MANIFEST]
        done = self._api().create_commit(
            place.repo,
            [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names],
            commit_message=f"Add the result of the run {self.run_name}",
            parent_commit=parent,
        )
        return str(done.oid)

    def _check(self, place: HubUri, commit: str, folder: Path) -> None:
        """Compare the Hub's own digests at the commit, and the manifest byte by byte."""
        info = self._info(place, commit)
        there = {sibling.rfilename: sibling for sibling in (info.siblings if info is not None else ()) or ()}
        for entry in read_manifest(folder).files:
            found = there.get(entry.path)
            sha256 = found.lfs.sha256 if found is not None and found.lfs is not None else None
            if found is None or (sha256 != entry.sha256 and found.blob_id != _blob_id(folder / entry.path)):
                raise StorageError(
                    f"output.uri is {place}: the Hub holds another {entry.path} at commit {commit[:12]} than was sent; "
                    "the next attempt uploads it again",
                    Reason.UPLOAD_FAILED,
                )
        if self._read(place, MANIFEST, commit) != (folder / MANIFEST).read_bytes():
            message = f"output.uri is {place}: {MANIFEST} at commit {commit[:12]} reads back with other bytes"
            raise StorageError(message, Reason.UPLOAD_FAILED)


def _described(place: HubUri, commit: str, text: bytes) -> Published:
    return Published(uri=f"hf://{place.repo}@{commit}", digest=f"sha256:{hashlib.sha256(text).hexdigest()}")


def _blob_id(path: Path) -> str:
    """Git's id of a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


def _remove_download_notes(folder: Path) -> None:
    """The client leaves notes on what it downloaded, which are no part of the result."""
    shutil.rmtree(folder / ".cache", ignore_errors=True)
