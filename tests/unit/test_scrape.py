"""What a scraper of the operator gets: the library's text, in pieces, compressed where it takes that."""

import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry, exposition
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_plain
from tests.unit.builders import NOW, condition_object, make_finetune

from lora_operator.running.health import make_application
from lora_operator.running.metrics import Metrics
from lora_operator.running.object_metrics import ObjectCollector
from lora_operator.running.scrape import accepts_gzip, compressed, pieces
from lora_operator.views.model import FineTune

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.3"
HOSTILE = ("a" * 52, 'x"y', "back\\slash", "{{ .Values }}", "line\nend", "Ä 漢字 \U0001f600", "\ud800", "}", 'a",b="c')


def hostile(text: str) -> FineTune:
    """A resource whose every text that a label shows is this one, and whose annotations, which none shows, hold it."""
    status = {
        "conditions": [condition_object("Complete", reason=text), condition_object(text)],
        "resolved": {"quantization": text},
        "advice": [{"code": text, "severity": "Info"}],
        "results": {"trainLoss": text},
    }
    noted = f"{text} annotated"
    maps = {"labels": {"kueue.x-k8s.io/queue-name": text}, "annotations": {noted: noted}}
    metadata = {"name": text, "namespace": text, **maps}
    return make_finetune(spec={"model": {"uri": text}}, status=status, metadata=metadata)


def registry_of(*finetunes: FineTune) -> CollectorRegistry:
    registry = CollectorRegistry()
    Metrics(registry)
    registry.register(ObjectCollector(finetunes, NOW.timestamp))
    return registry


def samples_in(families: Any) -> Iterator[tuple[str, tuple[tuple[str, str], ...], float]]:
    for family in families:
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                yield sample.name, tuple(sorted(sample.labels.items())), sample.value


def series_in(text: str) -> set[str]:
    """Names and labels as they are written."""
    lines = text.splitlines()
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#") and "_created" not in line}


@pytest.mark.parametrize("accept", ["", "text/plain;version=0.0.4", OPENMETRICS])
def test_the_text_has_the_samples_of_the_librarys_and_every_time(accept: str) -> None:
    """Samples are made while they are written: none may be missing from the second scrape, whatever their labels."""
    readable = [hostile(text) for text in HOSTILE if text != "\ud800"]
    registry = registry_of(*readable, make_finetune(status={"attempt": 2, "results": {"trainLoss": "0.1"}}))
    encode, wanted_type = exposition.choose_encoder(accept)
    read = read_openmetrics if accept == OPENMETRICS else read_plain
    whole = encode(registry).decode()
    wanted = sorted(samples_in(read(whole)))
    for _ in range(2):
        content_type, parts = pieces(registry, accept)
        text = b"".join(parts).decode()
        assert content_type == wanted_type
        assert sorted(samples_in(read(text))) == wanted
        assert series_in(text) == series_in(whole), "labels have their place, by which people search with grep"
        assert text.endswith("# EOF\n") == (accept == OPENMETRICS)
    assert sum(name == "lorafinetune_info" for name, _, _ in wanted) == len(HOSTILE)


def test_no_text_that_somebody_wrote_breaks_a_line() -> None:
    """Also one that is no Unicode text; a resource costs its own series only."""
    for text in HOSTILE:
        body = b"".join(pieces(registry_of(hostile(text)), "")[1]).decode()
        names = [sample.name for family in read_plain(body) for sample in family.samples]
        assert names.count("lorafinetune_info") == 1
        assert names.count("lorafinetune_advice") == 0
        assert "annotated" not in body


def test_the_text_comes_in_pieces() -> None:
    """That of thousands of resources is never whole in memory."""
    registry = registry_of(*(make_finetune(metadata={"name": f"run-{number}"}) for number in range(2000)))
    sizes = [len(part) for part in pieces(registry, "")[1]]
    assert sum(sizes) > 2**20
    assert max(sizes) < 2**19


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        ("", False),
        ("gzip", True),
        ("identity", False),
        ("deflate, GZIP;q=1.0, *;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip; q=0.0", False),
        ("xgzip", False),
    ],
)
def test_gzip_is_for_those_who_take_it(header: str, *, taken: bool) -> None:
    """As HTTP has it."""
    assert accepts_gzip(header) is taken


@pytest.mark.parametrize("gzip", [False, True])
async def test_a_scrape_is_answered_in_either_way(*, gzip: bool) -> None:
    """Plain text is what the compressed text was."""
    registry = registry_of(make_finetune())
    application = make_application(registry, healthy=lambda: "", ready=lambda: "")
    headers = {"Accept-Encoding": "gzip" if gzip else "identity", "Accept": OPENMETRICS}
    async with (
        TestServer(application, host="127.0.0.1") as server,
        ClientSession(auto_decompress=False) as session,
        session.get(server.make_url("/metrics"), headers=headers) as answer,
    ):
        body = await answer.read()
        assert answer.headers.get("Content-Encoding") == ("gzip" if gzip else None)
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    text = zlib.decompress(body, 31) if gzip else body
    assert text.endswith(b"# EOF\n")
    assert b"lorafinetune_attempts{" in text


def test_compressing_loses_nothing_and_makes_a_tenth_of_many_resources() -> None:
    """Names repeat themselves."""
    parts = list(pieces(registry_of(*(make_finetune(metadata={"name": f"run-{n}"}) for n in range(500))), "")[1])
    squeezed = b"".join(compressed(parts))
    assert zlib.decompress(squeezed, 31) == b"".join(parts)
    assert len(squeezed) < len(b"".join(parts)) / 10


async def test_a_scrape_that_fails_says_so() -> None:
    """With a status, not with a text that ends in the middle."""

    class Broken:
        def collect(self) -> Iterator[Any]:
            raise RuntimeError

    application = make_application(Broken(), healthy=lambda: "", ready=lambda: "")  # type: ignore[arg-type]
    async with (
        TestServer(application, host="127.0.0.1") as server,
        ClientSession() as session,
        session.get(server.make_url("/metrics")) as answer,
    ):
        assert answer.status == 500
