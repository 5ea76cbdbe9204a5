"""Numbers as Grafana writes them, by the name of a unit."""

import math

_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")
_TIMES = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_SHORT = ((1e9, " B"), (1e6, " M"), (1e3, " K"))
_RATES = {"cps": " c/s", "reqps": " req/s"}


def written(value: float, unit: str, decimals: int | None = None) -> str:
    """The number with its unit."""
    if not math.isfinite(value):
        return str(value)
    if unit == "percentunit":
        return f"{_digits(100 * value, decimals)} %"
    if unit == "sci":
        return f"{value:.2e}"
    if unit == "bytes":
        power = min(len(_BYTES) - 1, int(math.log(abs(value), 1024))) if abs(value) >= 1 else 0
        return f"{_digits(value / 1024**power, decimals)} {_BYTES[power]}"
    if unit == "s":
        size, name = next((pair for pair in _TIMES if abs(value) >= pair[0]), _TIMES[3])
        return f"{_digits(value / size, decimals)} {name}"
    size, name = next((pair for pair in _SHORT if unit == "short" and abs(value) >= pair[0]), (1.0, ""))
    return f"{_digits(value / size, decimals)}{name}{_RATES.get(unit, '')}"


def _digits(value: float, decimals: int | None) -> str:
    if decimals is not None:
        return f"{value:.{decimals}f}"
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return "0" if value == 0 else text
