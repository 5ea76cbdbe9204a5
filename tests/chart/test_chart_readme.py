"""The chart's README, made from its values and their schema."""

from typing import Any

import pytest

from docgen import chart_readme


def test_a_value_without_description_stops_the_generator() -> None:
    """A value that the schema does not know cannot slip into the chart."""
    chart = {"name": "c", "description": "d", "version": "1", "appVersion": "1", "kubeVersion": ">=1.31.0-0"}
    assert "needs Kubernetes 1.31.0 or later" in chart_readme.render(chart, {}, {"properties": {}}, "c")
    with pytest.raises(KeyError, match="new"):
        chart_readme.render(chart, {"new": 1}, {"properties": {}}, "c")
    group = {"properties": {"group": {"description": "A group.", "properties": {}}}}
    with pytest.raises(KeyError, match="new"):
        chart_readme.render(chart, {"group": {"new": 1}}, group, "c")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({}, "Why."),
        ({"enum": ["a", "b", "c"]}, "Why. `a`, `b` or `c`."),
        ({"minimum": 0, "maximum": 5}, "Why. From 0 to 5."),
        ({"minimum": 0.1}, "Why. At least 0.1."),
    ],
)
def test_a_value_is_described_with_what_it_may_be(rule: dict[str, Any], words: str) -> None:
    """Helm names a value that it refuses, and often no remedy."""
    schema = {"properties": {"value": {"description": "Why.", **rule}}}
    assert list(chart_readme.leaves({"value": 1}, schema)) == [("value", 1, words)]
