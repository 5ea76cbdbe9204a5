"""The Hub stand-in by plain HTTP: headers, ranges, refusals, faults and counts."""

import hashlib
import http.client
import json
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from hub.access import Restriction
from hub.answers import parse_range
from hub.faults import Fault, parse_faults
from hub.server import HubServer

if TYPE_CHECKING:
    from collections.abc import Iterator

REPO = "acme/tiny"
CONFIG = '{"model_type": "llama"}\n'
WEIGHTS = bytes(range(256)) * 4096
GATED = {"models/acme/gated": Restriction(visibility="gated", tokens=frozenset({"hf_right"}))}
PRIVATE = {"models/acme/private": Restriction(visibility="private", tokens=frozenset({"hf_right"}))}


def write_repo(folder: Path) -> None:
    """Write a repository with a small text file, a file in a folder and a large one."""
    (folder / "nested" / "deep").mkdir(parents=True)
    (folder / "config.json").write_text(CONFIG)
    (folder / "nested" / "deep" / "note.txt").write_text("hello")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / ".marker").write_text("not part of the repository")


@pytest.fixture
def hub(tmp_path: Path) -> "Iterator[HubServer]":
    """Serve a public, a gated and a private model and a data set."""
    for name in ("models/acme/tiny", "models/acme/gated", "models/acme/private", "datasets/acme/chats"):
        write_repo(tmp_path / "hub" / name)
    write_repo(tmp_path / "hub" / "models/acme/tiny@v2")
    (tmp_path / "hub" / "models/acme/tiny@v2" / "config.json").write_text("{}")
    with HubServer(tmp_path / "hub", restrictions=GATED | PRIVATE).start() as server:
        yield server


