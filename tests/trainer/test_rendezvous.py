"""Nodes that meet under the real torchrun, and what becomes of their round when one of them has to come again."""

import contextlib
import dataclasses
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.ports import free_port
from tests.trainer.conftest import make_config
from tests.trainer.runs import PATIENCE_S
from torch.distributed import DistError, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import RendezvousParameters, rendezvous_handler_registry

from lora_trainer.distributed.reports import Failure, Report
from lora_trainer.errors import PeerFailedError
from lora_trainer.host import rendezvous
from lora_trainer.host.child import StageFailedError, Stages
from lora_trainer.host.launch import RENDEZVOUS, Node, training_program
from lora_trainer.host.rendezvous import Watch, use_rendezvous
from lora_trainer.spec.config import DeviceConfig
from lora_trainer.spec.reasons import Reason
from lora_trainer.storage.volumes import Volumes


class Pod:
    """One of some nodes on this machine, as its supervisor starts it."""

    def __init__(self, index: int, port: int, folder: Path, *, nodes: int = 2, held: bool = False) -> None:
        made = make_config(output={"uri": "pvc://adapters/out"})
        config = dataclasses.replace(made, device=DeviceConfig(gpus=0, nodes=nodes, allow_cpu=True))
        node = Node(index=index, nodes=nodes, address="127.0.0.1", port=port)
        program = training_program(config, node, threads=1, grace_s=60)
        self.stages = Stages(
            config_file=folder / "config.json",
            volumes=Volumes(claims=folder, config_maps=folder),
            take=self._take,
            grace_s=60,
            training=dataclasses.replace(
                program,
                command=(*program.command[:-1], "tests.trainer.node_program"),
                environment={**program.environment, **({"HELD": "yes"} if held else {})},
            ),
        )
        self.joined = threading.Event()
        self.failure: Failure | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _take(self, report: Report) -> None:
        if report.progress is not None:
            self.joined.set()

    def _run(self) -> None:
        try:
            self.stages.run("train")
        except StageFailedError as error:
            self.failure = error.failure

    def end(self) -> Failure | None:
        """Why it failed, once it has ended."""
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        return self.failure

    def kill(self) -> None:
        """End it as the kernel does."""
        child = self.stages.child
        if child is not None:
            child.kill()
        self.end()


@pytest.fixture
def port() -> int:
    """That of node 0."""
    return free_port()


@pytest.fixture
def start(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Pod]]:
    """Start one of two nodes."""
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{root / 'trainer_image'}:{root}")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    # Whoever is held hears no request to end.
    monkeypatch.setattr("lora_trainer.host.child.PEERS_S", 1.0)
    pods: list[Pod] = []

    def started(index: int, **options: Any) -> Pod:
        pods.append(Pod(index, port, tmp_path, **options))
        return pods[-1]

    yield started
    for pod in pods:
        pod.kill()


def test_a_node_that_comes_again_ends_the_round_and_takes_part_in_the_next(start: Callable[..., Pod]) -> None:
    """While node 0 asks for nobody, as when it loads a model, evaluates, or is in a long step."""
    first, lost = start(0, held=True), start(1, held=True)
    assert first.joined.wait(PATIENCE_S)
    assert lost.joined.wait(PATIENCE_S)
    lost.kill()
    again = start(1)
    failure = first.end()
    assert failure is not None
    assert (failure.code, failure.reason) == (76, Reason.PEER_FAILED)
    assert not again.joined.is_set()
    assert (start(0).end(), again.end()) == (None, None)


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_node_that_is_replaced_before_a_round_begins_takes_part_in_it(
    port: int, start: Callable[..., Pod], order: tuple[int, int]
) -> None:
    """Nobody has a process yet, and some may have waited long for the last one, which may come before it or after."""
    first, lost = start(0, nodes=3), start(1, nodes=3)
    store = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
    store.wait(["lora/here/1"])
    lost.kill()
    one = start(order[0], nodes=3)
    time.sleep(8)  # enough for it to be there, also where nothing shows that it is
    assert [pod.end() for pod in (first, one, start(order[1], nodes=3))] == [None, None, None]


def connection(port: int) -> Store:
    """One to a round's store."""
    return TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)


def serve(port: int, *keys: str) -> Store:
    """A round's store, with those keys set."""
    server = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    for key in keys:
        server.set(key, "")
    return server


JOINED = "lora/joined/1"


