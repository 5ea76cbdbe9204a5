"""A conversation's questions, and what becomes of its answers."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
from tests.unit.client.resources import finished, resource

from lora_client.cluster import helper as waits
from lora_client.cluster.connection import Cluster, UnreachableError
from lora_client.errors import ClientError
from lora_client.output import Form
from lora_client.verbs import ask as module
from lora_client.views.answers import Answer, side_by_side
from lora_client.views.helper_pod import Need
from lora_trainer.spec.release import RELEASE

Object = dict[str, Any]
CONVERSATION = "from lora_client.verbs.ask import _questions\nfor asked in _questions(None): print(asked)"


def test_the_prompt_is_no_part_of_what_a_pipe_gets() -> None:
    """`lora ask NAME -o json | jq` reads answers alone; who types sees the prompt."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", CONVERSATION], stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(theirs)
        os.write(ours, b"hello\n\x04")
        printed = process.communicate(timeout=300)
    os.close(ours)
    assert printed == ("hello\n", "> > ")


def test_who_pipes_questions_sees_no_prompt() -> None:
    """Only their answers."""
    command = [sys.executable, "-c", CONVERSATION]
    done = subprocess.run(command, input="hello\n\nyou\n", capture_output=True, text=True, check=True, timeout=300)
    assert (done.stdout, done.stderr) == ("hello\nyou\n", "")


class OnePod(Cluster):
    """Of which the states are seen one after the other, the last one for good."""

    def __init__(self, *states: Object) -> None:
        self.namespace = "team-a"
        self._states = list(states)

    def get(self, plural: str, name: str) -> Object:
        assert (plural, name) == ("pods", "tone-ask-1")
        state = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        limits = {"limits": {"memory": "8Gi"}}
        spec = {"activeDeadlineSeconds": 3600, "containers": [{"resources": limits}]}
        return {"metadata": {"name": name}, "spec": spec, "status": state}


class Ending:
    """A process that ends while it is asked."""

    error: BaseException

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> "Ending":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, data: bytes) -> None:
        pass

    def line(self, timeout_s: float) -> bytes:
        raise self.error


@contextmanager
def one_pod(*_: object) -> Iterator[str]:
    """What `helper` gives."""
    yield "tone-ask-1"


def terminated(reason: str) -> Object:
    """The status of a pod whose container ended."""
    state = {"terminated": {"exitCode": 137, "reason": reason}}
    return {"phase": "Failed", "containerStatuses": [{"name": "lora", "state": state}]}


RUNNING: Object = {"phase": "Running"}
LATE: Object = {"phase": "Failed", "reason": "DeadlineExceeded", "message": "Pod was active on the node longer than x"}
FULL: Object = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory. "}
CUT = UnreachableError("The connection to the pod broke off (x): try again")
KILLED = ClientError("The process in the pod ended early (command terminated with exit code 137): try again")
OLD = ClientError("lora-trainer: error: unrecognized arguments: --input json")
WRONG = ClientError("the adapter cannot be read")
OVER = "Pod tone-ask-1 ended after 60 minutes, the longest that a conversation lasts: begin another one"
MEMORY = "8Gi of memory did not suffice for pod tone-ask-1 (OOMKilled): name more with --memory"


