"""`lora watch` and `lora run` while a run goes on: in a pipe and in a pseudo-terminal, at most a request a second."""

import os
import pty
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from subprocess import Popen

import pytest
from tests.component.client_account import Person, install_roles, person
from tests.component.documents import Object, finetune
from tests.component.patience import DEADLINE_S, eventually
from tests.component.stage import Stage, now
from tests.faults.injections import Cut
from tests.faults.proxy import FaultProxy

from localcluster.client import Client


@pytest.fixture(scope="session")
def roles(control_plane: Client, definition: None) -> None:
    """The chart's roles for people."""
    install_roles(control_plane)


def condition(kind: str, status: str, reason: str, message: str) -> Object:
    """A condition as the operator writes it."""
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now()}


def write(stage: Stage, *conditions: Object, **status: object) -> None:
    """What the operator would write."""
    body = {"status": {"conditions": list(conditions), **status}}
    stage.api.patch(stage.path("lorafinetunes", "tone", "status"), body)


def train(stage: Stage, step: int) -> None:
    """A run that is at a step."""
    progress = {"phase": "Training", "step": step, "steps": f"{step}/40", "percentage": step * 100 // 40}
    progress |= {"loss": f"{3 - step / 20:.4f}", "tokensPerSecond": "900", "eta": "1m"}
    write(stage, condition("Complete", "False", "Training", f"Step {step}/40"), progress=progress)


def end(stage: Stage, *, well: bool) -> None:
    """A run that has ended."""
    if well:
        write(stage, condition("Complete", "True", "Succeeded", "The adapter is verified"))
    else:
        why = "line 17 has no field 'output': add it"
        write(
            stage,
            condition("Complete", "False", "DatasetInvalid", why),
            condition("Failed", "True", "DatasetInvalid", why),
        )


def test_in_a_pipe_each_change_is_a_line_at_one_request_a_second(stage: Stage, roles: None) -> None:
    """And the exit status is the run's."""
    proxy = stage.proxy()
    user: Person = person(stage, proxy)
    file = user.file(finetune())
    with user.start("run", "-f", file) as process:
        eventually(lambda: stage.objects("lorafinetunes"), "the run is there")
        assert process.stdout is not None
        assert process.stdout.readline() == f"tone is created in namespace {stage.namespace}\n".encode()
        assert b"Pending" in process.stdout.readline()
        begun = len(proxy.made())
        for step in (1, 20, 40):
            train(stage, step)
            line = process.stdout.readline()
            while f"step {step}/40".encode() not in line:
                line = process.stdout.readline()
        end(stage, well=False)
        out, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 1, err
        assert b"line 17 has no field 'output': add it" in out
        assert b"\x1b" not in out
    asked = [call.at_s for call in proxy.made()][begun:]
    watched = [call for call in proxy.made() if call.query.get("watch") == "true"]
    assert len(watched) == 1
    assert len(asked) <= 2


def test_requests_of_a_watch_keep_a_second_apart(stage: Stage, roles: None) -> None:
    """However often the server cuts the watch off."""
    proxy = stage.proxy()
    user = person(stage, proxy)
    stage.apply()
    with user.start("watch", "tone") as process:
        begun = 0
        for _ in range(3):
            begun = eventually(partial(_watches_again, proxy, begun), "it watches again")
            proxy.inject(Cut())
        end(stage, well=True)
        assert process.wait(DEADLINE_S) == 0
        process.communicate()
    times = [call.at_s for call in proxy.made("*") if "lorafinetunes" in call.path]
    assert len(times) >= 6
    # A busy machine may be late with the first of them, by less than a second.
    assert times[-1] - times[0] > len(times) - 2


def test_on_a_terminal_it_is_drawn_and_ctrl_c_leaves_the_run_alone(stage: Stage, roles: None) -> None:
    """With the curve of the losses."""
    user = person(stage)
    stage.apply()
    train(stage, 1)
    ours, theirs = pty.openpty()
    with user.start("watch", "tone", terminal=theirs) as process, ended(process):
        os.close(theirs)
        seen = read_until(ours, "step 1/40")
        for step in (10, 20, 30):
            train(stage, step)
            seen += read_until(ours, f"step {step}/40")
        seen += read_until(ours, "Ctrl-C leaves; the run continues")
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        seen += read_until(ours, None)
        err = process.stderr.read().decode()
        assert process.wait(DEADLINE_S) == 130
    os.close(ours)
    assert "█" in seen
    assert "900 tokens/s" in seen
    assert f"tone continues: lora watch tone -n {stage.namespace}" in err
    assert "Traceback" not in seen + err
    assert stage.finetune()["spec"]["suspend"] is False


def test_a_run_that_is_deleted_ends_the_watch_with_a_sentence(stage: Stage, roles: None) -> None:
    """And with status 1."""
    user = person(stage)
    stage.apply()
    with user.start("watch", "tone") as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(1.5)
        stage.api.delete(stage.path("lorafinetunes", "tone"))
        _, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 1
        assert err == b"lora: tone was deleted while it was watched\n"


def _watches_again(proxy: FaultProxy, before: int) -> int:
    """How many watches have begun, where one of them goes on that is none of those `before`; else 0.

    One that was cut off a moment ago may still be among those that go on.
    """
    begun = len(proxy.made("watch *"))
    return begun if begun > before and proxy.watching("watch *") else 0


@contextmanager
def ended(process: Popen[bytes]) -> Iterator[None]:
    """Killed where the test fails: a process that writes to a terminal which nobody reads would never end."""
    try:
        yield
    finally:
        process.kill()


def read_until(terminal: int, text: str | None) -> str:
    """What comes until this text has come, or to the end."""
    seen = b""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:
            break
        seen += data
        if not data or (text is not None and text in seen.decode(errors="replace")):
            break
    assert text is None or text in seen.decode(errors="replace"), seen[-2000:]
    return seen.decode(errors="replace")
