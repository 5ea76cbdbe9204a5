"""How the operator is called: with a file of settings, with none, and to explain."""

from pathlib import Path
from typing import Any

import pytest

from lora_operator import __main__ as command
from lora_operator.model.config import OperatorConfig

Asked = list[dict[str, Any]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Asked:
    """What the command was about to do, instead of doing it; no settings are where the chart mounts them."""
    asked: Asked = []

    async def operate(config: OperatorConfig) -> None:
        asked.append({"operate": config})

    async def explain(place: object, config: OperatorConfig, **rest: Any) -> None:
        asked.append({"explain": place, "config": config, "notes": list(rest["notes"])})

    monkeypatch.setattr(command, "operate", operate)
    monkeypatch.setattr(command, "explain", explain)
    monkeypatch.setattr(command, "MOUNTED_CONFIG", tmp_path / "mounted.yaml")
    monkeypatch.setattr("lora_operator.controller.logs.configure", lambda *_: None)
    monkeypatch.delenv(command.CONFIG_VARIABLE, raising=False)
    return asked


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of settings."""
    path = tmp_path / "settings.yaml"
    path.write_text("trainerImage: registry.example/t:1\n")
    return path


def test_the_operator_runs_with_the_file_that_it_is_given(asked: Asked, file: Path) -> None:
    """As the chart calls it."""
    assert command.main(["--config", str(file)]) == 0
    assert asked[0]["operate"].trainer_image == "registry.example/t:1"


def test_without_an_argument_the_variable_counts_and_then_the_mounted_file(
    asked: Asked, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a command in the operator's pod needs no path."""
    command.MOUNTED_CONFIG.write_text("trainerImage: mounted\n")
    assert command.main(["explain", "team/tone"]) == 0
    monkeypatch.setenv(command.CONFIG_VARIABLE, str(file))
    assert command.main(["explain", "team/tone"]) == 0
    assert [each["config"].trainer_image for each in asked] == ["mounted", "registry.example/t:1"]
    assert [each["notes"] for each in asked] == [[], []]


def test_settings_are_named_before_or_after_the_command(asked: Asked, file: Path) -> None:
    """Both are tried at night."""
    assert command.main(["--config", str(file), "explain", "team/tone"]) == 0
    assert command.main(["explain", "team/tone", "--config", str(file)]) == 0
    assert [each["config"].trainer_image for each in asked] == ["registry.example/t:1"] * 2


def test_a_run_is_explained_without_settings_and_with_a_note(asked: Asked) -> None:
    """On a laptop there are none."""
    assert command.main(["explain", "team/tone"]) == 0
    assert asked[0]["notes"][0].startswith("Decided with default settings: give the operator's own with --config")


@pytest.mark.parametrize("arguments", [[], ["--config", "/nowhere/c.yaml"], ["explain", "a/b", "--config", "/nowhere"]])
def test_missing_settings_are_a_sentence(
    asked: Asked, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With the two ways to name them, and exit status 2."""
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    stated = capsys.readouterr().err
    assert stated.startswith("lora-operator: There is no /")
    assert stated.endswith(": name the settings by --config or LORA_OPERATOR_CONFIG\n")
    assert asked == []


def test_a_place_that_is_none_is_a_sentence(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 1."""
    assert command.main(["explain", "tone"]) == 1
    assert capsys.readouterr().err.startswith("lora-operator: 'tone' is not NAMESPACE/NAME: ")
    assert asked == []
