"""What comes out of the pod of `pull`, and where it goes."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_client.errors import ClientError
from lora_client.in_pod import files
from lora_client.verbs.pull import Source, fetch, require_new


class Program:
    """The pods' program as a process here."""

    def __init__(self, folder: Path) -> None:
        source = Path(files.__file__).read_text()
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", source, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def line(self, timeout_s: float) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip(b"\n")

    def bytes(self, count: int, timeout_s: float) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.read(count)


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A small result on a claim."""
    folder = tmp_path / "claim" / "tone-abcde"
    (folder / "deep").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "deep" / "train.log").write_text("step 1/2  loss 2.0\n")
    (folder / ".run").write_text("uid")
    entries = [
        {
            "path": name,
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            "size_bytes": (folder / name).stat().st_size,
        }
        for name in ("adapter_model.safetensors", "deep/train.log")
    ]
    (folder / "manifest.json").write_text(json.dumps({"version": "x", "files": entries}))
    return folder


@pytest.fixture
def source(result: Path) -> Iterator[Source]:
    """The program, at that folder."""
    program = Program(result)
    yield program
    with program.process as process:
        assert process.stdin is not None
        process.stdin.close()


def digest(folder: Path) -> str:
    """As the status has it."""
    return f"sha256:{hashlib.sha256((folder / 'manifest.json').read_bytes()).hexdigest()}"


def test_a_result_arrives_whole(result: Path, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts, every byte of it, and nothing beside it."""
    monkeypatch.setattr("lora_client.verbs.pull.CHUNK", 1000)
    said: list[str] = []
    fetch(source, tmp_path / "here" / "tone", digest(result), said.append)
    assert (tmp_path / "here" / "tone" / "deep" / "train.log").read_text() == "step 1/2  loss 2.0\n"
    copied = {
        p.relative_to(tmp_path / "here" / "tone").as_posix() for p in (tmp_path / "here").rglob("*") if p.is_file()
    }
    assert copied == {"adapter_model.safetensors", "deep/train.log", "manifest.json"}
    assert said == ["Copying 2 files, 10 KiB"]


def corrupt_weights(folder: Path) -> None:
    """One bit."""
    data = bytearray((folder / "adapter_model.safetensors").read_bytes())
    data[77] ^= 1
    (folder / "adapter_model.safetensors").write_bytes(data)


def rewrite_all(folder: Path) -> None:
    """Weights, and a manifest that fits them."""
    (folder / "adapter_model.safetensors").write_bytes(b"evil")
    entry = {"path": "adapter_model.safetensors", "sha256": hashlib.sha256(b"evil").hexdigest(), "size_bytes": 4}
    (folder / "manifest.json").write_text(json.dumps({"files": [entry]}))


