"""hack/release: who signs, what oras and cosign are asked to do, and that no password is written down."""

import argparse
import json
import re
import shlex
from base64 import b64encode
from contextlib import nullcontext
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
import yaml
from tests.unit.releases import LOWER, ORIGIN, image_in

from localcluster import images, packages, space
from localcluster.console import Console
from localcluster.errors import ClusterError
from lora_trainer.spec.release import RELEASE
from releasing import artifacts, build, cli, publish
from releasing.errors import ReleaseError
from releasing.layout import Layout
from releasing.signing import Cosign, Identity, Key, PublicKey

WORKFLOW = Path(__file__).parents[2] / ".github" / "workflows" / "release.yaml"
IDENTITY = Identity(subject="https://example.com/w@refs/tags/v1", issuer="https://issuer.example.com")


def options(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"key": "", "keyless": False, "identity": "", "issuer": "", **given})


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        pytest.param({}, {}, None, id="a trial"),
        pytest.param({}, {"COSIGN_PASSWORD": "p"}, None, id="a password without a key"),
        pytest.param({"key": "k"}, {"COSIGN_PASSWORD": "p"}, Key(reference="k", password="p"), id="a key"),
        pytest.param({"key": "k"}, {"COSIGN_PASSWORD": ""}, Key(reference="k", password=""), id="without a password"),
        pytest.param(
            {"keyless": True, "identity": IDENTITY.subject, "issuer": IDENTITY.issuer}, {}, IDENTITY, id="keyless"
        ),
    ],
)
def test_who_signs(given: dict[str, object], environment: dict[str, str], expected: Key | Identity | None) -> None:
    """A key, a workflow, or a key that is made for a trial."""
    assert cli.signer(options(**given), environment) == expected


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        pytest.param({"key": "k"}, "password in COSIGN_PASSWORD", id="cosign would ask the terminal"),
        pytest.param({"keyless": True}, "give both", id="nobody could verify it"),
        pytest.param({"keyless": True, "identity": "i"}, "give both", id="no issuer"),
    ],
)
def test_a_signer_that_lacks_something_is_refused(given: dict[str, object], sentence: str) -> None:
    """Before anything is built."""
    with pytest.raises(ReleaseError, match=sentence):
        cli.signer(options(**given), {})


def test_only_a_key_signs_without_a_log(tmp_path: Path) -> None:
    """A signature without a key is worth what the transparency log says of it."""
    key, public = Key(reference="k", password="p"), PublicKey(path=tmp_path)
    assert "--tlog-upload=false" in key.signs()
    assert "--insecure-ignore-tlog=true" in public.trusts()
    assert not [one for one in (*IDENTITY.signs(), *IDENTITY.trusts()) if "tlog" in one]


def test_a_password_is_in_no_command_and_in_no_log(tmp_path: Path) -> None:
    """It reaches cosign by the environment."""
    program, log = tmp_path / "cosign", tmp_path / "log"
    program.write_text('#!/bin/sh\necho "$@" >&2\nprintf %s "$COSIGN_PASSWORD"\n')
    program.chmod(0o755)
    cosign = Cosign(program=program, log=log)
    assert cosign.public_key(Key(reference="k", password="hunter2")) == "hunter2"
    assert log.read_text() == "$ cosign public-key --key k\npublic-key --key k\n"


@pytest.mark.parametrize(
    ("prints", "status", "sentence"),
    [
        pytest.param(True, 0, "", id="verified"),
        pytest.param(True, 1, "has no valid signature for .* by --key", id="refused"),
        pytest.param(False, 0, "not one statement", id="verified nothing"),
    ],
)
def test_a_statement_counts_if_cosign_verified_it(tmp_path: Path, prints: bool, status: int, sentence: str) -> None:
    """It exits with 0, and prints it."""
    layout, image = image_in(tmp_path / "l", LOWER)
    signed = b64encode(artifacts.statement(image, artifacts.SIGNED, {"a": 1})).decode()
    program = tmp_path / "cosign"
    printed = json.dumps({"payload": signed}) if prints else ""
    program.write_text(f"#!/bin/sh\nprintf %s '{printed}'\nexit {status}\n")
    program.chmod(0o755)
    cosign = Cosign(program=program, log=tmp_path / "log")
    with pytest.raises(ReleaseError, match=sentence) if sentence else nullcontext():
        assert cosign.verified(layout, image, artifacts.SIGNED, PublicKey(path=tmp_path)) == {"a": 1}


