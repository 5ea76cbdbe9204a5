"""docs/metrics.md says what the registries hold."""

from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs/metrics.md"


def test_every_metric_has_a_meaning_and_a_type() -> None:
    """Each row is complete."""
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert len(rows) > 30
    assert all(cell.strip() for row in rows for cell in (row.split("|")[2], row.split("|")[4]))