@pytest.mark.parametrize(
    ("damage", "want"),
    [
        (corrupt_weights, "adapter_model.safetensors has another sha256"),
        (rewrite_all, "manifest.json has the digest"),
        (lambda folder: (folder / "deep" / "train.log").unlink(), "train.log is missing"),
        (lambda folder: (folder / "deep" / "train.log").write_text("x"), "train.log has 1 bytes instead of 19"),
        (lambda folder: (folder / "added.py").write_text("x"), "added.py was added"),
        (lambda folder: (folder / "manifest.json").unlink(), "There is no manifest.json"),
    ],
)
def test_a_result_that_was_changed_is_refused_and_nothing_is_kept(
    result: Path, source: Source, tmp_path: Path, damage: Any, want: str
) -> None:
    """Whoever changed what after the run."""
    reported = digest(result)
    damage(result)
    with pytest.raises(ClientError, match=want):
        fetch(source, tmp_path / "tone", reported, lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["claim"]


@pytest.mark.parametrize(
    "path",
    [
        *("../evil", "/etc/passwd", "a/../../b", "", ".", "a//b", "a\\b", "a\0b", "x\n", "deep./x", "deep /x"),
        *("C:/Users/x/Startup/a.bat", "D:evil", "a.log:stream", "NUL", "deep/con.txt", "Com1", "lpt¹.log", "aux .x/y"),
    ],
)
def test_a_manifest_cannot_write_elsewhere(result: Path, source: Source, tmp_path: Path, path: str) -> None:
    """However it came by such a name."""
    (result / "manifest.json").write_text(json.dumps({"files": [{"path": path, "sha256": "x", "size_bytes": 1}]}))
    (result / "adapter_model.safetensors").unlink()
    (result / "deep" / "train.log").unlink()
    with pytest.raises(ClientError, match="leads out of the adapter's folder"):
        fetch(source, tmp_path / "tone", digest(result), lambda _: None)


@pytest.mark.parametrize("name", ["console.json", ".hidden", "nullable", "com10", "auxiliary/con-fig", "ä b..c.py"])
def test_an_ordinary_name_is_copied(result: Path, source: Source, tmp_path: Path, name: str) -> None:
    """Also one that resembles a device's."""
    (result / name).parent.mkdir(exist_ok=True)
    (result / name).write_text("x")
    entry = {"path": name, "sha256": hashlib.sha256(b"x").hexdigest(), "size_bytes": 1}
    manifest = json.loads((result / "manifest.json").read_text())
    (result / "manifest.json").write_text(json.dumps({"files": [*manifest["files"], entry]}))
    fetch(source, tmp_path / "tone", digest(result), lambda _: None)
    assert (tmp_path / "tone" / name).read_text() == "x"


def test_two_names_of_one_file_are_refused(
    result: Path, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where letters' case does not count: the second would replace the first, whose digest was checked."""
    (result / "README.md").write_text("x")
    (result / "readme.md").write_text("y")
    entries = [
        {"path": name, "sha256": hashlib.sha256(text).hexdigest(), "size_bytes": 1}
        for name, text in (("README.md", b"x"), ("readme.md", b"y"))
    ]
    manifest = json.loads((result / "manifest.json").read_text())
    (result / "manifest.json").write_text(json.dumps({"files": [*manifest["files"], *entries]}))
    opened, reported = Path.open, digest(result)

    def without_case(path: Path, *mode: Any, **rest: Any) -> Any:
        return opened(path.with_name(path.name.lower()), *mode, **rest)

    monkeypatch.setattr(Path, "open", without_case)
    with pytest.raises(ClientError, match="cannot be written"):
        fetch(source, tmp_path / "tone", reported, lambda _: None)
    assert not (tmp_path / "tone").exists()


def test_the_program_hands_out_nothing_beside_its_folder(result: Path, source: Source) -> None:
    """Neither by a name nor by a link."""
    (result.parent / "secret").write_text("x")
    (result / "link").symlink_to(result.parent / "secret")
    for name in ("../secret", "link", "/etc/passwd", "none"):
        source.write(json.dumps({"read": name, "from": 0, "bytes": 9}).encode() + b"\n")
        assert "error" in json.loads(source.line(1)), name
    assert "link" not in dict(files.listed(result))
    for junk in (b"[]\n", b"{}\n", b"\xff\n"):
        source.write(junk)
        assert "error" in json.loads(source.line(1))


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    """An empty one is taken."""
    require_new(tmp_path)
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ClientError, match="exists already"):
        require_new(tmp_path)
    with pytest.raises(ClientError, match="exists already"):
        require_new(tmp_path / "mine")


def test_a_folder_that_cannot_be_made_is_refused_before_any_pod_starts(tmp_path: Path) -> None:
    """Below a file, by a name that is too long, in the place of a link that leads nowhere."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "none")
    for folder in (tmp_path / "file" / "deep" / "tone", tmp_path / ("x" * 300), tmp_path / "link", Path("/proc/tone")):
        with pytest.raises(ClientError, match="name another folder"):
            require_new(folder)


@pytest.mark.parametrize("beside", ["tone.partial", ".tone", "tone-2"])
def test_what_lies_beside_the_folder_is_left_alone(result: Path, source: Source, tmp_path: Path, beside: str) -> None:
    """Whatever its name."""
    here = tmp_path / "here"
    (here / beside).mkdir(parents=True)
    (here / beside / "thesis.txt").write_text("years")
    fetch(source, here / "tone", digest(result), lambda _: None)
    assert (here / beside / "thesis.txt").read_text() == "years"
    assert {path.name for path in here.iterdir()} == {beside, "tone"}


def test_two_that_pull_to_one_folder_leave_one_whole_result(
    result: Path, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes second is told, and takes nothing away from the first."""
    target, read = tmp_path / "tone", source.bytes

    def bytes_once_another_pulled(count: int, timeout_s: float) -> bytes:
        if not target.exists() and (count, timeout_s) != first:
            other = Program(result)
            fetch(other, target, digest(result), lambda _: None)
            other.process.communicate()
        return read(count, timeout_s)

    first = ((result / "manifest.json").stat().st_size, 120.0)
    monkeypatch.setattr(source, "bytes", bytes_once_another_pulled)
    with pytest.raises(ClientError, match="tone exists already"):
        fetch(source, target, digest(result), lambda _: None)
    assert {path.name for path in target.iterdir()} == {"adapter_model.safetensors", "deep", "manifest.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"claim", "tone"}


@pytest.mark.parametrize("name", [".", "../empty", ""])
def test_an_empty_folder_stays_the_same_folder(
    result: Path, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It may be the one that the shell is in, or where a volume is mounted."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    before = Path.cwd().stat().st_ino
    require_new(Path(name))
    fetch(source, Path(name), digest(result), lambda _: None)
    assert (tmp_path / "empty").stat().st_ino == before
    assert {path.name for path in Path.cwd().iterdir()} == {"adapter_model.safetensors", "deep", "manifest.json"}


def test_a_result_that_meets_anothers_files_is_not_kept(result: Path, source: Source, tmp_path: Path) -> None:
    """A folder that was empty when the copy began."""
    (tmp_path / "tone").mkdir()

    def another_writes(_: str) -> None:
        (tmp_path / "tone" / "mine").write_text("x")

    with pytest.raises(ClientError, match="exists already"):
        fetch(source, tmp_path / "tone", digest(result), another_writes)
    assert [path.name for path in (tmp_path / "tone").iterdir()] == ["mine"]