def test_images_are_built_on_a_base_of_the_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The day in UTC, of the machine that makes the release."""
    days = []

    def build_all(_names: object, builder: images.LocalBuilder) -> dict[str, str]:
        days.append(builder.day)
        raise ReleaseError("enough")

    monkeypatch.setattr(packages, "ensure", lambda *_arguments: None)
    monkeypatch.setattr(space, "require", lambda *_arguments: None)
    monkeypatch.setattr(images, "build_all", build_all)
    maker = build.Maker(
        layout=Layout(folder=tmp_path / "layout"),
        origin=ORIGIN,
        cosign=Cosign(program=tmp_path, log=tmp_path / "log"),
        signer=IDENTITY,
        cache=tmp_path,
        console=Console(),
        registry="",
        source="",
    )
    before = datetime.now(tz=UTC).date()
    with pytest.raises(ReleaseError, match="enough"):
        maker.make()
    assert before <= date.fromisoformat(days[0]) <= datetime.now(tz=UTC).date()


@pytest.mark.parametrize("given", ["", "ghcr.io/Team", "https://r.example.com/team", "r.example.com/team:1.0"])
def test_a_registry_that_takes_no_release_is_refused_at_once(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the workflow's variable, too, which may not be set: not after an hour, with signatures in the public log."""
    for command in (["build", f"--registry={given}", "--source=s"], ["publish", given]):
        with pytest.raises(SystemExit):
            cli.parser().parse_args(command)
        assert "must be a registry and a path in lower case" in capsys.readouterr().err
    for good in ("registry.example.com", "ghcr.io/team", "localhost:5000/a/b_c/"):
        assert cli.parser().parse_args(["publish", good]).registry == good


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for a release, and a cosign that need not be compiled for it."""
    monkeypatch.setattr(cli, "_cosign", lambda _console: Cosign(program=tmp_path / "cosign", log=tmp_path / "log"))
    return tmp_path


def test_a_trial_is_not_published(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody has its key; on a registry without TLS one may try how it would be."""
    (built / "trial").touch()
    assert cli.main(["publish", "registry.example.com", "--output", str(built)]) == 1
    assert "is a trial, whose key is gone" in capsys.readouterr().err


def test_a_check_without_zstd_says_so(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are packed by it; where there is apt-get it is installed."""
    monkeypatch.setattr(packages, "lacking", dict)
    monkeypatch.setattr("shutil.which", lambda *_arguments, **_options: None)
    for command in (["check"], ["publish", "registry.example.com"]):
        options = cli.parser().parse_args([*command, "--output", str(built)])
        with pytest.raises(ClusterError, match=r"no apt-get to install them: zstd"):
            options.run(options, Console())


def test_make_installs_what_an_environment_needs_before_it_makes_one() -> None:
    """Debian's python3-venv, for a release as for the demo."""
    rules = re.findall(r"^\$\(\w+\)(?:/\.installed)?:.*", (WORKFLOW.parents[2] / "Makefile").read_text(), re.MULTILINE)
    assert len(rules) == 4
    assert all("| python" in rule for rule in rules)


def test_a_copy_takes_signatures_and_bills_along(tmp_path: Path) -> None:
    """They refer to the artifact: oras copies them with --recursive alone."""
    layout, _ = image_in(tmp_path / "l", LOWER)
    copied = publish.copy_arguments(layout, "lora-operator", "r.example.com/lora-operator:1", plain_http=False)
    assert copied[:2] == ("cp", "--recursive")
    assert copied[-2:] == (f"{layout.folder}:lora-operator-{RELEASE}", "r.example.com/lora-operator:1")


def test_the_workflow_pins_its_actions_and_has_few_rights() -> None:
    """By commits, since a tag can be moved; with a comment of the version for readers."""
    text = WORKFLOW.read_text()
    workflow = yaml.safe_load(text)
    used = [line.split("uses: ")[1] for line in text.splitlines() if "uses: " in line]
    assert len(used) > 1
    for action in used:
        commit, _, version = action.partition("@")[2].partition("  # v")
        assert len(commit) == 40
        assert int(commit, 16)
        assert version
    assert workflow["permissions"] == {}
    (job,) = workflow["jobs"].values()
    assert job["permissions"] == {"contents": "read", "packages": "write", "id-token": "write"}


def test_the_workflow_makes_and_publishes_what_the_command_knows() -> None:
    """Its flags are flags of hack/release; what comes from outside reaches the shell by variables alone."""
    (job,) = yaml.safe_load(WORKFLOW.read_text())["jobs"].values()
    scripts = [step["run"].replace("$REGISTRY", "ghcr.io/team") for step in job["steps"] if "run" in step]
    assert not [script for script in scripts if "${{" in script]
    (made,) = (script for script in scripts if "make release" in script)
    (published,) = (script for script in scripts if "hack/release" in script)
    parser = cli.parser()
    flags = made.partition('RELEASE_FLAGS="')[2].rstrip('"').split()
    assert parser.parse_args(["build", *flags]).keyless
    assert parser.parse_args(shlex.split(published.partition("hack/release ")[2])).identity
