"""What the client shows of runs, and the runs that it makes of others."""

from datetime import UTC, datetime
from typing import Any

import pytest
from tests.component.generated import fields, present, schema_of
from tests.unit.client.resources import condition, finished, resource, training

from lora_client.errors import ClientError
from lora_client.views.answers import Answer, side_by_side
from lora_client.views.changes import DECIMALS, clone, decimal_text, free_name, parse_change
from lora_client.views.comparison import compare, lines
from lora_client.views.curve import chart, points_in
from lora_client.views.listing import table
from lora_client.views.summary import summary
from lora_client.views.watching import line, picture, point_of
from lora_trainer.spec.manifest import RunOptions, train_config

Object = dict[str, Any]
NOW = datetime(2026, 11, 27, 12, 2, tzinfo=UTC)


def test_the_table_has_kubectls_columns() -> None:
    """With -A the namespace, too."""
    rows = table([resource(status=training()), resource("b")], NOW, everywhere=False)
    assert rows[0].split() == ["NAME", "STATE", "MODEL", "RANK", "QUANT", "STEP", "LOSS", "ETA", "AGE"]
    assert rows[1].split() == ["tone", "Training", "hf://acme/model", "16", "NF4", "120/400", "1.2345", "1h12m", "2m0s"]
    assert rows[2].split() == ["b", "Pending", "hf://acme/model", "16", "2m0s"]
    assert table([resource()], NOW, everywhere=True)[1].startswith("team-a")


def test_a_status_says_what_to_do_next() -> None:
    """Progress while it runs, losses with errors and the adapter afterwards."""
    now = "\n".join(summary(resource(status=training()), NOW))
    assert "team-a/tone: Training, 2m0s old\n  Step 120/400, about 1h12m to go\n" in now
    assert "progress  step 120/400, loss 1.2345, 1234 tokens/s, 1h12m left\n            as of 10s ago" in now
    then = "\n".join(summary(resource(status=finished()), NOW))
    assert "improvement   1.000 ± 0.020\n" in then
    assert "lora pull tone copies it" in then
    assert summary({}, NOW)


def test_a_status_has_the_advice_with_its_evidence() -> None:
    """Warnings are told apart; nobody's status is trusted to be whole, or to say a thing once."""
    advice = [
        {"severity": "Warning", "message": "Raise the rank", "evidence": "Rank 4 holds 2 bits"},
        {
            "severity": "Info",
            "message": "Try one epoch: each row is seen 3 times",
            "evidence": "each row is seen 3 times",
        },
        {"message": "Go on"},
        {"severity": "Info", "evidence": "nothing to do"},
        "none",
    ]
    found = summary(resource(status={"advice": advice}), NOW)
    assert found[-3:] == [
        "Warning: Raise the rank (Rank 4 holds 2 bits)",
        "Info: Try one epoch: each row is seen 3 times",
        "Info: Go on",
    ]


@pytest.mark.parametrize(
    ("quantization", "want"),
    [("None", "rank 16, alpha 32, unquantized"), ("Auto", "quantization Auto"), ("NF4", "alpha 32, NF4")],
)
def test_a_status_says_how_the_base_is_held(quantization: str, want: str) -> None:
    """None alone would say nothing."""
    status = training()
    status["resolved"]["quantization"] = quantization
    (row,) = (row for row in summary(resource(status=status), NOW) if row.startswith("  adapter"))
    assert row.endswith(want)


@pytest.mark.parametrize(
    ("artifact", "want"),
    [
        ({}, "lora ask tone asks it, lora pull tone copies it, lora serve tone prints how to serve it"),
        ({"servable": False}, "lora ask tone asks it, lora pull tone copies it"),
        ({"format": "merged"}, "lora pull tone copies it, lora serve tone prints how to serve it"),
        (
            {"format": "peft+merged"},
            "lora ask tone asks it, lora pull tone copies it, lora serve tone prints how to serve it",
        ),
        ({"uri": "s3://bucket/tone"}, "aws s3 cp --recursive s3://bucket/tone ./adapter copies it"),
        ({"uri": "hf://acme/tone@abcde"}, "hf download acme/tone --revision abcde --local-dir adapter copies it"),
        (
            {"uri": f"oci://registry.example/tone:v1@sha256:{'b' * 64}"},
            f"oras pull registry.example/tone:v1@sha256:{'b' * 64} -o adapter copies it",
        ),
    ],
)
def test_a_status_names_what_takes_such_a_result(artifact: Object, want: str) -> None:
    """By its place and its format: other verbs would refuse it."""
    status = finished()
    status["artifact"] |= artifact
    lines = summary(resource(status=status), NOW)
    (at,) = (number for number, line in enumerate(lines) if line.startswith(("Adapter: ", "Merged model: ")))
    assert lines[at].startswith("Merged") is (artifact.get("format") == "merged")
    assert lines[at + 1] == f"  {want}"


