"""A result on a claim: it appears whole or not at all, and nothing is overwritten."""

import errno
from pathlib import Path

import pytest
from tests.trainer.test_manifest import write_adapter

from lora_trainer.errors import ConfigError, StorageError, VerificationError
from lora_trainer.spec.names import run_suffix
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.uri import ClaimUri
from lora_trainer.storage import publisher_claim, sealed
from lora_trainer.storage.publisher_claim import ClaimPublisher, output_path
from lora_trainer.storage.sealed import MANIFEST
from lora_trainer.storage.volumes import Volumes

FILES = ["adapter_model.safetensors", MANIFEST, "merged"]
URI = ClaimUri(claim="adapters", path="team/out")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A mounted claim."""
    (tmp_path / "adapters").mkdir()
    return tmp_path


def publisher(root: Path, uid: str = "uid-1", *, keep: bool = False) -> ClaimPublisher:
    """The place of a run."""
    return ClaimPublisher(uri=URI, path=output_path(URI, Volumes(claims=root)), uid=uid, keep=keep)


def staged(root: Path, uid: str = "uid-1") -> Path:
    """A finished adapter elsewhere on the claim."""
    return write_adapter(root / f"adapters/.lora-checkpoints/tiny-{uid}/staged", uid)


def publish(root: Path, uid: str = "uid-1") -> Path:
    """Stage and publish; the folder of the result."""
    return Path(str(publisher(root, uid).publish(staged(root, uid)).folder))


def names(folder: Path) -> list[str]:
    """What is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_an_adapter_appears_whole_where_it_was_asked_for(root: Path) -> None:
    """The folder is made with its parents; nothing stays where it was, nothing hidden stays behind."""
    publisher(root).check()
    folder = staged(root)
    assert not (root / "adapters/team/out").exists()
    published = publisher(root).publish(folder)
    assert (published.uri, published.folder) == (str(URI), str(root / "adapters/team/out"))
    assert published.digest.startswith("sha256:")
    assert names(root / "adapters/team/out") == FILES
    assert names(root / "adapters/team") == ["out"]
    assert not folder.exists()


def test_a_kept_folder_is_copied(root: Path) -> None:
    """Somebody's own folder stays where it is."""
    folder = write_adapter(root / "mine")
    published = publisher(root, keep=True).publish(folder)
    assert names(folder) == names(Path(str(published.folder)))
    assert names(root / "adapters/team") == ["out"]


def test_a_result_of_another_volume_is_copied_and_compared(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename does not cross volumes; a copy with a changed byte is not published."""
    rename = Path.rename

    def across(self: Path, target: Path) -> Path:
        if self.name == "staged":
            raise OSError(18, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", across)
    assert names(publish(root)) == FILES
    damaged = staged(root, "uid-2")
    (damaged / "adapter_model.safetensors").write_bytes(b"weights of uid-3")
    with pytest.raises(VerificationError, match="has sha256"):
        publisher(root, "uid-2").publish(damaged)
    assert names(root / "adapters/team") == ["out"]


def test_a_copy_that_the_disk_gives_back_otherwise_is_not_published(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read from the disk, and not from what the system remembers of the write."""

    def spoilt(path: Path) -> None:
        if path.name == "model.safetensors":
            path.write_bytes(b"Merged")

    monkeypatch.setattr(sealed, "_forget", spoilt)
    with pytest.raises(VerificationError, match=r"merged/model\.safetensors has sha256"):
        publisher(root, keep=True).publish(write_adapter(root / "mine"))
    assert names(root / "adapters/team") == []


@pytest.mark.parametrize("crosses", [False, True])
def test_a_try_that_failed_once_the_result_was_there_is_not_a_second_result(
    root: Path, monkeypatch: pytest.MonkeyPatch, *, crosses: bool
) -> None:
    """Such as by a server of files that hangs when the folder is synchronized."""
    tries: list[Path] = []

    def synced(folder: Path) -> None:
        tries.append(folder)
        if len(tries) == 1:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(publisher_claim, "sync", synced)
    if crosses:
        monkeypatch.setattr(publisher_claim, "_moved", lambda *_: False)
    folder = staged(root)
    with pytest.raises(StorageError, match="Input/output error"):
        publisher(root).publish(folder)
    assert publisher(root).publish(folder).uri == str(URI)
    assert names(root / "adapters/team") == ["out"]


def test_an_empty_folder_is_taken(root: Path) -> None:
    """Somebody made the folder beforehand."""
    (root / "adapters/team/out").mkdir(parents=True)
    assert publish(root) == root / "adapters/team/out"


def test_a_second_run_gets_a_folder_of_its_own(root: Path) -> None:
    """The first adapter stays as it was."""
    first, second = publish(root, "uid-1"), publish(root, "uid-2")
    assert second == root / f"adapters/team/out-{run_suffix('uid-2')}"
    assert (second / "adapter_model.safetensors").read_bytes() == b"weights of uid-2"
    assert (first / "adapter_model.safetensors").read_bytes() == b"weights of uid-1"


def test_nothing_is_overwritten_when_both_names_are_taken(root: Path) -> None:
    """The sentence names both, and the result stays where it is."""
    for name in ("out", f"out-{run_suffix('uid-1')}"):
        (root / "adapters/team" / name).mkdir(parents=True)
        (root / "adapters/team" / name / "precious").write_text("x", encoding="utf-8")
    folder = staged(root)
    with pytest.raises(StorageError, match=r"both hold something already: nothing is overwritten"):
        publisher(root).publish(folder)
    assert names(folder) == FILES
    assert names(root / "adapters/team/out") == ["precious"]


def test_an_adapter_that_this_run_published_is_found_again(root: Path) -> None:
    """At either name; another run's is not ours."""
    publish(root, "uid-1")
    second = publish(root, "uid-2")
    for uid, folder in (("uid-1", root / "adapters/team/out"), ("uid-2", second)):
        found = publisher(root, uid).published()
        assert found is not None
        assert found.folder == str(folder)
    assert publisher(root, "uid-3").published() is None


@pytest.mark.parametrize("keep", [True, False])
def test_what_a_killed_attempt_of_this_run_left_is_removed_and_nothing_else(root: Path, *, keep: bool) -> None:
    """Half a copy by this run's name; another run's, which may be at work, stays."""
    for uid in ("uid-1", "uid-2"):
        half = root / f"adapters/team/.out.{run_suffix(uid)}.partial"
        half.mkdir(parents=True)
        (half / MANIFEST).write_text("half", encoding="utf-8")
    if keep:
        publisher(root, keep=True).publish(write_adapter(root / "mine"))
    else:
        publisher(root).check()
    assert names(root / "adapters/team") == [f".out.{run_suffix('uid-2')}.partial", *(["out"] if keep else [])]


def test_a_link_in_the_output_is_refused(root: Path, tmp_path: Path) -> None:
    """It could lead out of the claim."""
    (root / "adapters/team").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="symbolic link 'team'"):
        publisher(root)


def test_a_missing_claim_is_a_storage_error(tmp_path: Path) -> None:
    """It is named."""
    with pytest.raises(StorageError, match="the claim adapters is not mounted"):
        publisher(tmp_path)


def test_a_file_in_place_of_a_folder_is_reported_before_the_training(root: Path) -> None:
    """The parent of the output is a file."""
    (root / "adapters/team").write_text("x", encoding="utf-8")
    with pytest.raises(StorageError, match=r"output\.uri pvc://adapters/team/out cannot be written") as caught:
        publisher(root).check()
    assert caught.value.reason is Reason.STORAGE_ERROR
    assert names(root / "adapters") == ["team"]