@pytest.mark.parametrize(
    ("happened", "processes", "called"),
    [
        ("nothing", True, False),
        ("a node came again", True, True),
        ("a node came again", False, False),
        ("node 0 ended", True, True),
        ("node 0 ended", False, False),
        ("node 0 came again", True, True),
        ("the connection ended", True, False),
    ],
)
def test_a_round_is_over_where_processes_are_left_that_nobody_joins(
    *, port: int, monkeypatch: pytest.MonkeyPatch, happened: str, processes: bool, called: bool
) -> None:
    """Without processes torchrun waits for those of other nodes alone, which end well, node 0's before or after."""
    monkeypatch.setattr(rendezvous, "LOOK_S", 0.02)
    monkeypatch.setattr(rendezvous, "PATIENCE_S", 0.1)
    monkeypatch.setattr(rendezvous, "_has_children", lambda: processes)
    server, other = serve(port, JOINED), free_port()
    # What cuts one connection and leaves node 0 alone looks as if it led to another store that ended.
    cut = serve(other, JOINED)
    places = [other, port, port] if happened == "the connection ended" else [port] * 100
    connected, over = threading.Event(), threading.Event()

    def connect() -> Store:
        if not places:
            raise ConnectionRefusedError
        found = connection(places.pop(0))
        connected.set()
        return found

    watch = Watch(over.set)
    watch.start(connect, JOINED)
    assert connected.wait(PATIENCE_S)
    if happened == "a node came again":
        server.set("lora/over", "")
    if happened == "the connection ended":
        del cut
    if happened in ("node 0 ended", "node 0 came again"):
        places = []
        del server
    if happened == "node 0 came again":
        server = serve(port)
        places = [port]
    assert over.wait(PATIENCE_S if called else 1.0) is called
    watch.stop()


def test_a_node_whose_processes_end_soon_after_node_0_keeps_their_reason(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may have been asked to stop together."""
    monkeypatch.setattr(rendezvous, "LOOK_S", 0.02)
    server = serve(port, JOINED)
    over = threading.Event()
    watch = Watch(over.set)
    watch.start(lambda: connection(port), JOINED)
    del server
    assert not over.wait(1.0)
    watch.stop()
    assert not over.is_set()


def test_a_round_is_watched_while_torchrun_waits_on_its_own_connection(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that node 0 without power does not answer would hold the other up. As often as torchrun runs in a process."""
    monkeypatch.setattr(rendezvous, "LOOK_S", 0.02)
    monkeypatch.setattr(rendezvous, "_has_children", lambda: True)
    place = RendezvousParameters(RENDEZVOUS, f"127.0.0.1:{port}", "run", 1, 1, rank=0, timeout=60)
    with use_rendezvous(lambda: None):
        pass
    over = threading.Event()
    with use_rendezvous(over.set):
        met: Any = rendezvous_handler_registry.create_handler(place).next_rendezvous()
        waits = threading.Thread(target=lambda: _wait_in_vain(met.store, 8.0))
        waits.start()
        time.sleep(0.5)
        connection(port).set("lora/over", "")
        assert over.wait(4.0)
        assert waits.is_alive()
        waits.join()


def _wait_in_vain(store: Store, seconds: float) -> None:
    with contextlib.suppress(DistError):
        store.wait(["never"], timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("rank", "host", "code"),
    [(0, "127.0.0.1", 76), (1, "node-0.example.invalid", 76), (1, "127.0.0.1", 75)],
    ids=["the first one waits", "the first one is not there", "the first one cannot be reached"],
)
def test_a_node_that_waits_for_one_that_is_not_there_has_not_failed(port: int, rank: int, host: str, code: int) -> None:
    """Its pod may wait for a GPU for hours. One that is there and cannot be reached might be tried for ever."""
    place = RendezvousParameters(RENDEZVOUS, f"{host}:{port}", "run", 2, 2, rank=rank, timeout=2)
    with use_rendezvous(lambda: None):
        handler = rendezvous_handler_registry.create_handler(place)
        with pytest.raises(PeerFailedError) as caught:
            handler.next_rendezvous()
    assert caught.value.code == code


def test_a_node_that_meets_some_and_waits_for_another_has_not_failed(port: int) -> None:
    """Whoever is there waits with it."""
    server = serve(port)
    place = RendezvousParameters(RENDEZVOUS, f"127.0.0.1:{port}", "run", 3, 3, rank=1, timeout=2)
    with use_rendezvous(lambda: None):
        handler = rendezvous_handler_registry.create_handler(place)
        with pytest.raises(PeerFailedError) as caught:
            handler.next_rendezvous()
    assert caught.value.code == 76
    del server


def test_whether_processes_are_left_is_what_the_system_says() -> None:
    """Also of one that ended and was not asked for yet: torchrun still takes its status."""
    program = """
import subprocess
from lora_trainer.host.rendezvous import _has_children
found = [_has_children()]
child = subprocess.Popen(["true"])
found.append(_has_children())
child.wait()
print([*found, _has_children()])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "[False, True, False]\n"