def test_a_watched_run_is_a_line_in_a_pipe() -> None:
    """What it waits for, with its place in the queue; what it does."""
    queued = {
        "conditions": [
            condition("QuotaReserved", "False", "Queued", "waits for quota of queue team-a"),
            condition("Complete", "False", "Queued", "waits for quota of queue team-a"),
        ]
    }
    assert line(resource(status=queued), "2 ahead", NOW) == "Queued: waits for quota of queue team-a · 2 ahead"
    trains = "Training · step 120/400 · loss 1.2345 · 1234 tokens/s · 1h12m left"
    assert line(resource(status=training()), "", NOW) == trains
    assert line({}, "", NOW) == "Pending"


def test_a_watched_run_is_a_picture_on_a_terminal() -> None:
    """With its curve, and no line wider than the terminal."""
    points = {step: 3 - step / 100 for step in range(1, 121)}
    rows = picture(resource(status=training()), points, "", NOW, width=60, height=24)
    assert rows[0] == "team-a/tone · Training · for 1m0s"
    assert "  step 120/400 ███████░░░░░░░░░░░░░░░░░ 30%" in rows
    assert rows[-1] == "  Ctrl-C leaves; the run continues"
    assert max(map(len, rows)) <= 60
    assert any("█" in row and "2.985" in row for row in rows)
    assert point_of(resource(status=training())) == {120: 1.2345}
    assert point_of(resource()) == {}


def test_a_chart_falls_from_left_to_right() -> None:
    """A steady one is a line, and two points are the least."""
    rows = chart({1: 4.0, 2: 3.0, 3: 2.0, 4: 1.0}, 40, height=2)
    assert rows == ["   4.000 █▃", "   1.000 ██▅▁".replace("▅", "▆"), "         1step 4"]
    assert chart({1: 1.0}, 40) == []
    assert len(chart(dict.fromkeys(range(1000), 1.0), 40)[0]) <= 40


def test_the_curve_is_read_from_either_form_of_log() -> None:
    """Of lines that are no steps nothing is taken."""
    log = [
        "2026-11-27 03:54:52,136 INFO step 12/150  loss 2.5000  lr 2.00e-04  900 tokens/s  3s left\n",
        '{"level": "INFO", "step": 20, "total_steps": 150, "loss": 2.25}\n',
        "INFO loss before training 5.8116\n",
    ]
    assert points_in(log) == {12: 2.5, 20: 2.25}


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("lora.rank=32", "lora.rank", 32),
        ("spec.training.learningRate=1e-4", "training.learningRate", "0.0001"),
        ("training.epochs=3", "training.epochs", "3"),
        ("quantization=None", "quantization", "None"),
        ("lora.targetModules=[q_proj, v_proj]", "lora.targetModules", ["q_proj", "v_proj"]),
        ("lora.alpha=", "lora.alpha", None),
        ("dataset.split=2024-01-01", "dataset.split", "2024-01-01"),
    ],
)
def test_a_change_is_read_as_the_field_takes_it(text: str, path: str, value: object) -> None:
    """Fractions as text, whole numbers as such."""
    change = parse_change(text)
    assert (change.path, change.value) == (path, value)


@pytest.mark.parametrize("text", ["", "lora.rank", "=3", "lora..rank=3", "a.b=[", "a b=3", "lora.rank.=1"])
def test_a_change_that_is_none_is_refused(text: str) -> None:
    """With an example."""
    with pytest.raises(ClientError, match=r"lora\.rank=32"):
        parse_change(text)


