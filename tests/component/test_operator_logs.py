"""The log of a real operator: what a run leaves in it, line by line."""

import itertools
import json
from collections import Counter
from typing import Any

from tests.component.documents import failed
from tests.component.operator_process import OperatorProcess
from tests.component.patience import eventually
from tests.component.stage import Stage

from lora_operator.controller.logs import FIELDS
from lora_trainer.spec.reasons import Reason

Line = dict[str, Any]
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"
STANDARD = {"time", "level", "logger", "message", "exception"}


def lines(operator: OperatorProcess, kind: str = "", level: str = "") -> list[Line]:
    """The lines of a type and a level; every line is one JSON object with known fields."""
    found: list[Line] = [json.loads(text) for text in operator.text().splitlines()]
    assert all(line.keys() <= {*STANDARD, *FIELDS} for line in found)
    return [line for line in found if kind in ("", line.get("type")) and level in ("", line["level"])]


def quiet(operator: OperatorProcess) -> list[Line]:
    """The decisions without an effect."""
    return [line for line in lines(operator, "decision", "DEBUG") if not line.get("wrote")]


def writes_reported(decisions: list[Line]) -> Counter[str]:
    """How often each verb is told to have been written."""
    return Counter(what.split()[0] for line in decisions for what in line["wrote"])


def test_a_whole_run_is_reported_by_one_line_for_each_decision_with_an_effect(stage: Stage) -> None:
    """All writes are in the log and nothing else is at INFO; each line names run and turn, and the last one its end."""
    proxy = stage.proxy()
    operator = stage.start(logFormat="json", progressIntervalSeconds=3600, proxy=proxy)
    uid = stage.apply()["metadata"]["uid"]
    pod = stage.wait_pod(stage.wait_job())
    stage.run_pod(pod)
    stage.wait_condition("PodsReady", status="True")
    stage.change(maxRetries=1)
    eventually(lambda: proxy.made("patch jobs"), "the Job is changed as the resource is")
    stage.end_pod(pod, 65, failed(Reason.DATASET_INVALID, f"the Hub refused the token {TOKEN}"))
    stage.wait_condition("Failed", status="True", reason="DatasetInvalid")
    eventually(lambda: [line for line in lines(operator) if line.get("result")], "the end is in the log")

    decisions = lines(operator, "decision", "INFO")
    assert all(line["wrote"] for line in decisions)
    stated = writes_reported(decisions)
    done = Counter(call.what for call in proxy.made(about="tone") if call.code in (200, 201))
    assert stated == {
        "status": done["update lorafinetunes/status"],
        "created": done["create jobs"],
        "patched": len(proxy.made("patch jobs")),
    }
    assert stated["created"] == 1
    for line in decisions:
        assert (line["namespace"], line["name"], line["uid"]) == (stage.namespace, "tone", uid)
        assert line["attempt"] == 1
        assert line["turn"]
    assert [line for line in decisions if line.get("result")] == [decisions[-1]]
    assert (decisions[-1]["result"], decisions[-1]["reason"]) == ("failed", "DatasetInvalid")
    states = [line["reason"] for line in decisions if "previous" in line]
    assert "Starting" in states
    # Each change is told once: what one line leaves is what the next one finds.
    for before, after in itertools.pairwise(decisions):
        assert after.get("previous", after["reason"]) == before["reason"]
    assert TOKEN not in operator.text()
    assert "hf_***" in operator.text()


def test_a_decision_without_an_effect_is_reported_at_debug_alone(stage: Stage) -> None:
    """A label of the user wakes the operator, and changes nothing."""
    operator = stage.start(logFormat="json")
    stage.apply()
    stage.wait_condition("PodsReady", status="False", reason="VolumeNotReady")
    eventually(lambda: stage.finetune()["status"].get("startTime"), "the Job controller has begun")

    path, numbers = stage.path("lorafinetunes", "tone"), itertools.count()

    def wake() -> None:
        stage.api.patch(path, {"metadata": {"labels": {"number": str(next(numbers))}}})

    def rests() -> bool:
        wake()
        return bool(quiet(operator)[first:])

    # What was written is in the log a moment later, and before what is decided next.
    first = len(quiet(operator))
    eventually(rests, "what it wrote is in the log")
    before, looks = len(lines(operator, level="INFO")), len(quiet(operator))
    wake()

    woken = eventually(lambda: quiet(operator)[looks:], "a decision without an effect")
    assert woken[-1]["reason"] == "VolumeNotReady"
    assert len(lines(operator, level="INFO")) == before


def test_a_refusal_has_its_code_and_the_turn_after_it_decides(stage: Stage) -> None:
    """A quota refuses the Job with 403."""
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}}}
    stage.api.post(stage.path("resourcequotas"), quota)
    path = stage.path("resourcequotas", "none")
    eventually(lambda: stage.api.get(path).get("status", {}).get("hard"), "the quota is in force")
    operator = stage.start(logFormat="json")
    stage.apply()
    stage.wait_condition("Accepted", status="False", reason="QuotaExceeded")
    refusal = eventually(lambda: lines(operator, "refusal"), "the refusal is in the log")[0]
    assert (refusal["level"], refusal["code"], refusal["name"]) == ("WARNING", 403, "tone")

    def decided() -> list[Line]:
        return [line for line in lines(operator, "decision") if line["reason"] == "QuotaExceeded"]

    # Once it is refused, the run is decided anew, in a turn of its own.
    followed = eventually(decided, "the decision is in the log")[0]
    assert followed["wrote"] == ["status"]
    assert followed["turn"] != refusal["turn"]
