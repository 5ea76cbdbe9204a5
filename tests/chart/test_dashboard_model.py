"""The dashboards in the words of Grafana's own model, as its Foundation SDK has it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashgen import cli
from docgen import command

FILES = sorted((command.REPOSITORY / cli.FOLDER).glob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_grafana_knows_every_key_and_leaves_it_as_it_is(file: Any) -> None:
    """Decoded and encoded again nothing is lost or changed; defaults may be added."""
    plugins.register_default_plugins()
    board = json.loads(file.read_text())
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    # The SDK writes no null, and does not know what Prometheus's own part of Grafana reads from an annotation.
    known = {".id", ".annotations.list[].titleFormat"}
    assert {path for path in _lost(board, again) if path not in known} == set()


def test_what_grafana_does_not_know_is_found() -> None:
    """A key that is misspelt, and one whose value is of another kind."""
    assert list(_lost({"a": [{"b": 1, "c": 2}], "d": 1}, {"a": [{"b": 1}], "d": 2})) == [".a[].c", ".d"]


def _lost(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Where `after` lacks something of `before` or has something else."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            if key in after:
                yield from _lost(value, after[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for one, other in zip(before, after, strict=True):
            yield from _lost(one, other, f"{path}[]")
    elif before != after:
        yield path
