"""The chart's alerts: each fires, stays silent and resolves as its file in alerts/ says, and has a runbook."""

import itertools
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from prometheus_client import CollectorRegistry
from tests.chart import promql
from tests.chart.matrix import IMAGES, merged
from tests.chart.objects import Render, only
from tests.chart.target import CHART

from lora_operator.controller.metrics import Metrics
from lora_operator.decide.states import STATES, Group

REPOSITORY = Path(__file__).resolve().parents[2]
CASES = sorted(Path(__file__).with_name("alerts").glob("*.yaml"))
RUNBOOKS = sorted((REPOSITORY / "docs/runbooks").glob("*.md"))
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
DEFINITION = yaml.safe_load((REPOSITORY / "crds/lorafinetunes.yaml").read_text())["spec"]["versions"][0]["schema"][
    "openAPIV3Schema"
]
ENABLED = {"enabled": True, "runbookURL": "https://git.example.com/docs/runbooks/"}
_EXPRESSION = re.compile(r"query \(printf \"(.*?)\" \$labels")


@pytest.fixture(scope="module")
def rules(render: Render) -> list[dict[str, Any]]:
    """With the default thresholds, but for one of a day, which would take promtool long."""
    values = ENABLED | {"alerts": {"LoRAFineTuneStuckPending": {"queuedSeconds": 7200}}}
    (group,) = only(render(metrics={"prometheusRule": values}), "PrometheusRule")["spec"]["groups"]
    return list(group["rules"])


