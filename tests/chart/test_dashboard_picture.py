"""The pictures of the dashboards in the documentation: drawn from their JSON and a Prometheus's answers."""

import json
import threading
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from matplotlib.colors import to_rgba

from dashgen import cli, picture, prometheus
from dashgen.prometheus import Series, Span
from dashgen.units import written
from docgen import command

SPAN = Span(begin_s=1_800_000_000, end_s=1_800_003_600)
ANSWERS = {
    "sum(refused)": (422, {"status": "error", "error": "found duplicate series"}),
    "up": (200, {"data": {"result": [{"metric": {"job": "a"}, "value": [5, "1"], "values": [[5, "1"], [20, "0.5"]]}]}}),
}


class _Prometheus(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        status, answer = ANSWERS[asked["query"][0]]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    """The address of something that answers as Prometheus does."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Prometheus)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_answers_are_read_and_refusals_named(server: str) -> None:
    """With the query that was refused, and why."""
    assert prometheus.at_the_end(server, "up", SPAN) == [Series(labels={"job": "a"}, points=[(5, 1)])]
    assert prometheus.over_time(server, "up", SPAN) == [Series(labels={"job": "a"}, points=[(5, 1), (20, 0.5)])]
    with pytest.raises(OSError, match=r"found duplicate series, in answer to sum\(refused\)"):
        prometheus.at_the_end(server, "sum(refused)", SPAN)
    with pytest.raises(OSError, match="no address of a Prometheus"):
        prometheus.at_the_end("file:///etc", "up", SPAN)


def test_variables_are_filled_in_as_grafana_does() -> None:
    """Its own, too: a rate covers four scrapes at least."""
    query = 'rate(x{namespace=~"$namespace"}[$__rate_interval]) > $__range_s'
    assert prometheus.filled(query, SPAN, {"namespace": "a|b"}) == 'rate(x{namespace=~"a|b"}[60s]) > 3600'
    assert Series(labels={"a": "1"}, points=[]).named("{{a}}/{{b}}") == "1/"


@pytest.mark.parametrize(
    ("value", "unit", "decimals", "text"),
    [
        (0, "s", None, "0 s"),
        (0.0005, "s", None, "500 µs"),
        (5400, "s", None, "1.5 h"),
        (0.256, "percentunit", 0, "26 %"),
        (24 * 2**30, "bytes", None, "24 GiB"),
        (0, "bytes", None, "0 B"),
        (12_345, "short", None, "12.3 K"),
        (12_345, "none", None, "12345"),
        (0.0002, "sci", None, "2.00e-04"),
        (2.1, "cps", None, "2.1 c/s"),
        (float("nan"), "s", None, "nan"),
    ],
)
def test_numbers_are_written_with_their_unit(value: float, unit: str, decimals: int | None, text: str) -> None:
    """As Grafana writes them."""
    assert written(value, unit, decimals) == text


def test_a_table_is_drawn_in_its_order_and_marks_what_a_run_does_not_have() -> None:
    """The run that failed last is above the others; one without progress has a mark in its place."""
    board = json.loads((command.REPOSITORY / cli.FOLDER / "fleet.json").read_text())
    ages = {"early": 3600.0, "late": 60.0, "middle": 600.0}

    def ask(query: str, over_time: bool) -> list[Series]:
        if over_time or "group_left" not in query or "progress_ratio" in query:
            return []
        labels = {"namespace": "team-a", "group": "Failed", "state": "OOMKilled"}
        return [Series(labels={**labels, "name": name}, points=[(5, age_s)]) for name, age_s in ages.items()]

    drawn = picture.draw(board, "team-a", SPAN, ask).texts
    names = [text for text in drawn if text.get_text() in ages]
    downwards = [text.get_text() for text in sorted(names, key=lambda text: -text.get_position()[1])]
    assert downwards == ["early", "middle", "late", "late", "middle", "early"]
    assert sum(text.get_text() == "-" for text in drawn) == len(ages)


@pytest.mark.parametrize(("found", "color"), [([], "none"), ([7.0], "#d0343f")])
def test_words_for_nothing_stand_on_the_color_that_grafana_gives_them(found: list[float], color: str) -> None:
    """No alert that fires has none; some are red. That no operator is scraped is red, too."""
    board = json.loads((command.REPOSITORY / cli.FOLDER / "fleet.json").read_text())
    shown = [panel for panel in board["panels"] if panel["title"] in ("Alerts", "Operators that lead")]

    def ask(query: str, over_time: bool) -> list[Series]:
        return [Series(labels={}, points=[(5, value)]) for value in found if "ALERTS" in query and not over_time]

    drawn = picture.draw({**board, "panels": shown}, "all", SPAN, ask)
    boxes = [patch.get_facecolor() for axes in drawn.axes for patch in axes.patches if patch.get_linewidth() == 0]
    assert boxes == [to_rgba(color), to_rgba("#d0343f")]


@pytest.mark.parametrize("name", ["fleet", "run"])
def test_every_panel_is_drawn_with_data_and_without(name: str, tmp_path: Path) -> None:
    """Its title, its legends and its values are there, or the words for their absence."""
    board = json.loads((command.REPOSITORY / cli.FOLDER / f"{name}.json").read_text())
    labels = {"namespace": "team-a", "name": "tone", "group": "Failed", "state": "OOMKilled", "alertname": "LoRAX"}

    def ask(query: str, over_time: bool) -> list[Series]:
        times = [SPAN.begin_s + 15 * number for number in range(241)] if over_time else [SPAN.end_s]
        return [Series(labels=labels, points=[(at_s, 7.25) for at_s in times])]

    full = picture.draw(board, "team-a", SPAN, ask)
    texts = {text.get_text() for text in full.texts}
    assert {panel["title"] for panel in board["panels"]} | {board["title"]} <= texts
    assert {"7.25", "Failed"} & texts
    full.savefig(tmp_path / "full.png", dpi=40)
    empty = picture.draw(board, "team-a", SPAN, lambda _, __: [])
    found = [text.get_text() for text in empty.texts]
    data = [panel for panel in board["panels"] if panel["type"] != "row"]
    for words, count in Counter(panel["fieldConfig"]["defaults"]["noValue"] or "No data" for panel in data).items():
        assert found.count(words) >= count
