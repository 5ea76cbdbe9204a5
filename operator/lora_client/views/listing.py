"""Runs as a table, with the columns of `kubectl get lft`."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from lora_client.views.resources import Object, age, name_of, namespace_of, state, text

HEAD = ("NAME", "STATE", "MODEL", "RANK", "QUANT", "STEP", "LOSS", "ETA", "AGE")


def table(resources: Iterable[Object], now: datetime, *, everywhere: bool) -> list[str]:
    """A line for each run beneath the head."""
    rows = [(("NAMESPACE", *HEAD) if everywhere else HEAD)]
    for resource in resources:
        row = (
            name_of(resource),
            state(resource),
            text(resource, "spec", "model", "uri"),
            text(resource, "spec", "lora", "rank"),
            text(resource, "status", "resolved", "quantization"),
            text(resource, "status", "progress", "steps"),
            text(resource, "status", "progress", "loss"),
            text(resource, "status", "progress", "eta"),
            age(resource, now),
        )
        rows.append((namespace_of(resource), *row) if everywhere else row)
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns three spaces apart, as kubectl sets them."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["   ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