@pytest.fixture(scope="module")
def rules_file(rules: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rules as Prometheus reads them."""
    file = tmp_path_factory.mktemp("alerts") / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "lora", "rules": rules}]}))
    return file


def names(rules: list[dict[str, Any]]) -> set[str]:
    return {rule["alert"] for rule in rules if "alert" in rule}


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_nothing_is_rendered_unless_it_is_switched_on(render: Render) -> None:
    """A PrometheusRule needs the Prometheus operator's definitions."""
    assert "PrometheusRule" not in {o["kind"] for o in render()}


def test_the_prometheus_selects_it_and_unwanted_alerts_are_left_out(render: Render) -> None:
    """By the labels of the values; the other alerts stay."""
    values = ENABLED | {"additionalLabels": {"release": "prom"}, "disabled": ["LoRAFineTuneGPUIdle"]}
    rule = only(render(metrics={"prometheusRule": values}), "PrometheusRule")
    assert rule["metadata"]["labels"]["release"] == "prom"
    assert rule["metadata"]["namespace"] == "lora-system"
    left = names(rule["spec"]["groups"][0]["rules"])
    assert {case.stem for case in CASES} - left == {"LoRAFineTuneGPUIdle"}


def test_alerts_have_the_labels_by_which_they_are_routed(render: Render) -> None:
    """Those of the values and its own; without any, or with none by a null, as they are."""
    plain = only(render(metrics={"prometheusRule": ENABLED}), "PrometheusRule")["spec"]["groups"][0]["rules"]
    none = ENABLED | {"alertLabels": None, "severities": None}
    assert only(render(metrics={"prometheusRule": none}), "PrometheusRule")["spec"]["groups"][0]["rules"] == plain
    values = ENABLED | {
        "alertLabels": {"team": "ml", "cluster": "a"},
        "severities": {"LoRAFineTuneStuckPending": "info"},
    }
    routed = only(render(metrics={"prometheusRule": values}), "PrometheusRule")["spec"]["groups"][0]["rules"]
    for before, after in zip(plain, routed, strict=True):
        if "alert" in before:
            other = {"severity": "info"} if before["alert"] == "LoRAFineTuneStuckPending" else {}
            assert after == {**before, "labels": {**before["labels"], "team": "ml", "cluster": "a", **other}}
        else:
            assert after == before


def test_the_rules_are_accepted_by_promtool(rules_file: Path, rules: list[dict[str, Any]]) -> None:
    """With its linter, which finds duplicates, too."""
    assert f"{len(rules)} rules found" in promtool("check", "rules", rules_file)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_an_alert_fires_stays_silent_and_resolves(case: Path, rules_file: Path) -> None:
    """Over time, as in its file, with promtool's own evaluation."""
    copy = rules_file.with_name(case.name)
    copy.write_text(case.read_text())
    promtool("test", "rules", copy)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_the_file_of_an_alert_leaves_nothing_out(case: Path) -> None:
    """It has a case in which the alert fires, with its texts; one in which it resolves, and one of silence."""
    tests = yaml.safe_load(case.read_text())["tests"]
    told = [check for test in tests for check in test.get("alert_rule_test", [])]
    assert {check["alertname"] for check in told} == {case.stem}
    assert any(check.get("exp_alerts") for check in told)
    (first, *_) = [test for test in tests if "resolves" in test["name"]]
    assert "exp_alerts" not in first["alert_rule_test"][-1]
    silent = [test for test in tests if test["name"].startswith("stays silent")]
    assert silent
    assert not any(check.get("exp_samples") for test in silent for check in test["promql_expr_test"])


def test_every_alert_has_a_test_a_runbook_and_thresholds_and_none_is_left_over(rules: list[dict[str, Any]]) -> None:
    """So an alert that is removed, or renamed in one place, is noticed."""
    thresholds = VALUES["metrics"]["prometheusRule"]["alerts"]
    assert sorted(names(rules)) == [c.stem for c in CASES] == [r.stem for r in RUNBOOKS] == sorted(thresholds)


@pytest.mark.parametrize("page", RUNBOOKS, ids=lambda page: page.stem)
def test_a_runbook_answers_what_whoever_is_woken_asks(page: Path) -> None:
    """In the same order in each; its commands are Bash, and its queries read what there is."""
    text = page.read_text()
    titles = ["# " + page.stem, "## Meaning", "## Impact", "## Diagnosis", "## Mitigation"]
    assert re.findall(r"^#+ .*", text, re.MULTILINE) == titles
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert [kind for kind, _ in blocks] == ["sh", "promql"]
    done = subprocess.run(["bash", "-n"], input=blocks[0][1], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(promql.faults(blocks[1][1], promql.known_series())) == []
    assert [path for path in re.findall(r"(?<!\w)((?:spec|status)(?:\.[a-z]\w*)+)", text) if not _is_field(path)] == []


def _is_field(path: str) -> bool:
    """Whether a LoRAFineTune has it, or a node."""
    schema = DEFINITION
    for part in path.split("."):
        schema = schema.get("items", schema).get("properties", {}).get(part)
        if schema is None:
            return path in ("status.allocatable.nvidia", "spec.taints")
    return True


def test_the_runbook_of_runs_that_do_not_start_says_what_to_do_in_each_state() -> None:
    """Those that the alert is about; the states of a failure are told as one."""
    (page,) = [page for page in RUNBOOKS if page.stem == "LoRAFineTuneStuckPending"]
    told = set(re.findall(r"`(\w+)`", page.read_text().partition("## Mitigation")[2]))
    suspended = {"SuspendedByUser", "SuspendedExternally"}
    states = STATES[Group.WAITING] | STATES[Group.RETRYING] | STATES[Group.HELD]
    assert {state.value for state in states} - suspended - told == set()


def test_what_kueue_alone_has_is_asked_for_by_itself() -> None:
    """kubectl refuses a list of kinds as a whole where one of them is unknown."""
    for page in RUNBOOKS:
        for kinds in re.findall(r"kubectl .*\bget ([\w,.]+)", page.read_text()):
            of_kueue = {kind in ("localqueues", "clusterqueues", "workloads") for kind in kinds.split(",")}
            assert len(of_kueue) == 1, (page.stem, kinds)


def test_every_alert_says_how_bad_it_is_what_it_means_and_where_to_read_on(rules: list[dict[str, Any]]) -> None:
    """Whoever is woken needs all three."""
    for rule in rules:
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("critical", "warning"), rule
            assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, rule
            assert rule["annotations"]["runbook_url"].endswith(f".com/docs/runbooks/{rule['alert']}.md")
        else:
            assert re.fullmatch(r"[a-z_]+:[a-z_]+:[a-z0-9_]+", rule["record"]), rule


@pytest.mark.parametrize("namespaces", [[], ["team-a", "team-b"]])
def test_the_rules_read_what_there_is(render: Render, namespaces: list[str]) -> None:
    """Every metric is in a registry or is recorded before, and has the labels that are asked of it."""
    rule = only(render(metrics={"prometheusRule": ENABLED}, watch={"namespaces": namespaces}), "PrometheusRule")
    known = promql.known_series()
    for group in rule["spec"]["groups"]:
        for entry in group["rules"]:
            texts = [entry["expr"], *_EXPRESSION.findall(entry.get("annotations", {}).get("description", ""))]
            found = [fault for text in texts for fault in promql.faults(text.replace("%q", '""'), known)]
            assert found == [], entry
            if "record" in entry:
                known[entry["record"]] = tuple(entry["record"].partition(":")[0].split("_"))


def test_what_a_query_reads_is_found() -> None:
    """And what there is not is named."""
    known = {"a_total": ("x", "le"), "b": ("y",)}
    query = 'sum by (x, z) (rate(a_total{x="1", w!~"}"}[5m])) / on (x) group_left (y) (b{y=~"("} offset 1h) > 2e6 or c'
    assert list(promql.faults(query, known)) == [
        "a_total has no label w",
        "no metric c",
        "nothing there has a label z",
    ]


CHANGES = re.compile(r"(?:increase|i?rate|i?delta|changes|resets)\((\w+)")


def test_no_rule_counts_by_a_counter_whose_labels_are_not_known_beforehand(rules: list[dict[str, Any]]) -> None:
    """Its series begin with the first event, which none of these functions sees."""
    registry = CollectorRegistry()
    Metrics(registry)
    families = [family for family in registry.collect() if family.type == "counter"]
    unknown = {f"{family.name}_total" for family in families if not family.samples}
    assert unknown == {"lora_operator_api_requests_total"}
    counted = {name for rule in rules for name in CHANGES.findall(rule["expr"])}
    assert "lorafinetune_retries_total" in counted
    assert counted & unknown == set()


def test_what_is_not_scraped_is_not_taken_for_0(rules: list[dict[str, Any]]) -> None:
    """As by `or vector(0)`, with which an operator that is down would look like one without work."""
    assert [rule for rule in rules if "vector(" in rule["expr"]] == []


def test_what_kube_prometheus_stack_drops_is_not_relied_on(rules: list[dict[str, Any]]) -> None:
    """An alert, or a panel, that reads it has something else instead."""
    instead = {"container_spec_memory_limit_bytes": "kube_pod_container_resource_limits"}
    boards = sorted((CHART / "dashboards").glob("*.json"))
    panels = [panel for board in boards for panel in json.loads(board.read_text())["panels"]]
    shown = [re.sub(r"\$\w+", "1m", target["expr"]) for panel in panels for target in panel.get("targets", [])]
    dropped = set()
    for query in (*(rule["expr"] for rule in rules), *shown):
        names = {name for name, _ in promql.read(query).selectors}
        found = {name for name in names if promql.DROPPED.fullmatch(name)}
        assert {instead[name] for name in found} <= names, query
        dropped |= found
    assert dropped == set(instead)


def test_a_watch_that_was_never_heard_is_not_said_to_be_silent_since_1970(rules: list[dict[str, Any]]) -> None:
    """Its time is 0 then; rules, panels and runbooks leave that out."""
    gauge = "lora_operator_watch_last_event_timestamp_seconds"
    boards = sorted((CHART / "dashboards").glob("*.json"))
    texts = [*(rule["expr"] for rule in rules), *(file.read_text() for file in (*RUNBOOKS, *boards))]
    asked = [text for text in texts if gauge in text]
    assert len(asked) == 3
    for text in asked:
        assert re.findall(rf"{gauge}(?:{{[^}}]*}})? > 0", text), text


def test_series_of_other_releases_are_left_to_them(render: Render) -> None:
    """With listed namespaces the runs of those, and with a ServiceMonitor the operator of this release."""
    metrics = {"prometheusRule": ENABLED, "serviceMonitor": {"enabled": True}}
    rule = only(render(metrics=metrics, watch={"namespaces": ["team-a", "team-b"]}), "PrometheusRule")
    for entry in rule["spec"]["groups"][0]["rules"]:
        for name, matched in promql.read(entry["expr"]).selectors:
            if not name.startswith("DCGM_"):
                assert "namespace" in matched, entry
            if name.startswith("lora_operator_") and not name.endswith("left_out_namespace"):
                assert "job" in matched, entry


def test_the_operators_series_have_the_job_that_the_service_monitor_gives_them(render: Render) -> None:
    """The Service's name: under another one each alert about the operator would be blind, and LoRAOperatorDown fire."""
    objects = render(metrics={"prometheusRule": ENABLED, "serviceMonitor": {"enabled": True}}, fullnameOverride="tuner")
    rules = only(objects, "PrometheusRule")["spec"]["groups"][0]["rules"]
    jobs = {job for rule in rules for job in re.findall(r'job="([^"]*)"', rule["expr"])}
    assert "jobLabel" not in only(objects, "ServiceMonitor")["spec"]
    assert jobs == {only(objects, "Service")["metadata"]["name"]}


def test_thresholds_and_durations_come_from_the_values(render: Render) -> None:
    """Each stands in the alert that it is named after, and in no other."""
    numbers = itertools.count(601)
    others = {
        alert: {name: _other(name, next(numbers)) for name in thresholds}
        for alert, thresholds in VALUES["metrics"]["prometheusRule"]["alerts"].items()
    }
    rules = only(render(metrics={"prometheusRule": ENABLED | {"alerts": others}}), "PrometheusRule")["spec"]["groups"]
    texts = {alert: [json.dumps(r) for r in rules[0]["rules"] if r.get("alert") == alert] for alert in others}
    for alert, thresholds in others.items():
        for value in thresholds.values():
            number = re.search(r"\d{3}", str(value))[0]  # type: ignore[index] # each value has such a number
            assert {name for name, rule in texts.items() if number in "".join(rule)} == {alert}


@pytest.mark.parametrize(
    ("config", "alerts", "wanted"),
    [({}, {}, 2400), ({"stallTimeoutSeconds": 7200}, {}, 7800), ({}, {"LoRAFineTuneStalled": {"seconds": 20}}, 20)],
)
def test_a_training_that_may_stand_still_for_long_wakes_nobody_before_it_can_end_itself(
    render: Render, config: dict[str, Any], alerts: dict[str, Any], wanted: int
) -> None:
    """Unless somebody wants to be woken by then."""
    rule = only(render(metrics={"prometheusRule": ENABLED | {"alerts": alerts}}, config=config), "PrometheusRule")
    (expr,) = [r["expr"] for r in rule["spec"]["groups"][0]["rules"] if r.get("alert") == "LoRAFineTuneStalled"]
    assert f"\n> {wanted}\nor\n" in expr


def _other(name: str, number: int) -> Any:
    return {"for": f"{number}m", "ratio": number / 1000 + 1e-4, "ignored": [number]}.get(name, number)


REFUSED: Mapping[str, tuple[dict[str, Any], str]] = {
    "an address that is none": ({"runbookURL": "docs/runbooks"}, "runbookURL"),
    "an unknown alert": ({"alerts": {"LoRAFineTuneSlow": {"for": "1m"}}}, "alerts"),
    "an unknown alert left out": ({"disabled": ["LoRAFineTuneSlow"]}, "disabled.0"),
    "a severity of an unknown alert": ({"severities": {"LoRAFineTuneSlow": "info"}}, "severities"),
    "a label that alerts have": ({"alertLabels": {"name": "tone"}}, "alertLabels"),
    "a label that is no name": ({"alertLabels": {"my-team": "ml"}}, "alertLabels"),
    "an unknown threshold": ({"alerts": {"LoRAOperatorDown": {"seconds": 5}}}, "alerts.LoRAOperatorDown"),
    "a duration without unit": ({"alerts": {"LoRAOperatorDown": {"for": "10"}}}, "alerts.LoRAOperatorDown.for"),
    "units in another order": ({"alerts": {"LoRAOperatorDown": {"for": "1m1h"}}}, "alerts.LoRAOperatorDown.for"),
    "the same unit twice": ({"alerts": {"LoRAOperatorDown": {"for": "1m1m"}}}, "alerts.LoRAOperatorDown.for"),
    "no duration": ({"alerts": {"LoRAOperatorDown": {"for": ""}}}, "alerts.LoRAOperatorDown.for"),
    "a threshold of 0": ({"alerts": {"LoRAFineTuneGPUIdle": {"ratio": 0}}}, "alerts.LoRAFineTuneGPUIdle.ratio"),
    "a share above 1": (
        {"alerts": {"LoRAFineTuneFailureRatio": {"ratio": 50}}},
        "alerts.LoRAFineTuneFailureRatio.ratio",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_values_that_cannot_be_meant_are_refused(name: str) -> None:
    """By the schema, which Helm holds the values against; the value's path is named."""
    values, path = REFUSED[name]
    schema = json.loads((CHART / "values.schema.json").read_text())
    wrong = merged(VALUES, merged(IMAGES, {"metrics": {"prometheusRule": values}}))
    (error,) = jsonschema.Draft7Validator(schema).iter_errors(wrong)
    assert ".".join(map(str, error.absolute_path)) == f"metrics.prometheusRule.{path}"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"runbookURL": ""}, "metrics.prometheusRule.runbookURL is empty: name where your people read"),
        (
            {"alerts": {"LoRAOperatorWatchStale": {"seconds": 300}}},
            "alerts.LoRAOperatorWatchStale.seconds is 300: must be above config.resyncIntervalSeconds, which is 300",
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused(helm: Any, values: dict[str, Any], words: str) -> None:
    """In a sentence."""
    done = helm.template({"metrics": {"prometheusRule": ENABLED | values}})
    assert done.returncode != 0
    assert words in done.stderr
