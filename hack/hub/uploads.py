"""Content on its way into the Hub: new repositories, large files in parts, commits that are made as a whole.

Large files wait below `ROOT/.uploads` until a commit takes them.
"""

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from hub.access import Refusal, RefusedError, unknown_repository
from hub.repositories import LFS_SIZE_BYTES, LFS_SUFFIXES, Repositories

PART_BYTES = 1024 * 1024
"""The Hub's parts are larger; small ones let a test lose one of several."""


@dataclass(kw_only=True)
class Uploads:
    """Content on its way into repositories below `root`."""

    root: Path
    repositories: Repositories
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def create(self, repo: str) -> bool:
        """Make an empty model repository; False where there is one already."""
        folder = self.root / "models" / repo
        with self._lock:
            if folder.is_dir():
                return False
            folder.mkdir(parents=True)
            (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
            return True

    def modes(self, repo: str, files: Iterable[dict[str, object]]) -> dict[str, object]:
        """Say of each file whether it goes into large file storage, and the id of what is there by that name."""
        revision = self.repositories.find("models", repo, "main")
        there = revision.files if revision else {}
        answers = []
        for record in files:
            path = str(record["path"])
            is_large = int(str(record["size"])) > LFS_SIZE_BYTES or Path(path).suffix in LFS_SUFFIXES
            answer = {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
            answers.append(answer | ({"oid": there[path].etag} if path in there else {}))
        return {"files": answers}

    def batch(self, base: str, objects: Iterable[dict[str, object]]) -> dict[str, object]:
        """Say where the parts of each large file go; what has arrived already goes nowhere."""
        answers: list[dict[str, object]] = []
        for record in objects:
            oid, size = str(record["oid"]), int(str(record["size"]))
            answer: dict[str, object] = {"oid": oid, "size": size}
            if not self._object(oid).is_file():
                count = -(-size // PART_BYTES)
                header: dict[str, str] = {str(n + 1): f"{base}/lfs/{oid}/part/{n + 1}" for n in range(count)}
                single = {"href": f"{base}/lfs/{oid}/part/1"}
                several = {"href": f"{base}/lfs/{oid}/complete", "header": header | {"chunk_size": str(PART_BYTES)}}
                answer["actions"] = {"upload": single if count == 1 else several}
            answers.append(answer)
        return {"transfer": "multipart", "objects": answers}

    def put_part(self, oid: str, number: int, content: bytes) -> str:
        """Keep one part; a single one is the whole file. Return its ETag."""
        folder = self.root / ".uploads" / f"{oid}.parts"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05d}").write_bytes(content)
        if hashlib.sha256(content).hexdigest() == oid:
            self.complete(oid)
        return hashlib.sha256(content).hexdigest()

    def complete(self, oid: str) -> None:
        """Join the parts. Refuses what does not give the announced sha256."""
        folder = self.root / ".uploads" / f"{oid}.parts"
        content = b"".join(part.read_bytes() for part in sorted(folder.iterdir())) if folder.is_dir() else b""
        if hashlib.sha256(content).hexdigest() != oid:
            message = "The uploaded content does not match its announced sha256."
            raise RefusedError(Refusal(status=HTTPStatus.UNPROCESSABLE_ENTITY, code="", message=message))
        self._object(oid).write_bytes(content)
        shutil.rmtree(folder)

    def commit(self, repo: str, lines: Iterable[bytes]) -> str:
        """Apply a commit, all of it or nothing; return its id."""
        records = [json.loads(line) for line in lines if line.strip()]
        folder = self.root / "models" / repo
        with self._lock:
            revision = self.repositories.find("models", repo, "main")
            if revision is None:
                raise RefusedError(unknown_repository("hf_known"))
            header = next(record["value"] for record in records if record["key"] == "header")
            if header.get("parentCommit") not in {None, revision.commit}:
                message = "A commit has happened since. Please refresh and try again."
                raise RefusedError(Refusal(status=HTTPStatus.PRECONDITION_FAILED, code="", message=message))
            contents = {str(record["value"]["path"]): self._content(record) for record in records[1:]}
            for path, content in contents.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)
            done = self.repositories.find("models", repo, "main")
        return done.commit if done else ""

    def _content(self, record: dict[str, dict[str, str]]) -> bytes:
        value = record["value"]
        if "content" in value:
            return base64.b64decode(value["content"])
        location = self._object(value["oid"])
        if not location.is_file():
            message = f"LFS object {value['oid']} was not uploaded."
            raise RefusedError(Refusal(status=HTTPStatus.BAD_REQUEST, code="", message=message))
        return location.read_bytes()

    def _object(self, oid: str) -> Path:
        if len(oid) != 64 or not oid.isalnum():
            raise RefusedError(Refusal(status=HTTPStatus.BAD_REQUEST, code="", message=f"Invalid oid: {oid}"))
        (self.root / ".uploads").mkdir(exist_ok=True)
        return self.root / ".uploads" / oid
