"""What an API server says of the requests that it served."""

import re

_CPU = re.compile(r"^process_cpu_seconds_total (\S+)$", re.MULTILINE)
_BUCKET = re.compile(r"^apiserver_request_duration_seconds_bucket\{(.*)\} (\S+)$", re.MULTILINE)
_WRITES = ("PUT", "PATCH", "POST")


def cpu_s(text: str) -> float:
    """Seconds of CPU that the server has used so far. Raises ValueError where it does not say."""
    found = _CPU.search(text)
    if found is None:
        raise ValueError("the API server's metrics have no process_cpu_seconds_total")
    return float(found[1])


def write_percentile_s(before: str, after: str, resource: str, share: float) -> float:
    """Upper bound in seconds of so many of the writes to a resource between two readings of the server's metrics."""
    first, last = _buckets(before, resource), _buckets(after, resource)
    counts = {bound: last[bound] - first.get(bound, 0.0) for bound in sorted(last)}
    total = max(counts.values(), default=0.0)
    return next((bound for bound, count in counts.items() if count >= share * total), 0.0)


def _buckets(text: str, resource: str) -> dict[float, float]:
    sums: dict[float, float] = {}
    for labels, value in _BUCKET.findall(text):
        fields = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if fields["resource"] == resource and fields["verb"] in _WRITES:
            bound = float(fields["le"])
            sums[bound] = sums.get(bound, 0.0) + float(value)
    return sums
