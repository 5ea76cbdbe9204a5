"""What `/metrics` answers, piece by piece: the text of thousands of resources is never whole in memory."""

import zlib
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import cast

from prometheus_client import CollectorRegistry, Metric, exposition

from lora_operator.running.object_metrics import ObjectFamily

_PIECE_BYTES = 2**18
_LEVEL = 1
_GZIP = 16 + zlib.MAX_WBITS
_END = b"# EOF\n"


def pieces(registry: CollectorRegistry, accept: str) -> tuple[str, Iterator[bytes]]:
    """The content type that a scraper takes, and the text in that format."""
    encode, content_type = exposition.choose_encoder(accept)
    openmetrics = content_type.startswith("application/openmetrics-text")

    def text() -> Iterator[bytes]:
        families = list(registry.collect())
        others = [family for family in families if not isinstance(family, ObjectFamily)]
        yield encode(_only(others)).removesuffix(_END)
        yield from _joined(
            line
            for family in families
            if isinstance(family, ObjectFamily)
            for line in family.lines(openmetrics=openmetrics)
        )
        if openmetrics:
            yield _END

    return content_type, text()


def compressed(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The same as gzip. The text repeats itself so much that the fastest level suffices."""
    squeeze = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    for part in parts:
        if piece := squeeze.compress(part):
            yield piece
    yield squeeze.flush()


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether a scraper takes gzip, which `q=0` refuses."""
    for offer in accept_encoding.lower().split(","):
        coding, _, weight = offer.partition(";")
        if coding.strip() == "gzip":
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _only(families: list[Metric]) -> CollectorRegistry:
    """As much of a registry as an encoder asks of one."""
    return cast("CollectorRegistry", SimpleNamespace(collect=lambda: families))


def _joined(lines: Iterable[str]) -> Iterator[bytes]:
    waiting: list[str] = []
    size = 0
    for line in lines:
        waiting.append(line)
        size += len(line)
        if size >= _PIECE_BYTES:
            yield _bytes(waiting)
            waiting, size = [], 0
    yield _bytes(waiting)


def _bytes(lines: list[str]) -> bytes:
    return "".join(lines).encode(errors="replace")