@pytest.mark.parametrize(
    ("error", "states", "want"),
    [
        (KILLED, [LATE], OVER),
        (CUT, [RUNNING, LATE], OVER),
        (KILLED, [terminated("OOMKilled")], MEMORY),
        (KILLED, [RUNNING, RUNNING, terminated("OOMKilled")], MEMORY),
        (CUT, [FULL], "Pod tone-ask-1 ended (Evicted: The node was low on resource: memory): ask again"),
        (KILLED, [RUNNING], str(KILLED)),
        (KILLED, [terminated("Error")], str(KILLED)),
        (OLD, [RUNNING], f"The run's trainer refused ({OLD}): only a run of this release ({RELEASE}) can be asked"),
        (WRONG, [RUNNING], str(WRONG)),
    ],
)
def test_a_conversation_that_ends_says_why(
    error: ClientError, states: list[Object], want: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its pod: the process is killed for its time as for its memory."""
    monkeypatch.setattr(Ending, "error", error, raising=False)
    monkeypatch.setattr(module, "Process", Ending)
    monkeypatch.setattr(module, "helper", one_pod)
    monkeypatch.setattr(waits, "_POLL_S", 0.0)
    with (
        pytest.raises(ClientError) as failure,
        module.conversation(OnePod(*states), resource(status=finished()), Need(verb="ask", model=True), 64) as answer,
    ):
        answer("hello", ())
    assert str(failure.value).startswith(want)


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(143)])
def test_a_conversation_that_is_interrupted_gives_its_pod_back(
    end: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the model answers; Ctrl-C is not taken for an error of the pod's."""
    left = []

    @contextmanager
    def pod(*_: object) -> Iterator[str]:
        try:
            yield "tone-ask-1"
        finally:
            left.append("tone-ask-1")

    monkeypatch.setattr(Ending, "error", end, raising=False)
    monkeypatch.setattr(module, "Process", Ending)
    monkeypatch.setattr(module, "helper", pod)
    with pytest.raises(type(end)):
        module.ask(OneRun(), "tone", "Hi", Form.TEXT, need=Need(verb="ask", model=True), most_tokens=64)
    assert left == ["tone-ask-1"]


class Answering(Ending):
    """A process that repeats what it was sent, and keeps it."""

    sent: ClassVar[list[Object]] = []

    def write(self, data: bytes) -> None:
        self.sent.append(json.loads(data))

    def line(self, timeout_s: float) -> bytes:
        question = self.sent[-1]["question"]
        return json.dumps(
            {"question": question, "base": f"b{len(self.sent)}", "adapter": f"a{len(self.sent)}"}
        ).encode()


class OneRun(Cluster):
    """Which has an adapter."""

    def __init__(self) -> None:
        self.namespace = "team-a"

    def get(self, plural: str, name: str) -> Object:
        return resource(status=finished())


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Object]:
    """What a pod that answers is sent."""
    monkeypatch.setattr(Answering, "sent", [])
    monkeypatch.setattr(module, "Process", Answering)
    monkeypatch.setattr(module, "helper", one_pod)
    return Answering.sent


CODE = "What does this do?\n\ndef f():\n    return  1\n"


def test_a_question_arrives_as_it_was_typed(sent: list[Object]) -> None:
    """With its lines and its indentation, which are the question where it is code."""
    module.ask(OneRun(), "tone", CODE, Form.JSON, need=Need(verb="ask", model=True), most_tokens=64)
    assert sent == [{"question": CODE, "before": []}]


@pytest.mark.parametrize(("typed", "before"), [(True, ["Hi", "And?"]), (False, [])])
def test_what_is_typed_is_a_conversation(
    typed: bool, before: list[str], sent: list[Object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each side answers with its own answers in mind, until /new; piped questions are asked each by itself."""
    lines = io.StringIO("Hi\nAnd?\nBy mail?\n" + ("/new\nHi\n" if typed else ""))
    lines.isatty = lambda: typed  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", lines)
    module.ask(OneRun(), "tone", None, Form.JSON, need=Need(verb="ask", model=True), most_tokens=64)
    assert [answer["question"] for answer in sent[2]["before"]] == before
    assert [answer["adapter"] for answer in sent[2]["before"]] == [f"a{n}" for n, _ in enumerate(before, 1)]
    assert [request["before"] for request in sent[3:]] == [[]] * typed


def test_an_answer_keeps_its_lines() -> None:
    """Which are what it says where it is code."""
    answer = Answer(question=CODE, base="def f():\n    return 1.", adapter="No.")
    text = side_by_side([answer], 80)
    assert f"Q: {CODE}" in text
    assert "\n  def f():" in text
    assert "\n      return 1." in text
