"""What Prometheus answers to the queries of a dashboard."""

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_POINTS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The time that is shown, in seconds since 1970, and how far samples are apart."""

    begin_s: float
    end_s: float
    scrape_s: float = 15

    @property
    def step_s(self) -> float:
        """Between two points of a curve."""
        return max(self.scrape_s, (self.end_s - self.begin_s) // _POINTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One series of an answer: its labels, and its values by seconds since 1970."""

    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]

    def named(self, legend: str) -> str:
        """The legend, {{label}} in it filled in."""
        return re.sub(r"\{\{(\w+)\}\}", lambda label: self.labels.get(label[1], ""), legend)


def filled(query: str, span: Span, variables: Mapping[str, str]) -> str:
    """The query as Grafana sends it: with the values of variables and of those that it makes itself."""
    own = {"__rate_interval": f"{max(4 * span.scrape_s, span.step_s + span.scrape_s):.0f}s"}
    own |= {"__range_s": f"{span.end_s - span.begin_s:.0f}"}
    for name, value in {**own, **variables}.items():
        query = query.replace(f"${name}", value)
    return query


def at_the_end(url: str, query: str, span: Span) -> list[Series]:
    """The values at the end of the span. Raises OSError where Prometheus does not answer, or refuses the query."""
    found = _ask(url, "query", {"query": query, "time": span.end_s})
    return [Series(labels=one["metric"], points=[_point(one["value"])]) for one in found]


def over_time(url: str, query: str, span: Span) -> list[Series]:
    """The values over the span. Raises as `at_the_end`."""
    asked = {"query": query, "start": span.begin_s, "end": span.end_s, "step": span.step_s}
    found = _ask(url, "query_range", asked)
    return [Series(labels=one["metric"], points=[_point(pair) for pair in one["values"]]) for one in found]


def _ask(url: str, what: str, parameters: Mapping[str, object]) -> list[dict[str, Any]]:
    if not url.startswith(("http://", "https://")):
        raise OSError(f"{url} is no address of a Prometheus: write http://HOST:PORT")
    body = urllib.parse.urlencode(parameters).encode()
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/api/v1/{what}", body, timeout=60) as answer:  # noqa: S310 - see above
            return list(json.load(answer)["data"]["result"])
    except urllib.error.HTTPError as error:
        reason = json.loads(error.read() or "{}").get("error", error.reason)
        raise OSError(f"{reason}, in answer to {parameters['query']}") from error


def _point(pair: Sequence[Any]) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])
