"""Results in a Hub's repositories, against a stand-in that speaks its protocol for uploads."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from tests.trainer.test_manifest import make_manifest, write_adapter

from hub.faults import Fault
from hub.server import HubServer
from lora_trainer.errors import AccessDeniedError, ConfigError, StorageError, TrainerError, TransientError
from lora_trainer.spec.names import run_suffix
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.uri import HubUri
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.manifest import check_digests, manifest_digest, read_manifest, write_sealed
from lora_trainer.storage.publisher_hub import HubPublisher
from lora_trainer.storage.sealed import MANIFEST

# The Hub's client hands files to its HTTP library in a way that this library would rather have named otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TOKEN = "hf_writer"
REPO = "acme/tone"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty Hub; the client speaks plain HTTP to it, as with a Hub of one's own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    (tmp_path / "hub").mkdir()
    writers = {TOKEN: frozenset({"acme"}), "hf_reader": frozenset[str]()}
    with HubServer(tmp_path / "hub", writers=writers).start() as hub:
        yield hub


def publisher(server: HubServer, uid: str = "uid-1", *, repo: str = REPO, **environment: str) -> HubPublisher:
    """The output of a run that does not really wait."""
    variables = {"HF_ENDPOINT": server.url, "OUTPUT_HF_TOKEN": TOKEN, **environment}
    hub = Hub(environment=variables, sleep=lambda seconds: None)
    return HubPublisher(hub=hub, uri=HubUri(repo=repo), uid=uid, run_name="tone")


def stored(server: HubServer, repo: str = REPO) -> set[str]:
    """The files of a repository."""
    revision = server.repositories.find("models", repo, "main")
    return set(revision.files) if revision else set()


def sent(server: HubServer, method_path: str) -> int:
    """Requests whose path holds a text."""
    return sum(count["requests"] for path, count in server.served().items() if method_path in path)


def test_a_result_becomes_one_commit_of_a_private_repository(server: HubServer, tmp_path: Path) -> None:
    """Made where it is missing, whole at its commit, found again and brought back."""
    publisher(server).check()
    assert stored(server) == set()
    folder = write_adapter(tmp_path / "staged")
    assert publisher(server).published() is None
    published = publisher(server).publish(folder)
    revision = server.repositories.find("models", REPO, "main")
    assert revision is not None
    assert published.uri == f"hf://{REPO}@{revision.commit}"
    assert published.digest == manifest_digest(folder)
    assert stored(server) == {".gitattributes", "adapter_model.safetensors", "merged/model.safetensors", MANIFEST}
    assert server.restrictions[f"models/{REPO}"].visibility == "private"
    assert sent(server, "/commit/") == 1
    assert publisher(server).published() == published
    assert publisher(server, "uid-2").published() is None
    (tmp_path / "back").mkdir()
    publisher(server).fetch(published, tmp_path / "back")
    check_digests(tmp_path / "back", read_manifest(tmp_path / "back"))


def test_publishing_again_makes_no_second_commit(server: HubServer, tmp_path: Path) -> None:
    """Nothing has changed."""
    folder = write_adapter(tmp_path / "staged")
    first = publisher(server).publish(folder)
    assert publisher(server).publish(folder) == first
    assert sent(server, "/commit/") == 1


def test_a_repository_with_something_in_it_is_left_alone(server: HubServer, tmp_path: Path) -> None:
    """Another's model stays, and a second run gets a repository of its own; a third finds both taken."""
    first = publisher(server, "uid-1").publish(write_adapter(tmp_path / "a", "uid-1"))
    own = f"{REPO}-{run_suffix('uid-2')}"
    second = publisher(server, "uid-2").publish(write_adapter(tmp_path / "b", "uid-2"))
    assert second.uri.startswith(f"hf://{own}@")
    assert publisher(server, "uid-1").published() == first
    assert publisher(server, "uid-2").published() == second
    for repo in ("acme/mine", f"acme/mine-{run_suffix('uid-3')}"):
        (tmp_path / "hub/models" / repo).mkdir(parents=True)
        (tmp_path / "hub/models" / repo / "README.md").write_text("precious")
    with pytest.raises(StorageError, match="both hold something already: nothing is overwritten"):
        publisher(server, "uid-3", repo="acme/mine").check()


