"""The chart's dashboards: complete, and asking for nothing that there is not."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart import promql
from tests.chart.objects import Render

from dashgen import cli, run
from dashgen.board import render as rendered
from docgen import command
from docgen.metrics_reference import operator_series, trainer_series

FILES = sorted((command.REPOSITORY / cli.FOLDER).glob("*.json"))
BOARDS = {file.stem: json.loads(file.read_text()) for file in FILES}
# What Grafana puts in.
_FILLED_IN = {"$__rate_interval": "1m", "$__range_s": "3600", "$namespace": "team-a", "$name": "tone"}
UNSHOWN = {
    "lora_operator_build_info": "in the alert's log",
    "lorafinetune_final_eval_loss": "the curve says as much",
    "lorafinetune_finished_total": "the states say as much",
    "lora_training_epoch": "the steps say as much",
    "lora_training_phase": "the state says as much",
    "lora_training_samples_total": "the tokens say as much",
    "lora_training_tokens_per_second": "the tokens say as much",
    "lora_training_checkpoint_saves_total": "the steps saved say as much",
    "lora_training_checkpoint_last_success_timestamp_seconds": "what is not saved says more",
    "lora_training_micro_batch_halvings_total": "the step time and the log say as much",
}
"""Metrics on no dashboard, and why."""


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Those with data."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def filled(query: str) -> str:
    """As Grafana sends it."""
    for name, value in _FILLED_IN.items():
        query = query.replace(name, value)
    return query


def queries(board: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Of each panel and annotation: where, the query, and its legend."""
    for panel in panels(board):
        yield from ((panel["title"], target["expr"], target["legendFormat"]) for target in panel["targets"])
    yield from ((note["name"], note["expr"], note["titleFormat"]) for note in board["annotations"]["list"])


def test_a_stale_dashboard_is_named_and_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--check changes nothing; without it the file is written again."""
    monkeypatch.setattr(command, "REPOSITORY", tmp_path)
    (tmp_path / cli.FOLDER.parent).mkdir(parents=True)
    assert cli.main(["--check"]) == 1
    assert f"{cli.FOLDER}/fleet.json is not what its source gives" in capsys.readouterr().err
    assert not (tmp_path / cli.FOLDER).exists()
    assert cli.main([]) == 0
    assert json.loads((tmp_path / cli.FOLDER / "run.json").read_text()) == rendered(run.BOARD)


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_a_dashboard_can_be_put_under_any_grafana(board: dict[str, Any]) -> None:
    """Its address is fixed, its number is the server's to give, and every query goes to the chosen data source."""
    assert (board["id"], board["uid"]) == (None, f"lora-{board['title'].removeprefix('LoRA ')}")
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    sources = [panel["datasource"] for panel in panels(board)]
    sources += [target["datasource"] for panel in panels(board) for target in panel["targets"]]
    sources += [
        thing["datasource"] for thing in [*variables.values(), *board["annotations"]["list"]] if "datasource" in thing
    ]
    assert all(source == chosen for source in sources)


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_every_panel_says_what_it_shows(board: dict[str, Any]) -> None:
    """It has a title, a unit, and a legend for each query; its description says what to switch on for its data."""
    for panel in panels(board):
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        own = {
            name for _, query, _ in queries({"panels": [panel], "annotations": {"list": []}}) for name in _names(query)
        }
        if any(name.startswith(("lorafinetune_", "lora_", "ALERTS")) for name in own):
            assert re.search(r"eeds? metrics\.\w+\.enabled", panel["description"]), panel["title"]
    titles = [panel["title"] for panel in panels(board)]
    assert len(set(titles)) == len(titles)


def _names(query: str) -> set[str]:
    return {name for name, _ in promql.read(filled(query)).selectors}


