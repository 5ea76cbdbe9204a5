"""A conversation's questions, and what becomes of its answers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.unit.client.resources import finished, resource

from lora_client.cluster import helper as waits
from lora_client.cluster.connection import Cluster, UnreachableError
from lora_client.errors import ClientError
from lora_client.verbs import ask as module
from lora_client.views.helper_pod import Need

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

    error: ClientError

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
        answer("hello")
    assert str(failure.value) == want
