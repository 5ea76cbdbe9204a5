"""How sure a loss over rows is."""

import math
from collections.abc import Sequence


def ratio_standard_error(sums: Sequence[float], sizes: Sequence[int]) -> float | None:
    """Standard error of sum(sums) / sum(sizes) over rows; None for a single row, which says nothing of others.

    The linearised ratio estimator (Cochran, Sampling Techniques, 3rd ed., section 6.4): tokens of one row are not
    independent, rows are.
    """
    rows, total = len(sums), sum(sizes)
    if rows < 2:
        return None
    ratio = sum(sums) / total
    squares = sum((value - ratio * size) ** 2 for value, size in zip(sums, sizes, strict=True))
    return math.sqrt(squares * rows / (rows - 1)) / total