@pytest.mark.parametrize("early", [False, True], ids=["it was empty", "it was missing"])
def test_of_two_runs_that_publish_at_once_each_has_a_repository(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, early: bool
) -> None:
    """The second had found room before the first committed."""
    commit, create, first = HubPublisher._commit, HfApi.create_repo, write_adapter(tmp_path / "a", "uid-1")
    between = [lambda: publisher(server, "uid-1").publish(first)]

    def late(run: HubPublisher, *given: Any) -> str:
        if between:
            between.pop()()
        return commit(run, *given)

    def late_to_make(*given: Any, **more: Any) -> Any:
        if between:
            between.pop()()
        return create(*given, **more)

    if early:
        monkeypatch.setattr(HfApi, "create_repo", late_to_make)
    else:
        monkeypatch.setattr(HubPublisher, "_commit", late)
    second = publisher(server, "uid-2").publish(write_adapter(tmp_path / "b", "uid-2"))
    assert second.uri.startswith(f"hf://{REPO}-{run_suffix('uid-2')}@")
    assert second.digest == manifest_digest(tmp_path / "b")
    (tmp_path / "back").mkdir()
    published = publisher(server, "uid-1").published()
    assert published is not None
    publisher(server, "uid-1").fetch(published, tmp_path / "back")
    check_digests(tmp_path / "back", read_manifest(tmp_path / "back"))
    assert manifest_digest(tmp_path / "back") == manifest_digest(first)


def test_an_empty_repository_is_taken(server: HubServer, tmp_path: Path) -> None:
    """Somebody made it beforehand, perhaps public."""
    server.uploads.create(REPO)
    assert publisher(server).publish(write_adapter(tmp_path / "staged")).uri.startswith(f"hf://{REPO}@")
    assert f"models/{REPO}" not in server.restrictions


def test_a_part_that_fails_is_sent_again(server: HubServer, tmp_path: Path) -> None:
    """500 on the second of three parts; the others are sent once."""
    folder = write_adapter(tmp_path / "staged")
    (folder / "adapter_model.safetensors").write_bytes(os.urandom(5 * 2**19))
    (folder / MANIFEST).unlink()
    write_sealed(folder, make_manifest("uid-1"))
    server.inject(Fault(path="/lfs/*/part/2", method="PUT", status=500))
    assert publisher(server).publish(folder).digest == manifest_digest(folder)
    assert [sent(server, f"/part/{n}") for n in (2, 3)] == [2, 1]


def test_a_commit_that_fails_leaves_nothing_half_and_is_made_by_the_next_attempt(
    server: HubServer, tmp_path: Path
) -> None:
    """The large files have arrived and are not sent again."""
    folder = write_adapter(tmp_path / "staged")
    server.inject(Fault(path="*/commit/*", method="POST", status=500, times=None))
    with pytest.raises(StorageError, match=r"the Hub answered 500.*nothing is lost") as caught:
        publisher(server).publish(folder)
    assert (caught.value.code, caught.value.reason) == (74, Reason.UPLOAD_FAILED)
    assert stored(server) == {".gitattributes"}
    parts = sent(server, "/part/")
    server.faults.replace([])
    publisher(server).publish(folder)
    assert MANIFEST in stored(server)
    assert sent(server, "/part/") == parts


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_revoked_before_the_end_is_denied(server: HubServer, tmp_path: Path, status: int) -> None:
    """77; the result stays where it was."""
    folder = write_adapter(tmp_path / "staged")
    server.inject(Fault(path="*/commit/*", method="POST", status=status, times=None))
    with pytest.raises(
        AccessDeniedError, match=rf"answered {status} \(injected fault\); name in output\.secretRef"
    ) as caught:
        publisher(server).publish(folder)
    assert caught.value.reason is Reason.OUTPUT_ACCESS_DENIED
    assert "hf_" not in str(caught.value)
    assert (folder / MANIFEST).is_file()


FULL = "Private repository storage limit reached, please upgrade your plan"