def ask(
    hub: HubServer, method: str, path: str, headers: dict[str, str] | None = None, body: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Send one plain request and return (status, headers, body)."""
    address = urlsplit(hub.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=300)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_injected_statuses_happen_as_often_as_asked(hub: HubServer) -> None:
    """A fault waits for `skip` requests, hits `times` of them, and then the real answer comes back."""
    hub.inject(Fault(path="/api/models/*", status=429, headers={"Retry-After": "1"}, skip=1, times=2))
    answers = [ask(hub, "GET", f"/api/models/{REPO}") for _ in range(4)]
    assert [status for status, _, _ in answers] == [200, 429, 429, 200]
    assert answers[1][1]["Retry-After"] == "1"


def test_faults_can_be_set_and_counts_read_over_http(hub: HubServer) -> None:
    """What a test in a cluster cannot reach as an object it can reach by HTTP."""
    faults = json.dumps([{"path": "*/config.json", "status": 503, "times": None}])
    assert ask(hub, "PUT", "/-/faults", body=faults)[0] == 200
    assert ask(hub, "GET", f"/{REPO}/resolve/main/config.json")[0] == 503
    assert ask(hub, "PUT", "/-/faults", body="[]")[0] == 200
    assert ask(hub, "GET", f"/{REPO}/resolve/main/config.json")[2] == CONFIG.encode()
    served = json.loads(ask(hub, "GET", "/-/served")[2])
    assert served[f"/{REPO}/resolve/main/config.json"]["requests"] == 2
    status, _, body = ask(hub, "PUT", "/-/faults", body='[{"path": "*", "colour": 1}]')
    assert status == 400
    assert "known fields are" in json.loads(body)["error"]


def test_a_head_request_tells_size_commit_and_etag_without_a_body(hub: HubServer) -> None:
    """The headers that huggingface_hub builds its cache from are all there."""
    status, headers, body = ask(hub, "HEAD", f"/{REPO}/resolve/main/model.safetensors")
    assert (status, body) == (200, b"")
    assert headers["Content-Length"] == headers["X-Linked-Size"] == str(len(WEIGHTS))
    assert headers["ETag"] == headers["X-Linked-Etag"] == f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
    assert len(headers["X-Repo-Commit"]) == 40


def test_a_range_request_returns_that_part(hub: HubServer) -> None:
    """Ranges answer 206 with the part, and 416 beyond the end."""
    path = f"/{REPO}/resolve/main/model.safetensors"
    status, headers, body = ask(hub, "GET", path, {"Range": "bytes=10-19"})
    assert (status, body) == (206, WEIGHTS[10:20])
    assert headers["Content-Range"] == f"bytes 10-19/{len(WEIGHTS)}"
    assert ask(hub, "GET", path, {"Range": f"bytes={len(WEIGHTS)}-"})[0] == 416


@pytest.mark.parametrize(
    ("header", "want"),
    [
        (None, None),
        ("bytes=0-", (0, 99)),
        ("bytes=40-1000", (40, 99)),
        ("bytes=-5", (95, 99)),
        ("bytes=5-5", (5, 5)),
        ("lines=1-2", None),
    ],
)
def test_a_range_header_is_read_as_http_means_it(header: str | None, want: tuple[int, int] | None) -> None:
    """Open ends, suffixes and units that we do not know."""
    found = parse_range(header, 100)
    assert (None if found is None else (found.first, found.last)) == want


def test_the_commit_follows_the_content(hub: HubServer, tmp_path: Path) -> None:
    """The same files give the same commit; one changed byte gives another."""
    tiny, gated = (hub.repositories.revisions("models", name)[0].commit for name in (REPO, "acme/gated"))
    assert tiny == gated
    (tmp_path / "hub" / "models" / REPO / "config.json").write_text('{"model_type": "other"}\n')
    assert hub.repositories.revisions("models", REPO)[0].commit != tiny


def test_a_fault_must_do_exactly_one_thing() -> None:
    """A rule without an effect, or with two, is refused with a sentence."""
    with pytest.raises(ValueError, match="give one of status, cut_after_bytes, flip_byte and whole"):
        parse_faults([{"path": "*"}])
    with pytest.raises(ValueError, match="give a JSON list"):
        parse_faults({"path": "*"})


@pytest.mark.parametrize(
    ("path", "token", "want"),
    [
        ("/acme/none/resolve/main/config.json", None, (401, "RepoNotFound")),
        ("/acme/none/resolve/main/config.json", "hf_any", (404, "RepoNotFound")),
        ("/acme/gated/resolve/main/config.json", None, (401, "GatedRepo")),
        ("/acme/gated/resolve/main/config.json", "hf_wrong", (403, "GatedRepo")),
        ("/acme/gated/resolve/main/config.json", "hf_right", (200, None)),
        ("/api/models/acme/gated", None, (200, None)),
        ("/api/models/acme/gated/auth-check", None, (401, "GatedRepo")),
        ("/acme/private/resolve/main/config.json", None, (401, "RepoNotFound")),
        ("/acme/private/resolve/main/config.json", "hf_wrong", (404, "RepoNotFound")),
        ("/api/models/acme/private", "hf_right", (200, None)),
        ("/api/models/acme/tiny", "no-token-of-the-hub", (401, None)),
        ("/api/models/acme/tiny/revision/v9", None, (404, "RevisionNotFound")),
        ("/api/models/acme/tiny/tree/main/absent", None, (404, "EntryNotFound")),
        ("/acme/tiny/resolve/main/absent", None, (404, "EntryNotFound")),
        ("/acme/tiny/resolve/main/..%2F..%2Fprivate%2Fconfig.json", None, (404, "EntryNotFound")),
        ("/acme/tiny/resolve/main/.marker", None, (404, "EntryNotFound")),
        ("/datasets/acme/tiny/resolve/main/config.json", None, (401, "RepoNotFound")),
    ],
)
def test_a_request_is_refused_with_the_status_and_code_of_the_hub(
    hub: HubServer, path: str, token: str | None, want: tuple[int, str | None]
) -> None:
    """Restricted, unknown and hidden things, with no token, a wrong one and the right one."""
    status, headers, _ = ask(hub, "GET", path, {"Authorization": f"Bearer {token}"} if token else {})
    assert (status, headers.get("X-Error-Code")) == want


def test_a_cut_answer_ends_before_its_announced_length(hub: HubServer) -> None:
    """The announced length stays the true one, as when a connection breaks."""
    hub.inject(Fault(path="*/model.safetensors", cut_after_bytes=1000))
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(hub, "GET", f"/{REPO}/resolve/main/model.safetensors")
    assert caught.value.partial == WEIGHTS[:1000]
    assert caught.value.expected == len(WEIGHTS) - 1000
