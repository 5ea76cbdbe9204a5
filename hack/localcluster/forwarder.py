"""Ports of the host's 127.0.0.1 that lead into the cluster: `python3 -m localcluster.forwarder`.

    forwarder NODE_PID LOCAL_PORT=HOST:PORT [LOCAL_PORT=HOST:PORT ...]

It listens here, then enters the network namespace of NODE_PID, and so connects from inside it. It
ends with that process, since an open namespace would outlive the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A port on the host's 127.0.0.1 and the IPv4 address and port it leads to."""

    local_port: int
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.local_port}={self.host}:{self.port}"

    @staticmethod
    def parse(text: str) -> Route:
        """Read LOCAL_PORT=HOST:PORT. Raises ValueError for anything else."""
        local, _, target = text.partition("=")
        host, _, port = target.rpartition(":")
        socket.inet_aton(host)
        return Route(local_port=int(local), host=host, port=int(port))


async def serve(node_pid: int, routes: list[Route]) -> None:
    node = os.pidfd_open(node_pid)
    listeners = [(socket.create_server(("127.0.0.1", route.local_port)), route) for route in routes]
    # The sockets above stay in the host's namespace; every socket made from here on is in the node's.
    enter_network(node_pid)
    servers = [await asyncio.start_server(joined_to(route), sock=listener) for listener, route in listeners]
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(node, ended.set)
    await ended.wait()
    for server in servers:
        server.close()


def enter_network(pid: int) -> None:
    """Move this thread into the network namespace of a process. Raises OSError."""
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace of process {pid}")
    finally:
        os.close(descriptor)


def joined_to(route: Route) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """What a server does with a connection: join it to a new one to the route's target."""

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(route.host, route.port)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        finally:
            for end in (writer, far_writer):
                end.close()
                with contextlib.suppress(OSError):
                    await end.wait_closed()

    return join


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what arrives, and its end; the other direction may go on after it."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), [Route.parse(text) for text in sys.argv[2:]]))
