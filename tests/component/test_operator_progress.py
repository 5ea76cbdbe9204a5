"""What pods answer at /progress, hostile ones among them. Each pod has a loopback address of its own."""

import itertools
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.component.documents import succeeded
from tests.component.operator_process import OperatorProcess
from tests.component.patience import eventually
from tests.component.stage import Stage
from tests.ports import free_address

from lora_trainer.spec.progress import PORT, Phase, Progress

Talk = Callable[[Any], None]


@contextmanager
def pod_server(talk: Talk) -> Iterator[str]:
    """A server in place of a pod; `talk` gets the socket of each connection after its request. Yields the address."""
    address = free_address()
    ended = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            self.request.settimeout(1)
            try:
                while not ended.is_set():
                    talk(self.request)
            except (OSError, StopIteration):
                pass

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    with Server((address, PORT), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield address
        finally:
            ended.set()
            server.shutdown()
            thread.join()


def answer(connection: Any, body: bytes, *, status: str = "200 OK", extra: str = "") -> None:
    """One whole HTTP answer, then the end."""
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{extra}\r\n"
    connection.sendall(head.encode() + body)
    raise StopIteration


def endless(connection: Any) -> None:
    """A body that never ends."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while True:
        connection.sendall(b" " * 65536)


def slow(connection: Any) -> None:
    """Nothing at all."""
    connection.recv(1)


def training(step: int, total: int = 40) -> Progress:
    """A trainer's answer."""
    return Progress(
        phase=Phase.TRAINING,
        step=step,
        total_steps=total,
        epoch=0.1,
        loss=1.25,
        tokens_per_second=100.0,
        estimated_remaining_seconds=90,
        peak_memory_bytes=2**30,
        updated_at=1.0,
    )


HOSTILE: dict[str, Talk] = {
    "endless": endless,
    "slow": slow,
    "too-long": partial(answer, body=b'{"step": 1' + b" " * 5000 + b"}"),
    "not-json": partial(answer, body=b"<html>"),
    "deeply-nested": partial(answer, body=b"[" * 4000),
    "huge-number": partial(answer, body=b'{"loss": 1' + b"0" * 4000 + b"}"),
    "unknown-keys": partial(answer, body=b'{"verdict": "Succeeded"}'),
    "server-error": partial(answer, body=training(9).to_json().encode(), status="500 Oops"),
    "long-header": partial(answer, body=b"{}", extra="X: " + "x" * 100_000 + "\r\n"),
}


def test_a_running_pods_progress_reaches_the_status(stage: Stage) -> None:
    """Step, loss and the ready strings; the phase becomes the state; the ratio becomes a metric."""
    # More steps than it is asked for, however late this test looks.
    steps, total = itertools.count(3), 40_000

    def talk(connection: Any) -> None:
        answer(connection, training(next(steps), total).to_json().encode())

    with pod_server(talk) as address:
        operator = stage.start()
        stage.apply()
        stage.run_pod(stage.wait_pod(stage.wait_job()), ip=address)
        stage.wait_condition("Complete", status="Unknown", reason="Training")
        first = eventually(lambda: _step(stage), "there is a step")
        eventually(lambda: _step(stage) > first, "the steps go on")
    progress = stage.finetune()["status"]["progress"]
    assert progress["totalSteps"] == total
    assert progress["steps"] == f"{progress['step']}/{total}"
    series = f'lorafinetune_progress_ratio{{name="tone",namespace="{stage.namespace}"}}'
    assert 0 < operator.metric(series) < 1


def test_hostile_answers_are_no_progress_and_hold_nobody_up(stage: Stage) -> None:
    """All at once: those runs have no progress and end as their pods do, a good one's comes, memory is bounded."""

    def well(connection: Any) -> None:
        answer(connection, training(5).to_json().encode())

    with ExitStack() as servers:
        operator = stage.start()
        addresses = {kind: servers.enter_context(pod_server(talk)) for kind, talk in HOSTILE.items()}
        for kind in (*HOSTILE, "good"):
            stage.apply(kind)
        pods = eventually(lambda: _pods(stage, len(HOSTILE) + 1), "every run has a pod")
        for kind, address in addresses.items():
            stage.run_pod(pods[kind], ip=address)
        for kind in HOSTILE:
            asked = partial(_is_in_log, operator, f"no progress from pod {pods[kind]['metadata']['name']}")
            eventually(asked, f"the pod with the {kind} answer was asked")
        stage.run_pod(pods["good"], ip=servers.enter_context(pod_server(well)))
        stage.wait_condition("Complete", reason="Training", name="good")
        assert {
            kind: stage.finetune(kind)["status"].get("progress", {}).get("step") for kind in HOSTILE
        } == dict.fromkeys(HOSTILE)
        assert "Traceback" not in operator.text()
        assert _resident_bytes(operator.process.pid) < 200 * 2**20
        stage.end_pod(pods["endless"], 0, succeeded())
        stage.wait_condition("Complete", status="True", name="endless")


def test_a_redirect_is_not_followed(stage: Stage) -> None:
    """A pod cannot send the operator elsewhere."""
    visits: list[str] = []

    def elsewhere(connection: Any) -> None:
        visits.append("visited")
        answer(connection, training(7).to_json().encode())

    with pod_server(elsewhere) as target:
        location = f"Location: http://{target}:{PORT}/progress\r\n"
        with pod_server(partial(answer, body=b"", status="302 Found", extra=location)) as address:
            operator = stage.start()
            stage.apply()
            stage.run_pod(stage.wait_pod(stage.wait_job()), ip=address)
            eventually(lambda: operator.text().count("no progress from pod") >= 2, "the pod was asked twice")
    assert visits == []


def test_the_metadata_service_is_never_asked(stage: Stage) -> None:
    """A pod that claims a link-local address is not asked at all."""
    operator = stage.start()
    stage.apply()
    stage.run_pod(stage.wait_pod(stage.wait_job()), ip="169.254.169.254")
    eventually(lambda: "169.254.169.254 is not the address of a pod" in operator.text(), "the address is refused")


def _step(stage: Stage) -> int:
    return int(stage.finetune()["status"].get("progress", {}).get("step", 0))


def _pods(stage: Stage, count: int) -> dict[str, Any] | None:
    pods = {pod["metadata"]["labels"]["lora-operator.io/name"]: pod for pod in stage.objects("pods")}
    return pods if len(pods) == count else None


def _is_in_log(operator: OperatorProcess, text: str) -> bool:
    return text in operator.text()


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
