"""How sure a loss over rows is."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any


def ratio_standard_error(sums: Sequence[float], sizes: Sequence[int], rows: Sequence[int] = ()) -> float | None:
    """Standard error of sum(sums) / sum(sizes) over rows; None for a single row, which says nothing of others.

    `rows` numbers the row that each is of, where one became several samples.

    The linearised ratio estimator (Cochran, Sampling Techniques, 3rd ed., section 6.4): tokens of one row are not
    independent, rows are.
    """
    if rows:
        sums, sizes = _by_row(sums, rows), _by_row(sizes, rows)
    count, total = len(sums), sum(sizes)
    if count < 2:
        return None
    ratio = sum(sums) / total
    squares = sum((value - ratio * size) ** 2 for value, size in zip(sums, sizes, strict=True))
    return math.sqrt(squares * count / (count - 1)) / total


def _by_row(values: Iterable[float], rows: Iterable[int]) -> Sequence[Any]:
    totals: defaultdict[int, Any] = defaultdict(int)
    for row, value in zip(rows, values, strict=True):
        totals[row] += value
    return list(totals.values())
