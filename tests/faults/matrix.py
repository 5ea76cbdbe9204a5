"""Every fault that the operator is made for: what goes wrong, what the user sees of it, and what is never lost.

Tests name what they prove with `@pytest.mark.fault("A3")` for a whole row and `fault("A3.one-job")` for one promise of
it, and assert it with proofs.py; docs/faults.md is made from both.
"""

from collections.abc import Mapping

from tests.faults import rows_content, rows_control_plane, rows_ends, rows_waits
from tests.faults.promises import Promise, Row

SECTIONS = {
    "A": "The control plane and the operator itself",
    "B": "Jobs, pods and nodes",
    "C": "What a run consists of",
}
ROWS: tuple[Row, ...] = (*rows_control_plane.ROWS, *rows_ends.ROWS, *rows_waits.ROWS, *rows_content.ROWS)
PROMISES: Mapping[str, Promise] = {name: promise for row in ROWS for name, promise in row.promises()}


def promises_of(mark: str) -> tuple[str, ...]:
    """The promises that a mark names: one, or all of its row."""
    if mark in PROMISES:
        return (mark,)
    names = tuple(name for name in PROMISES if name.partition(".")[0] == mark)
    assert names, f"no row and no promise is called {mark}"
    return names