def test_every_query_is_accepted_by_promtool(tmp_path: Path) -> None:
    """As an expression of a rule each."""
    found = [filled(query) for board in BOARDS.values() for _, query, _ in queries(board)]
    rules = [{"record": f"a:b:c{number}", "expr": query} for number, query in enumerate(found)]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_every_query_reads_what_there_is(board: dict[str, Any]) -> None:
    """A metric that is renamed in the code makes this fail, and not a user's dashboard; so does a label."""
    known = promql.known_series()
    for title, query, legend in queries(board):
        reads = promql.read(filled(query))
        assert list(promql.faults(filled(query), known)) == [], title
        labels = reads.made.union(*(known[name] for name, _ in reads.selectors))
        assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= (reads.lists or labels), title
        assert "vector(" not in query, title
    for variable in board["templating"]["list"][1:]:
        text, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]).groups()  # type: ignore[union-attr] # else it is wrong
        assert list(promql.faults(filled(text), known)) == []
        assert label in known[promql.read(text).selectors[0][0]]


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_rates_fit_the_scraping_and_the_time_that_is_shown(board: dict[str, Any]) -> None:
    """By Grafana's own choice, but for what happens seldom, and says over what time it is counted."""
    for title, query, _ in queries(board):
        for span in re.findall(r"\[([^\]]+)\]", query):
            assert span in ("$__rate_interval", "10m", "1h", "6h"), title


def test_a_preflight_s_run_waits_for_its_gpus(tmp_path: Path) -> None:
    """It is among those that run, but its pod has none: only a training holds what its run asks for."""
    (gpus,) = [query for title, query, _ in queries(BOARDS["fleet"]) if title == "GPUs"]
    runs = {"trains": ("Running", "Training", 8), "checks": ("Running", "Preflight", 4), "waits": ("Held", "Queued", 2)}
    series = []
    for name, (group, state, asked) in runs.items():
        of = f'namespace="team-a", name="{name}", instance="a"'
        series.append({"series": f'lorafinetune_state{{{of}, group="{group}", state="{state}"}}', "values": "1"})
        series.append({"series": f"lorafinetune_requested_gpus{{{of}}}", "values": str(asked)})
    samples = [
        {"labels": f'{{group="{group}"}}', "value": count}
        for group, count in (("Running", 8), ("Waiting", 4), ("Held", 2))
    ]
    asks = {"expr": filled(gpus), "eval_time": "0m", "exp_samples": samples}
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"tests": [{"input_series": series, "promql_expr_test": [asks]}]}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_run_is_chosen_by_its_namespace_and_name() -> None:
    """One after the other, and the fleet's tables lead to it."""
    names = [variable["name"] for variable in BOARDS["run"]["templating"]["list"]]
    assert names == ["datasource", "namespace", "name"]
    assert (
        BOARDS["run"]["templating"]["list"][2]["query"]
        == 'label_values(lorafinetune_info{namespace="$namespace"}, name)'
    )
    tables = [panel for panel in panels(BOARDS["fleet"]) if panel["type"] == "table"]
    assert len(tables) == 3
    for table in tables:
        (properties,) = [
            o["properties"] for o in table["fieldConfig"]["overrides"] if o["matcher"]["options"] == "name"
        ]
        assert "/d/lora-run?var-datasource=${datasource}&var-namespace=${__data.fields.namespace}" in str(properties)
        renamed = table["transformations"][-1]["options"]["renameByName"]
        assert (renamed["namespace"], renamed["name"]) == ("namespace", "name")


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_a_table_without_rows_says_that_there_is_nothing_and_not_that_data_is_missing(board: dict[str, Any]) -> None:
    """Grafana's own words for it, No data, read as if nothing was scraped; a cell without a value has none of them."""
    for table in (panel for panel in panels(board) if panel["type"] == "table"):
        fields = table["fieldConfig"]
        assert fields["defaults"]["noValue"] in ("none", "none failed", "no such run"), table["title"]
        cells = [it["value"] for o in fields["overrides"] for it in o["properties"] if it["id"] == "noValue"]
        assert cells == ["-"] * (len(table["targets"]) if len(table["targets"]) > 1 else 0)