def test_a_clone_is_a_valid_run_with_an_output_of_its_own() -> None:
    """What belongs to the old run stays behind: status, suspension, uid, what tools wrote; its labels go with it."""
    old = resource(suspend=True, training={"epochs": "1", "learningRate": "0.0002"}, status=finished())
    kept = {"kueue.x-k8s.io/queue-name": "team-a", "cost-center": "42", "app.kubernetes.io/name": "tone"}
    tools = {"app.kubernetes.io/managed-by": "Helm", "kustomize.toolkit.fluxcd.io/name": "x", "helm.sh/chart": "x"}
    applied = {"kubectl.kubernetes.io/last-applied-configuration": "{}", "argocd.argoproj.io/tracking-id": "x"}
    old["metadata"] |= {"labels": {**kept, **tools}, "annotations": {"acme.example/owner": "ann", **applied}}
    new = clone(old, "tone-2", [parse_change("lora.rank=32"), parse_change("training.maxSteps=20")])
    assert new["metadata"] == {
        "name": "tone-2",
        "namespace": "team-a",
        "labels": kept,
        "annotations": {"acme.example/owner": "ann"},
    }
    assert new["spec"]["output"]["uri"] == "pvc://adapters/tone-2"
    assert new["spec"]["training"] == {"learningRate": "0.0002", "maxSteps": 20}
    assert "suspend" not in new["spec"]
    config = train_config(new, RunOptions(uid="u", strict=True))
    assert (config.lora.rank, config.lora.alpha, config.training.max_steps) == (32, 64, 20)
    assert old["spec"]["lora"] == {"rank": 16}


def test_a_free_name_counts_on() -> None:
    """Within what names may have."""
    assert free_name("tone", {"tone"}) == "tone-2"
    assert free_name("tone-2", {"tone", "tone-2", "tone-3"}) == "tone-4"
    assert len(free_name("x" * 52, {"x" * 52})) == 52


def test_the_numbers_that_are_text_are_those_of_the_definition() -> None:
    """A field that comes to the definition comes here."""
    found = {
        ".".join(field.path)
        for field in fields(schema_of(present())["properties"]["spec"])
        if field.schema.get("maxLength") == 20 and field.path[0] != "resources"
    }
    assert found == DECIMALS


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ("2e-4", "0.0002"),
        (0.05, "0.05"),
        ("1.0", "1"),
        (3, "3"),
        ("'0.10'", "0.1"),
        ("NaN", None),
        ("x", None),
        ("9e99", None),
    ],
)
def test_a_decimal_has_no_exponent(value: object, want: str | None) -> None:
    """As the API takes it."""
    assert decimal_text(value) == want


def comparison(**changes: Any) -> dict[str, Any]:
    """Two finished runs, the second with rank 32 and these results."""
    other = resource("b", lora={"rank": 32}, output={"uri": "pvc://adapters/tone"}, status=finished(**changes))
    return compare(resource("a", output={"uri": "pvc://adapters/tone"}, status=finished()), other)


def test_runs_are_compared_on_the_same_rows_by_the_errors_of_their_improvements() -> None:
    """Which bound the error of the difference: 0.02 + 0.03, and not 0.08 + 0.08."""
    found = comparison(evalLossAfter="1.8", improvementStandardError="0.03")
    assert found["differs"] == [{"field": "lora.rank", "values": ["16", "32"]}]
    assert (found["difference"], found["standardErrorAtMost"]) == (-0.2, 0.05)
    text = list(lines(found))
    assert text[-1].endswith(
        "0.2000 nats per token lower, with a standard error of at most 0.0500 on the same rows: "
        "more than twice its error."
    )
    assert any(row.split() == ["loss", "after", "2.000", "±", "0.080", "1.800", "±", "0.080"] for row in text)


def test_another_base_loss_leaves_the_losses_own_errors() -> None:
    """Quantized otherwise, the improvements have no common term."""
    found = comparison(evalLossBefore="3.1")
    assert found["standardErrorAtMost"] == 0.16
    assert "no clear winner" in list(lines(found))[-1]


def test_losses_on_different_rows_are_not_compared() -> None:
    """Nor those of a run that has none."""
    status = finished()
    status["resolved"]["seed"] = 7
    assert "different rows" in compare(resource("a", status=finished()), resource("b", status=status))["note"]
    assert "not both runs have results" in compare(resource("a"), resource("b"))["note"]
    assert list(lines(compare(resource("a"), resource("b"))))


COUNTS = {"trainTokens": 9000, "targetTokens": 4000, "longestTokens": 200}


