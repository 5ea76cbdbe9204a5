"""Queries of histograms."""


def quantile(share: float, change: str, histogram: str, selected: str) -> str:
    """Within what `share` of the observations lie; nothing, rather than NaN, where there were none. `change`: increase
    or rate, of what `selected` takes."""
    buckets = f"sum by (le) ({change}({histogram}_bucket{selected}))"
    return f"histogram_quantile({share}, {buckets}) and on () sum({change}({histogram}_count{selected})) > 0"
