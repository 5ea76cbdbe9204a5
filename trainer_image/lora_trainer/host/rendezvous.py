"""How torchrun meets the other nodes at node 0's store, and learns that their round is over.

When all nodes have come, each starts its processes. When one comes again after that, since the Job made its lost pod
anew, the others still have processes that nothing can join: their round is over, and it waits for the next. By itself
torchrun would give it the rank that it had, and its processes would wait for hours for those of the round before.
"""

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

from torch.distributed import DistError, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousInfo,
    RendezvousParameters,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from lora_trainer.errors import PeerFailedError, explain
from lora_trainer.host.launch import RENDEZVOUS
from lora_trainer.spec.exit_codes import ExitCode

log = logging.getLogger(__name__)
LOOK_S = 5.0
"""How often a node looks whether its round is over."""
_CONNECT_S = 5.0
PATIENCE_S = 30.0
"""How long after node 0's end the processes of another node may take to end by themselves: most were asked to, or have
a better reason than this."""
_HERE, _JOINED, _OVER = "lora/here/{}", "lora/joined/{}", "lora/over"
"""Keys in the store of a round, which ends with node 0."""


class Watch:
    """Calls `on_over` once, from a thread of its own, when the round is over and processes of this node are left."""

    def __init__(self, on_over: Callable[[], None]) -> None:
        self._on_over = on_over
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, connect: Callable[[], Store], joined: str) -> None:
        """Watch a round until `stop`: its store, which has the key `joined`, over a connection of the thread's own. One
        that node 0 without power does not answer would hold up whoever shares it."""
        self._thread = threading.Thread(target=self._watch, args=(connect, joined), name="round", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer. A thread that is within PyTorch when Python ends would abort the process: it is waited for,
        but not where a node without power does not answer it."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(2 * LOOK_S)

    def _watch(self, connect: Callable[[], Store], joined: str) -> None:
        store: Store | None = None
        lost = False
        while not self._ended.wait(PATIENCE_S if lost else LOOK_S):
            try:
                store = store or connect()
                # Node 0 may have come again meanwhile, with a store in which nobody has joined.
                over = store.check([_OVER]) or not store.check([joined])
                lost = False
            except (DistError, OSError):
                # The connection alone may have ended: another one shows whether node 0 did.
                store, over, lost = None, lost, True
            # Without processes torchrun only waits until those of the other nodes have ended well.
            if over and _has_children():
                self._on_over()
                return


_watch: ContextVar[Watch] = ContextVar("watch")


class Rendezvous(StaticTCPRendezvous):
    """torchrun's rendezvous of nodes with fixed numbers, none of which comes twice into one round; made
    `use_rendezvous`."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        host, port = parse_rendezvous_endpoint(parameters.endpoint, default_port=-1)
        rank, self._timeout_s = (int(parameters.config[name]) for name in ("rank", "timeout"))
        super().__init__(host, port, rank, parameters.max_nodes, parameters.run_id, self._timeout_s)
        self._watch = _watch.get()

    def get_backend(self) -> str:
        """The name that `torchrun` knows it by."""
        return RENDEZVOUS

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for all nodes of a round in which this one has not been yet. Raises `PeerFailedError` where one does not
        come in time, or the round before does not end."""
        try:
            return self._next_round()
        except DistError as error:
            known = explain(error)
            if isinstance(known, PeerFailedError) and self._is_alone():
                known.code = ExitCode.PEER_FAILED
            raise known from error

    def _is_alone(self) -> bool:
        """Whether the node that does not come may not be there yet, in which case this one has waited for its pod. That
        of node 0 has no address until it begins; where it has one and cannot be reached, nodes might try for ever."""
        if self.rank == 0 or self._store is not None:
            return True
        try:
            socket.getaddrinfo(self.master_addr, self.master_port, type=socket.SOCK_STREAM)
        except OSError:
            return True
        return False

    def _next_round(self) -> RendezvousInfo:
        joined = _JOINED.format(self.rank)
        while True:
            met: RendezvousInfo = super().next_rendezvous()
            store: Any = self._store
            if not store.check([joined]):
                break
            self._wait_for_the_end_of(store)
            self._store = None
        store.set(_HERE.format(self.rank), "")
        # Until then a lost node has started nothing: who takes its place joins the same round.
        store.wait([_HERE.format(node) for node in range(self.world_size)], timedelta(seconds=self._timeout_s))
        store.set(joined, "")
        host = self._address()
        self._watch.start(lambda: self._connected(host), joined)
        return met

    def _address(self) -> str:
        """Node 0's in this round: when a connection ends, the cluster's name servers may be away, too."""
        with contextlib.suppress(OSError):
            return str(socket.getaddrinfo(self.master_addr, self.master_port, type=socket.SOCK_STREAM)[0][4][0])
        return str(self.master_addr)

    def _connected(self, host: str) -> Store:
        # PyTorch would write stack traces where nobody answers.
        socket.create_connection((host, self.master_port), _CONNECT_S).close()
        timeout = timedelta(seconds=_CONNECT_S)
        return TCPStore(host, self.master_port, is_master=False, wait_for_workers=False, timeout=timeout)

    def _wait_for_the_end_of(self, store: Store) -> None:
        log.warning("node 0 is still in the round that this node was lost from: waiting for its end")
        until = time.monotonic() + self._timeout_s
        with contextlib.suppress(DistError):
            store.set(_OVER, "")
            while store.check([_OVER]):
                if time.monotonic() > until:
                    raise PeerFailedError(f"node 0 did not end the round before within {self._timeout_s} s")
                time.sleep(LOOK_S)


@contextlib.contextmanager
def use_rendezvous(on_over: Callable[[], None]) -> Iterator[None]:
    """Have torchrun know the rendezvous `RENDEZVOUS`, which calls `on_over` as of `Watch`."""
    watch = Watch(on_over)
    token = _watch.set(watch)
    rendezvous_handler_registry.register(RENDEZVOUS, Rendezvous)
    try:
        yield
    finally:
        watch.stop()
        _watch.reset(token)


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
