"""A stand-in for the Hugging Face Hub: the part of its HTTP interface that `huggingface_hub` uses.

For developers and tests only. Nothing but the standard library, so it runs wherever Python does:

    python -m hub.server --root FOLDER --host 127.0.0.1 --port 8080      (with `hack` on PYTHONPATH)
    HF_ENDPOINT=http://127.0.0.1:8080 python -c 'import huggingface_hub; ...'

Besides the Hub's paths it answers `GET /-/healthz`, `GET /-/served` (requests and bytes per path), and
`PUT /-/faults` with a JSON list of faults (see faults.py) that replaces those that are pending.
"""

import argparse
import json
import re
import sys
import threading
from collections import Counter
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from hub.access import (
    Refusal,
    RefusedError,
    RepoRestrictions,
    check_reader,
    invalid_credentials,
    read_restrictions,
)
from hub.answers import (
    ByteRange,
    file_record,
    parse_range,
    read_body,
    reference_records,
    repository_record,
    tree_records,
)
from hub.faults import Fault, Faults, parse_faults
from hub.repositories import Kind, RepoFile, Repositories, Revision
from hub.uploads import Uploads
from hub.writing import WriteRequest, Writers, Writing, who_am_i

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

CHUNK_BYTES = 256 * 1024
API_PATH = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info|refs|auth-check)(?:/(.*))?)?")
FILE_PATH = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class HubServer:
    """The stand-in as an object: `with HubServer(root).start() as hub: ... hub.url`."""

    def __init__(
        self,
        root: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        restrictions: RepoRestrictions | None = None,
        writers: Writers | None = None,
    ) -> None:
        """Bind the socket (port 0: any free one); nothing is answered before start() or serve_forever()."""
        self.repositories = Repositories(root)
        self.restrictions = restrictions if restrictions is not None else {}
        self.uploads = Uploads(root=root, repositories=self.repositories)
        self.writing = Writing(uploads=self.uploads, writers=writers or {}, restrictions=self.restrictions)
        self.faults = Faults()
        self._requests: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server = _Listener((host, port), self)
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Return the address for HF_ENDPOINT."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def start(self) -> "Self":
        """Serve in a thread; returns itself, to be used in a `with` statement."""
        self._thread = threading.Thread(target=self.serve_forever, name="hub-stand-in", daemon=True)
        self._thread.start()
        return self

    def serve_forever(self) -> None:
        """Serve in this thread until stop() is called from another."""
        self._server.serve_forever(poll_interval=0.05)

    def stop(self) -> None:
        """End the serving thread and close the socket."""
        self._server.shutdown()
        self._server.server_close()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> "Self":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        """Stop."""
        self.stop()

    def inject(self, fault: Fault) -> None:
        """Queue a fault."""
        self.faults.add(fault)

    def count(self, path: str, body_bytes: int, *, is_new_request: bool) -> None:
        """Add to what was served for `path`."""
        with self._lock:
            self._requests[path] += is_new_request
            self._bytes[path] += body_bytes

    def served(self) -> dict[str, dict[str, int]]:
        """Return {path: {"requests": n, "bytes": n}}; bytes are those of bodies really written."""
        with self._lock:
            return {path: {"requests": n, "bytes": self._bytes[path]} for path, n in sorted(self._requests.items())}


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], hub: HubServer) -> None:
        super().__init__(address, _Handler)
        self.hub = hub

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent about clients that hang up, which is what some of them are here to try."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]  # typeshed: socket types


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """Keep quiet: served() tells what happened, and query strings do not belong in logs."""

    def _answer(self) -> None:
        self._body = read_body(self.rfile, self.headers)
        url = urlsplit(self.path)
        self._route = unquote(url.path)
        self._query = parse_qs(url.query)
        self._cut_after_bytes: int | None = None
        self._flip_byte: int | None = None
        self._whole = False
        self.server.hub.count(self._route, 0, is_new_request=True)
        if self._route.startswith("/-/"):
            self._own_interface()
            return
        fault = self.server.hub.faults.take(self.command, self._route)
        if fault is not None and fault.status is not None:
            self._send_json({"error": "injected fault"}, status=fault.status, headers=fault.headers)
            return
        self._cut_after_bytes = fault.cut_after_bytes if fault else None
        self._flip_byte = fault.flip_byte if fault else None
        self._whole = fault is not None and fault.whole
        try:
            self._hub_interface(url.path)
        except RefusedError as error:
            self._send_refusal(error.answer)

    def _own_interface(self) -> None:
        hub = self.server.hub
        if self._route == "/-/healthz":
            self._send_json({"status": "ok"})
        elif self._route == "/-/served":
            self._send_json(hub.served())
        elif self._route == "/-/faults" and self.command == "GET":
            self._send_json(hub.faults.pending())
        elif self._route == "/-/faults" and self.command == "PUT":
            try:
                hub.faults.replace(parse_faults(json.loads(self._body)))
            except (ValueError, TypeError) as error:
                self._send_json({"error": str(error)}, status=HTTPStatus.BAD_REQUEST)
                return
            self._send_json(hub.faults.pending())
        else:
            self._send_json({"error": "no such path"}, status=HTTPStatus.NOT_FOUND)

    def _hub_interface(self, raw_path: str) -> None:
        """Dispatch on the path as sent: a revision may hold an escaped slash (refs%2Fpr%2F1)."""
        invalid = invalid_credentials(self._token())
        if invalid is not None:
            raise RefusedError(invalid)
        hub = self.server.hub
        if self.command in {"POST", "PUT"}:
            request = WriteRequest(path=raw_path, token=self._token(), body=self._body, base=hub.url)
            answer = hub.writing.answer(request)
            if answer is not None:
                self._send_json(answer.content, status=answer.status, headers=answer.headers)
                return
        if raw_path == "/api/whoami-v2":
            self._send_json(who_am_i(hub.writing.writers, self._token()))
        elif (found := API_PATH.fullmatch(raw_path)) is not None:
            kind: Kind = "models" if found.group(1) == "models" else "datasets"
            self._describe(kind, unquote(found.group(2)), found.group(3) or "", found.group(4) or "")
        elif (found := FILE_PATH.fullmatch(raw_path)) is not None:
            kind = "datasets" if found.group(1) else "models"
            self._check(kind, unquote(found.group(2)), for_content=True)
            revision = self._revision(kind, unquote(found.group(2)), unquote(found.group(3)))
            self._send_file(revision, unquote(found.group(4)))
        else:
            raise RefusedError(Refusal(status=HTTPStatus.NOT_FOUND, code="", message="Sorry, we can't find the page"))

    def _token(self) -> str | None:
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        return token if scheme == "Bearer" and token else None

    def _check(self, kind: Kind, repo: str, *, for_content: bool) -> None:
        """Refuse unless the repository exists and this request's token may read that much of it."""
        hub = self.server.hub
        is_there = bool(hub.repositories.revisions(kind, repo))
        check_reader(hub.restrictions, f"{kind}/{repo}", self._token(), is_there=is_there, for_content=for_content)

    def _revision(self, kind: Kind, repo: str, name: str) -> Revision:
        revision = self.server.hub.repositories.find(kind, repo, name or "main")
        if revision is None:
            message = f"Invalid rev id: {name}"
            raise RefusedError(Refusal(status=HTTPStatus.NOT_FOUND, code="RevisionNotFound", message=message))
        return revision

    def _describe(self, kind: Kind, repo: str, question: str, rest: str) -> None:
        self._check(kind, repo, for_content=question == "auth-check")
        if question == "auth-check":
            self._send_json({})
            return
        if question == "refs":
            self._send_json(reference_records(self.server.hub.repositories.revisions(kind, repo)))
            return
        name, _, folder = rest.partition("/") if question != "revision" else (rest, "", "")
        revision = self._revision(kind, repo, unquote(name))
        if question == "tree":
            is_recursive = self._query.get("recursive", ["false"])[0].lower() in {"true", "1"}
            self._send_json(tree_records(revision, unquote(folder).strip("/"), is_recursive=is_recursive))
        elif question == "paths-info":
            wanted = set(parse_qs(self._body.decode()).get("paths", []))
            self._send_json([file_record(file) for path, file in revision.files.items() if path in wanted])
        else:
            restriction = self.server.hub.restrictions.get(f"{kind}/{repo}")
            self._send_json(repository_record(revision, restriction, with_file_metadata="blobs" in self._query))

    def _send_file(self, revision: Revision, path: str) -> None:
        file = revision.files.get(path)
        headers = {"X-Repo-Commit": revision.commit}
        if file is None:
            message = "Entry not found"
            self._send_refusal(Refusal(status=HTTPStatus.NOT_FOUND, code="EntryNotFound", message=message), headers)
            return
        headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if file.is_lfs:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size_bytes)}
        try:
            part = None if self._whole else parse_range(self.headers.get("Range"), file.size_bytes)
        except ValueError as error:
            headers["Content-Range"] = f"bytes */{file.size_bytes}"
            self._send_json({"error": str(error)}, status=HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers=headers)
            return
        if part is None:
            self._send_head(HTTPStatus.OK, file.size_bytes, headers)
            part = ByteRange(first=0, last=file.size_bytes - 1)
        else:
            headers["Content-Range"] = f"bytes {part.first}-{part.last}/{file.size_bytes}"
            self._send_head(HTTPStatus.PARTIAL_CONTENT, part.last - part.first + 1, headers)
        if self.command == "GET":
            self._send_part(file, part)

    def _send_part(self, file: RepoFile, part: ByteRange) -> None:
        left = part.last - part.first + 1
        allowed = left if self._cut_after_bytes is None else min(left, self._cut_after_bytes)
        with file.location.open("rb") as stream:
            stream.seek(part.first)
            while allowed > 0 and (chunk := stream.read(min(CHUNK_BYTES, allowed))):
                self.wfile.write(self._spoiled(chunk, left - allowed))
                self.server.hub.count(self._route, len(chunk), is_new_request=False)
                allowed -= len(chunk)
        if self._cut_after_bytes is not None:
            self.close_connection = True

    def _spoiled(self, chunk: bytes, position: int) -> bytes:
        """Return the chunk, which begins at `position` of the body, with the byte changed that a fault names."""
        at = -1 if self._flip_byte is None else self._flip_byte - position
        if not 0 <= at < len(chunk):
            return chunk
        return chunk[:at] + bytes([chunk[at] ^ 1]) + chunk[at + 1 :]

    def _send_refusal(self, answer: Refusal, headers: dict[str, str] | None = None) -> None:
        error_headers = {"X-Error-Message": answer.message}
        if answer.code:
            error_headers["X-Error-Code"] = answer.code
        self._send_json({"error": answer.message}, status=answer.status, headers={**error_headers, **(headers or {})})

    def _send_json(
        self, content: object, *, status: int = HTTPStatus.OK, headers: dict[str, str] | None = None
    ) -> None:
        body = json.dumps(content).encode()
        allowed = body if self._cut_after_bytes is None else body[: self._cut_after_bytes]
        self._send_head(status, len(body), {"Content-Type": "application/json; charset=utf-8", **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(allowed)
            self.server.hub.count(self._route, len(allowed), is_new_request=False)
        if self._cut_after_bytes is not None:
            self.close_connection = True

    def _send_head(self, status: int, content_bytes: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(content_bytes)}.items():
            self.send_header(name, value)
        self.end_headers()


def main() -> int:
    """Serve a folder until interrupted."""
    parser = argparse.ArgumentParser(prog="hub.server", description="A developers' stand-in for the Hugging Face Hub.")
    parser.add_argument(
        "--root", type=Path, required=True, help="folder with models/<org>/<name>, datasets/<org>/<name>"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--access", type=Path, help="JSON file that names private and gated repositories")
    given = parser.parse_args()
    restrictions = read_restrictions(given.access) if given.access else {}
    hub = HubServer(given.root, host=given.host, port=given.port, restrictions=restrictions)
    print(f"serving {given.root} at {hub.url}", flush=True)
    try:
        hub.serve_forever()
    except KeyboardInterrupt:
        hub.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
