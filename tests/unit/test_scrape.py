"""What a scraper of the operator gets: the library's text, compressed where it takes that."""

import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.builders import NOW, condition_object, make_finetune

from lora_operator.controller.health import make_application
from lora_operator.controller.object_metrics import ObjectCollector
from lora_operator.model.objects import FineTune

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.3"
HOSTILE = ("a" * 52, 'x"y', "back\\slash", "{{ .Values }}", "line\nend", "Ä 漢字 \U0001f600", "}", 'a",b="c')


def hostile(text: str) -> FineTune:
    """A resource whose every text that a label shows is this one, and whose annotations, which none shows, hold it."""
    status = {
        "conditions": [condition_object("Complete", reason=text), condition_object(text)],
        "resolved": {"quantization": text},
        "advice": [{"code": text, "severity": "Info"}],
        "results": {"evalLossAfter": text},
    }
    noted = f"{text} annotated"
    maps = {"labels": {"kueue.x-k8s.io/queue-name": text}, "annotations": {noted: noted}}
    metadata = {"name": text, "namespace": text, **maps}
    return make_finetune(spec={"model": {"uri": text}}, status=status, metadata=metadata)


def registry_of(*finetunes: FineTune) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(ObjectCollector(finetunes, NOW.timestamp))
    return registry


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_that_somebody_wrote_breaks_a_line(text: str) -> None:
    """A resource costs its own series only."""
    body = generate_latest(registry_of(hostile(text))).decode()
    names = [sample.name for family in text_string_to_metric_families(body) for sample in family.samples]
    assert names.count("lorafinetune_info") == 1
    assert names.count("lorafinetune_advice") == 0
    assert "annotated" not in body


@pytest.mark.parametrize("gzip", [False, True])
async def test_a_scrape_is_answered_in_either_way(*, gzip: bool) -> None:
    """As the scraper asks for it."""
    application = make_application(registry_of(make_finetune()), ready=lambda: "")
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


async def test_a_scrape_that_fails_says_so() -> None:
    """With a status, not with a text that ends in the middle."""

    class Broken:
        def collect(self) -> Iterator[Any]:
            raise RuntimeError

    application = make_application(Broken(), ready=lambda: "")  # type: ignore[arg-type]
    async with (
        TestServer(application, host="127.0.0.1") as server,
        ClientSession() as session,
        session.get(server.make_url("/metrics")) as answer,
    ):
        assert answer.status == 500
