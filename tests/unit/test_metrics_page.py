"""docs/metrics.md says what the registries hold."""

from pathlib import Path

from prometheus_client import CollectorRegistry

from lora_operator.running.metrics import Metrics

PAGE = Path(__file__).resolve().parents[2] / "docs/metrics.md"


def test_every_metric_has_a_meaning_and_a_type() -> None:
    """Each row is complete."""
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert len(rows) > 30
    assert all(cell.strip() for row in rows for cell in (row.split("|")[2], row.split("|")[4]))


def test_labels_of_series_that_are_born_later_are_the_declared_ones() -> None:
    """The page cannot read them off a series that does not exist."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.runs.finished.labels("n", "failed", "r").inc()
    metrics.runs.restarts.labels("n", "c").inc()
    families = {family.name: family for family in registry.collect()}
    for name in ("lorafinetune_finished", "lorafinetune_restarts"):
        labels = ", ".join(f"`{label}`" for label in families[name].samples[0].labels)
        assert f"| `{name}_total` | counter | {labels} |" in PAGE.read_text()