@pytest.mark.parametrize(
    ("status", "said", "kind", "reason", "sentence"),
    [
        (403, FULL, StorageError, Reason.STORAGE_FULL, f"no room for it, 403 ({FULL} injected fault); free space"),
        (403, "Your storage patterns tripped", StorageError, Reason.STORAGE_FULL, "raise the quota there"),
        (507, "", StorageError, Reason.STORAGE_FULL, "the Hub has no room for it, 507 (injected fault)"),
        (400, "Invalid metadata in README.md.", StorageError, Reason.UPLOAD_FAILED, "refuses what is uploaded, 400 (I"),
        (413, "Too large", StorageError, Reason.UPLOAD_FAILED, "refuses what is uploaded, 413 (Too large"),
        (422, "x" * 999, StorageError, Reason.UPLOAD_FAILED, f"refuses what is uploaded, 422 ({'x' * 200})"),
        (429, "quota of requests", StorageError, Reason.UPLOAD_FAILED, "answered 429 (quota of requests"),
        (503, "", StorageError, Reason.UPLOAD_FAILED, "check HF_ENDPOINT, proxy and network"),
        (403, f"hf_{'a' * 34} lacks it", AccessDeniedError, Reason.OUTPUT_ACCESS_DENIED, "403 (hf_… lacks it"),
    ],
)
def test_why_the_hub_refuses_an_upload_is_told_in_its_own_words(
    server: HubServer,
    tmp_path: Path,
    *,
    status: int,
    said: str,
    kind: type[TrainerError],
    reason: Reason,
    sentence: str,
) -> None:
    """What a full account refuses, another attempt may upload; no token of another kind would help."""
    headers = {"X-Error-Message": said} if said else {}
    server.inject(Fault(path="*/commit/*", method="POST", status=status, headers=headers, times=None))
    with pytest.raises(kind) as caught:
        publisher(server).publish(write_adapter(tmp_path / "staged"))
    assert caught.value.reason is reason
    assert sentence in str(caught.value)
    assert "a" * 34 not in str(caught.value)
    assert ("proxy" in str(caught.value)) is (status == 503)


def test_what_the_hub_holds_is_compared_with_what_was_sent(server: HubServer, tmp_path: Path) -> None:
    """A changed byte in the Hub's description or in the manifest is found."""
    folder = write_adapter(tmp_path / "staged")
    server.inject(Fault(path=f"/{REPO}/resolve/*/{MANIFEST}", method="GET", flip_byte=40))
    with pytest.raises(StorageError, match=r"manifest\.json at commit .* reads back with other bytes") as caught:
        publisher(server).publish(folder)
    assert caught.value.reason is Reason.UPLOAD_FAILED
    weights = tmp_path / "hub/models/acme/tone/adapter_model.safetensors"
    weights.write_bytes(b"weights of uid-X")
    revision = server.repositories.find("models", REPO, "main")
    assert revision is not None
    with pytest.raises(StorageError, match=r"holds another adapter_model\.safetensors at commit"):
        publisher(server)._check(HubUri(repo=REPO), revision.commit, folder)


@pytest.mark.parametrize(
    ("environment", "repo", "kind", "sentence"),
    [
        ({"OUTPUT_HF_TOKEN": ""}, REPO, AccessDeniedError, "takes nothing without a token; name in output.secretRef"),
        ({"OUTPUT_HF_TOKEN": "hf_unknown"}, REPO, AccessDeniedError, "the Hub answered 401 (Invalid username"),
        ({"OUTPUT_HF_TOKEN": "hf_reader"}, REPO, AccessDeniedError, "may only read; make one that may write"),
        (
            {},
            "other/tone",
            AccessDeniedError,
            "is of tester, who is not a member of it; write to hf://tester/tone, or take",
        ),
        ({"HF_HUB_OFFLINE": "1"}, REPO, ConfigError, "the Hub may not be asked (HF_HUB_OFFLINE)"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, REPO, TransientError, "the Hub cannot be reached"),
    ],
)
def test_an_output_that_cannot_be_written_is_reported_before_the_training(
    *, server: HubServer, environment: dict[str, str], repo: str, kind: type[TrainerError], sentence: str
) -> None:
    """No token, a wrong one, one that may only read, no Hub."""
    with pytest.raises(kind) as caught:
        publisher(server, repo=repo, **environment).check()
    assert sentence in str(caught.value)
    assert "hf_" not in str(caught.value)
    assert stored(server) == set()


def test_a_repository_of_another_organisation_is_denied(server: HubServer, tmp_path: Path) -> None:
    """When it should be made."""
    with pytest.raises(AccessDeniedError, match=r"answered 403 \(Forbidden: you don't have the rights") as caught:
        publisher(server, repo="other/tone").publish(write_adapter(tmp_path / "staged"))
    assert caught.value.reason is Reason.OUTPUT_ACCESS_DENIED
