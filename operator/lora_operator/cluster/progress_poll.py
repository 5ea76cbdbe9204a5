"""Asking running pods for their progress, beside the reconciles: nobody waits for an answer, and none can do harm."""

import asyncio
import http.client
import io
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import cast

from lora_operator.cluster.fair_slots import FairSlots
from lora_operator.cluster.store import Key
from lora_operator.model.objects import Answer, PodView
from lora_trainer.spec.progress import MAX_BYTES, PORT, Progress

logger = logging.getLogger(__name__)

PATH = "/progress"
MOST_AT_ONCE = 32
MOST_OF_NAMESPACE = 8
MOST_BYTES = MAX_BYTES + 4096
"""Of a whole answer, its headers included."""


@dataclass(slots=True, kw_only=True)
class _Pod:
    """What is known of one pod. `asked_at_s` is of the monotonic clock; `progress` is None while it is not known.

    `asked`: a question has come to its end, with an answer or without.
    """

    asked_at_s: float
    asked: bool = False
    progress: Progress | None = None
    task: asyncio.Task[None] | None = None


async def fetch_progress(ip: str, port: int = PORT) -> Progress:
    """What the pod at an address answers. Raises whatever keeps it from being known."""
    data = await _ask(_address(ip), port)
    if len(data) > MOST_BYTES:
        raise ValueError(f"the answer has more than {MOST_BYTES} bytes")
    response = http.client.HTTPResponse(cast("socket.socket", _Received(data)))
    response.begin()
    if response.status != 200:
        raise ValueError(f"the answer is {response.status}")
    return Progress.from_json(response.read())


class ProgressPoller:
    """Asks each pod at most once in an interval, and keeps its last answer by the pod's uid.

    The interval is `interval_s` of the number of pods that are asked. However many began together, `most_per_s` are
    asked in a second at most.

    A pod that answers late, too long, not at all or nonsense has no progress: its run goes on all the same. Hundreds of
    slow ones of one namespace keep no pod of another waiting.
    """

    def __init__(
        self,
        *,
        interval_s: Callable[[int], float],
        timeout_s: float,
        most_per_s: float,
        wake: Callable[[Key], None],
        clock: Callable[[], float],
        fetch: Callable[[str], Awaitable[Progress]] = fetch_progress,
    ) -> None:
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._wake = wake
        self._clock = clock
        self._fetch = fetch
        self._pods: dict[str, _Pod] = {}
        self._slots = FairSlots(most=MOST_AT_ONCE, most_of_namespace=MOST_OF_NAMESPACE)
        self._pause_s = 1 / most_per_s
        self._next_s = 0.0

    def __len__(self) -> int:
        """The pods that are asked."""
        return len(self._pods)

    def ask(self, key: Key, pod: PodView) -> float:
        """Start to ask a pod, unless it was asked lately; return the seconds until it can be asked again."""
        now, interval_s = self._clock(), self._interval_s(len(self._pods))
        known = self._pods.get(pod.uid)
        # Nine tenths, so that a turn that comes when it was due is never taken for one that came early.
        if known is not None and now - known.asked_at_s < 0.9 * interval_s:
            return known.asked_at_s + interval_s - now
        if known is not None and known.task is not None and not known.task.done():
            return interval_s
        state = known or _Pod(asked_at_s=now)
        state.asked_at_s = now
        self._pods[pod.uid] = state
        state.task = asyncio.create_task(self._poll(key, pod, state))
        return interval_s

    def latest(self, pods: Iterable[PodView]) -> Answer:
        """The last answer of the newest of these pods that gave one."""
        newest = sorted(pods, key=lambda pod: pod.created_at, reverse=True)
        known = [self._pods[pod.uid] for pod in newest if pod.uid in self._pods]
        progress = next((state.progress for state in known if state.progress is not None), None)
        return Answer(progress=progress, asked=any(state.asked for state in known))

    def keep_only(self, uids: set[str]) -> None:
        """Forget the pods that are gone."""
        self.forget([uid for uid in self._pods if uid not in uids])

    def forget(self, uids: Iterable[str]) -> None:
        """Forget pods whose run has ended: they are asked no more, and count no more."""
        for uid in uids:
            state = self._pods.pop(uid, None)
            if state is not None and state.task is not None:
                state.task.cancel()

    async def close(self) -> None:
        """Stop asking."""
        self.keep_only(set())

    async def _poll(self, key: Key, pod: PodView, state: _Pod) -> None:
        before = state.progress
        async with self._slots.slot(key.namespace):
            await self._keep_apart()
            try:
                async with asyncio.timeout(self._timeout_s):
                    state.progress = await self._fetch(pod.ip)
            except Exception as error:  # whatever a pod answers, and however a parser takes it, it is no news
                state.progress = None
                why = str(error)[:200] or type(error).__name__
                logger.debug("no progress from pod %s: %s", pod.name, why, extra={"finetune": key})
        state.asked = True
        if state.progress is not None or before is not None:
            self._wake(key)

    async def _keep_apart(self) -> None:
        """Wait for a turn: what begins all at once does not stay together."""
        now_s = asyncio.get_running_loop().time()
        turn_s = max(self._next_s, now_s)
        self._next_s = turn_s + self._pause_s
        if turn_s > now_s:
            await asyncio.sleep(turn_s - now_s)


class _Received:
    """An answer that was received, in place of the socket that `http.client` reads answers from."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _: str) -> io.BytesIO:
        """The answer from its beginning."""
        return io.BytesIO(self._data)


async def _ask(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> bytes:
    """All that a pod answers, up to one byte more than is allowed, which is enough to know that there is too much.

    HTTP clients buffer hundreds of KiB for each connection, and go on as long as headers or interim answers come: with
    fifty hostile pods that is the operator's memory. So no more is ever taken from the socket than what is allowed.
    """
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET) as connection:
        connection.setblocking(False)
        await loop.sock_connect(connection, (str(address), port))
        # HTTP/1.0, as the end of the connection is then the end of the answer.
        await loop.sock_sendall(connection, f"GET {PATH} HTTP/1.0\r\nAccept: application/json\r\n\r\n".encode())
        data = b""
        while len(data) <= MOST_BYTES:
            part = await loop.sock_recv(connection, MOST_BYTES + 1 - len(data))
            if not part:
                break
            data += part
        return data


def _address(ip: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The pod's address. Raises ValueError where it is none of a pod, such as a cloud's metadata service."""
    address = ipaddress.ip_address(ip)
    # A mapped one means the IPv4 address that it holds.
    if getattr(address, "ipv4_mapped", None) or address.is_link_local or address.is_multicast or address.is_unspecified:
        raise ValueError(f"{ip} is not the address of a pod")
    return address
