"""Trainers that are asked for their progress, played at loopback addresses: those that answer, and slow ones."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lora_trainer.spec.progress import PORT, Phase, Progress

ANSWERING = "127.0.0.1"
SLOW = "127.0.0.2"
_STEPS = 100_000


@contextmanager
def played_trainers(answering: str = ANSWERING) -> Iterator[None]:
    """Trainers that make a step a second at one address, and at the other such as take a question and never answer."""
    loop, ended = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        begin_s = time.monotonic()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.IncompleteReadError):  # of an operator that is told to stop
                await reader.readuntil(b"\r\n\r\n")
            step = int(time.monotonic() - begin_s)
            stated = Progress(
                phase=Phase.TRAINING, step=step, total_steps=_STEPS, loss=1 + 1 / (1 + step), updated_at=step
            )
            body = stated.to_json().encode()
            writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
            writer.close()

        async def be_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()  # until whoever asked has hung up
            writer.close()

        servers = [
            await asyncio.start_server(talk, address, PORT, backlog=1024)
            for address, talk in ((answering, answer), (SLOW, be_silent))
        ]
        ready.set()
        await ended.wait()
        for server in servers:
            server.close()

    ready = threading.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    if not ready.wait(10):
        raise SystemExit(f"no trainer can be played at {answering}:{PORT} and {SLOW}:{PORT}: is the port taken?")
    try:
        yield
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
