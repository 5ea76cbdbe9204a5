"""What dashboards and rules ask, and whether a Prometheus has an answer."""

import json
import math
import re
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tests.chart import promql

from dashgen import prometheus
from dashgen.cli import FOLDER
from docgen.command import REPOSITORY

BOARDS: Mapping[str, dict[str, Any]] = {
    file.stem: json.loads(file.read_text()) for file in sorted((REPOSITORY / FOLDER).glob("*.json"))
}
_SELECTOR = re.compile(r"(?<![\w:\"'=])([a-zA-Z_:][\w:]*)(\{[^}]*\})?")


def questions(board: Mapping[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Of each panel and annotation: where it stands, the query, and whether it is asked over time."""
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield f"{panel['title']}: {target['legendFormat']}", target["expr"], target["range"]
    yield from ((f"mark: {note['name']}", note["expr"], True) for note in board["annotations"]["list"])


def has_data(url: str, query: str, span: prometheus.Span, *, over_time: bool) -> bool:
    """Whether there is a number in the answer. Raises OSError where the query is refused."""
    answer = prometheus.over_time if over_time else prometheus.at_the_end
    found = answer(url, query, span)
    return any(not math.isnan(value) for series in found for _, value in series.points)


def label_values(url: str, query: str, choice: Mapping[str, str]) -> list[str]:
    """What a variable of the dashboard offers."""
    text, label = re.fullmatch(r"label_values\((.+), (\w+)\)", query).groups()  # type: ignore[union-attr] # else it is wrong
    for name, value in choice.items():
        text = text.replace(f"${name}", value)
    asked = urllib.parse.urlencode({"match[]": text})
    with urllib.request.urlopen(f"{url}/api/v1/label/{label}/values?{asked}", timeout=300) as answer:  # noqa: S310
        return list(json.load(answer)["data"])


def selectors(expression: str, recorded: Iterable[str]) -> list[str]:
    """The series that a rule reads, without the times at which it does."""
    known = {*promql.known_series(), *recorded}
    text = re.sub(r"#.*", "", expression)
    return [name + (labels or "") for name, labels in _SELECTOR.findall(text) if name in known]
