"""Pages and copies that hack/docs makes are fresh, and the generator says so when they are not."""

from pathlib import Path

import pytest

from docgen import chart_readme, cli, command

REPOSITORY = Path(__file__).resolve().parents[2]


def test_generated_files_are_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    """hack/docs --check passes: run `make docs` and commit after a change of the definition or of the values."""
    assert cli.main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_file_is_named_and_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--check changes nothing and names the file; without it the file is written again."""
    sources = ("crds/lorafinetunes.yaml", "examples/minimal.yaml", *map(str, cli.outputs()))
    for name in (*sources, *(str(cli.CHART / file) for file in ("Chart.yaml", "values.yaml", "values.schema.json"))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((REPOSITORY / name).read_text())
    monkeypatch.setattr(command, "REPOSITORY", tmp_path)
    page = tmp_path / "docs/api-reference.md"
    fresh = page.read_text()
    page.write_text(fresh.replace("16", "17"))

    assert cli.main(["--check"]) == 1
    assert "docs/api-reference.md is not what its source gives" in capsys.readouterr().err
    assert page.read_text() != fresh

    assert cli.main([]) == 0
    assert page.read_text() == fresh


def test_a_value_without_description_stops_the_generator() -> None:
    """A value that the schema does not know cannot slip into the chart."""
    chart = {"name": "c", "description": "d", "version": "1", "appVersion": "1", "kubeVersion": ">=1.31.0-0"}
    assert "needs Kubernetes 1.31.0 or later" in chart_readme.render(chart, {}, {"properties": {}}, "c")
    with pytest.raises(KeyError, match="new"):
        chart_readme.render(chart, {"new": 1}, {"properties": {}}, "c")
    group = {"properties": {"group": {"description": "A group.", "properties": {}}}}
    with pytest.raises(KeyError, match="new"):
        chart_readme.render(chart, {"group": {"new": 1}}, group, "c")