@pytest.mark.parametrize(
    ("model", "revision", "counts", "other", "same"),
    [
        ("hf://acme/small", "a", COUNTS, COUNTS, True),
        ("hf://acme/small", "a", COUNTS, {**COUNTS, "targetTokens": 3999}, False),
        ("hf://acme/small", "a", {}, {}, False),
        ("hf://acme/model", "b", COUNTS, {**COUNTS, "longestTokens": 201}, False),
        ("hf://acme/model", "b", COUNTS, COUNTS, True),
        ("hf://acme/model", "a", {}, {}, True),
        ("hf://acme/model", "a", COUNTS, {**COUNTS, "trainTokens": 18000}, True),
    ],
)
def test_losses_per_token_of_another_tokenizer_are_not_compared(
    model: str, revision: str, counts: dict[str, int], other: dict[str, int], same: bool
) -> None:
    """A family has one tokenizer, by which the counts agree; of one model a release may count otherwise."""
    first, second = (resource("a", status=finished()), resource("b", model={"uri": model}, status=finished()))
    for run, commit, counted in ((first, "a", counts), (second, revision, other)):
        run["status"]["resolved"]["modelRevision"] = commit
        run["status"]["dataset"] = counted
    found = compare(first, second)
    assert ("difference" in found) is same
    assert same or "different rows or tokens" in found["note"]


@pytest.mark.parametrize(
    ("dataset", "most", "same"),
    [
        ({"validationUri": "hf://acme/held-out"}, {}, True),
        ({"validationUri": "hf://acme/held-out"}, {"maxValidationRows": 100}, False),
        ({}, {}, False),
    ],
)
def test_a_seed_chooses_no_rows_where_all_of_a_set_are_evaluated(
    dataset: dict[str, Any], most: dict[str, int], same: bool
) -> None:
    """It draws from the training's rows, or where a number limits them."""
    first, second = (
        resource(name, dataset={"uri": "hf://acme/chats", **dataset, **most}, status=finished()) for name in "ab"
    )
    for run, seed in ((first, 1), (second, 2)):
        run["status"]["resolved"] |= {"seed": seed, **most}
    assert ("difference" in compare(first, second)) is same


@pytest.mark.parametrize(
    ("asked", "used", "want"),
    [
        (("Auto", "Auto"), ("None", "NF4"), {"resolved.quantization": ["None", "NF4"]}),
        (("None", "NF4"), ("None", "NF4"), {"quantization": ["None", "NF4"]}),
        (("Auto", "NF4"), ("NF4", "NF4"), {"quantization": ["Auto", "NF4"]}),
        (("Auto", "NF4"), ("None", "NF4"), {"quantization": ["Auto", "NF4"], "resolved.quantization": ["None", "NF4"]}),
    ],
)
def test_what_auto_became_is_a_difference(asked: tuple[str, str], used: tuple[str, str], want: Any) -> None:
    """Where what was asked for does not say it already."""
    status = [finished() for _ in used]
    for each, kind in zip(status, used, strict=True):
        each["resolved"] |= {"device": "L4", "computeDtype": "bf16", "packing": True, "quantization": kind}
    runs = [
        resource("a", output={"uri": "pvc://a/b"}, quantization=kind, status=each)
        for kind, each in zip(asked, status, strict=True)
    ]
    assert {entry["field"]: entry["values"] for entry in compare(*runs)["differs"]} == want


def test_what_a_run_was_computed_on_is_a_difference_once_both_have_begun() -> None:
    """Before that nobody knows it of one of them."""
    here, there = finished(), finished()
    here["resolved"] |= {"device": "Tesla T4", "computeDtype": "fp16", "packing": False}
    there["resolved"] |= {"device": "L4", "computeDtype": "bf16", "packing": True}
    runs = [resource("a", output={"uri": "pvc://a/b"}, status=each) for each in (here, there)]
    assert {entry["field"]: entry["values"] for entry in compare(*runs)["differs"]} == {
        "resolved.computeDtype": ["fp16", "bf16"],
        "resolved.packing": ["False", "True"],
        "resolved.device": ["Tesla T4", "L4"],
    }
    runs[1]["status"] = {"resolved": {**here["resolved"], "quantization": "Auto"}}
    del runs[1]["status"]["resolved"]["device"]
    assert compare(*runs)["differs"] == []


def test_answers_stand_side_by_side() -> None:
    """What was cut off ends in dots."""
    text = side_by_side([Answer(question="Who?", base="I am", adapter="Marlow.")], 60)
    assert text.splitlines()[0] == "Q: Who?"
    assert "I am …" in text
    assert "│  Marlow." in text