def test_a_table_has_no_column_that_was_not_asked_for() -> None:
    """Grafana shows a label of the answer that is not in its order, too, after the others."""
    for board in BOARDS.values():
        for table in (panel for panel in panels(board) if panel["type"] == "table"):
            shown = {name for name in table["transformations"][-1]["options"]["renameByName"] if name[:5] != "Value"}
            for target in table["targets"]:
                (by,) = re.findall(r"^max by \(([^)]*)\)", target["expr"])
                assert set(by.split(", ")) == shown, table["title"]


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_nothing_found_has_no_color_unless_it_is_a_fault(board: dict[str, Any]) -> None:
    """Grafana gives the words for it the color of the first step: a healthy fleet must not be red, nor a pod that has
    saved nothing green. What is written in that color, and not on it, must be seen."""
    for panel in panels(board):
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        missing = steps[0]["color"]
        if panel.get("options", {}).get("colorMode") == "background":
            wanted = {"Operators that lead": "red"}.get(panel["title"], "transparent")
        else:
            wanted = "text"
        assert (steps[0]["value"], missing) == (None, wanted), panel["title"]
        assert all(step["value"] is not None for step in steps[1:]), panel["title"]


def test_times_are_not_rounded_to_whole_hours() -> None:
    """Without decimals Grafana writes 5,340 seconds as 1 hours, and 130,000 as 2 days."""
    fields = [panel["fieldConfig"]["defaults"] for board in BOARDS.values() for panel in panels(board)]
    of_time = [field for field in fields if field["unit"] == "s"]
    assert of_time
    assert not [field for field in of_time if "decimals" in field]


def test_only_the_resource_tells_that_nothing_is_saved() -> None:
    """The pod's own series end with it, and those of the next begin without a save: its checkpoints are still there."""
    (panel,) = [it for it in panels(BOARDS["run"]) if it["fieldConfig"]["defaults"]["noValue"] == "none saved"]
    assert _names(panel["targets"][0]["expr"]) == {"lorafinetune_checkpoint_step"}


def test_what_has_just_failed_stands_first_and_so_does_what_stands_still_longest() -> None:
    """Whoever is woken looks for these."""
    tables = [panel for panel in panels(BOARDS["fleet"]) if "first" in panel["title"]]
    assert [table["options"]["sortBy"] for table in tables] == [
        [{"displayName": "in this state for", "desc": True}],
        [{"displayName": "ended, ago", "desc": False}],
    ]


def test_the_dashboards_lead_to_each_other_and_to_that_of_the_gpus() -> None:
    """NVIDIA's own, by the address under which Grafana's site has it."""
    urls = {name: [link["url"].partition("?")[0] for link in board["links"]] for name, board in BOARDS.items()}
    assert urls == {"fleet": ["/d/lora-run", "/d/Oxed_c6Wz"], "run": ["/d/lora-fleet", "/d/Oxed_c6Wz"]}


def test_every_metric_is_on_a_dashboard_or_left_out_for_a_reason() -> None:
    """So a panel that is dropped, or a metric that is new, is noticed."""
    shown = {name for board in BOARDS.values() for _, query, _ in queries(board) for name in _names(query)}
    known = {_base(name) for name in (*shown, *UNSHOWN)}
    missing = {name for name in (*operator_series(), *trainer_series()) if _base(name) not in known}
    assert missing == set()
    assert shown.isdisjoint(UNSHOWN)


def _base(name: str) -> str:
    return re.sub("_(bucket|count|sum)$", "", name)


def test_the_chart_brings_them_for_grafanas_sidecar(render: Render) -> None:
    """In a ConfigMap each, with the label that it looks for; nothing unless it is switched on."""
    assert [o["metadata"]["name"] for o in render() if o["kind"] == "ConfigMap"] == ["lora"]
    values = {"enabled": True, "annotations": {"grafana_folder": "LoRA"}, "additionalLabels": {"team": "ml"}}
    objects = render(metrics={"grafanaDashboard": values})
    maps = [o for o in objects if "grafana_dashboard" in o["metadata"].get("labels", {})]
    assert [o["metadata"]["name"] for o in maps] == ["lora-fleet-dashboard", "lora-run-dashboard"]
    for config, (name, board) in zip(maps, BOARDS.items(), strict=True):
        assert {"grafana_dashboard": "1", "team": "ml"}.items() <= config["metadata"]["labels"].items()
        assert config["metadata"]["annotations"] == {"grafana_folder": "LoRA"}
        assert json.loads(config["data"][f"lora-{name}.json"]) == board
