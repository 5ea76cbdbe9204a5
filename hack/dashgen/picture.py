"""Draws a dashboard from its JSON and what a Prometheus answers to its queries, for the documentation.

Grafana itself is no part of it: places, titles, units, legends, colors and thresholds are those of the JSON.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from dashgen.prometheus import Series, Span
from dashgen.units import written

_COLORS = {"green": "#3f9142", "red": "#d0343f", "orange": "#e07f1c", "blue": "#3274d9", "text": "#3a3f47"}
_COLORS |= {"transparent": "none"}
_CYCLE = ("#3f9142", "#c9a100", "#3274d9", "#e07f1c", "#d0343f", "#8f3bb8", "#2a9d9d", "#705da0")
_INK, _FAINT, _PAPER = "#24292e", "#8a9099", "#f4f5f5"
_COLUMN_IN, _ROW_IN, _GAP_IN = 0.58, 0.31, 0.06
_HEAD_IN, _LINE_IN = 0.62, 0.17
_NAME = 30
"""Characters of a curve's name."""
_TICKS_S = (60, 300, 600, 1800, 3600, 7200, 14400, 43200)

Json = Mapping[str, Any]
Answers = Sequence[Sequence[Series]]
"""The series of each query of a panel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Of a panel on the picture, in inches from its lower left corner."""

    left: float
    bottom: float
    width: float
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """The picture, and what all panels share."""

    figure: Figure
    span: Span
    notes: Sequence[tuple[float, str]]

    def axes(self, place: Place, left: float = 0.0, bottom: float = 0.0, right: float = 0.0, top: float = 0.0) -> Axes:
        """Axes within a place, with margins in inches."""
        wide, high = self.figure.get_size_inches()
        x, y = (place.left + left) / wide, (place.bottom + bottom) / high
        return self.figure.add_axes((x, y, (place.width - left - right) / wide, (place.height - bottom - top) / high))

    def text(self, place: Place, right: float, up: float, text: str, **style: Any) -> None:
        """A text within a place, so many inches from its lower left corner."""
        wide, high = self.figure.get_size_inches()
        self.figure.text((place.left + right) / wide, (place.bottom + up) / high, text, **({"color": _INK} | style))


def draw(board: Json, choice: str, span: Span, ask: Callable[[str, bool], list[Series]]) -> Figure:
    """The dashboard. `choice` says which values its variables have; `ask` answers a query, at the end of the span or
    over it where the second argument is true."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    high = rows * _ROW_IN + _HEAD_IN
    figure = Figure(figsize=(24 * _COLUMN_IN, high), facecolor=_PAPER)
    notes = [
        (at_s, note["iconColor"])
        for note in board["annotations"]["list"]
        for at_s in _events(ask(note["expr"], True), span)
    ]
    sheet = Sheet(figure=figure, span=span, notes=notes)
    head = Place(left=_GAP_IN, bottom=high - _HEAD_IN, width=24 * _COLUMN_IN, height=_HEAD_IN)
    sheet.text(head, 0.08, 0.22, board["title"], fontsize=16, weight="bold")
    times = [datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M") for at_s in (span.begin_s, span.end_s)]
    sheet.text(head, 24 * _COLUMN_IN - 0.2, 0.24, f"{choice}    {times[0]} to {times[1]} UTC", fontsize=9, ha="right")
    for panel in board["panels"]:
        grid = panel["gridPos"]
        place = Place(
            left=grid["x"] * _COLUMN_IN + _GAP_IN,
            bottom=(rows - grid["y"] - grid["h"]) * _ROW_IN + _GAP_IN,
            width=grid["w"] * _COLUMN_IN - 2 * _GAP_IN,
            height=grid["h"] * _ROW_IN - 2 * _GAP_IN,
        )
        if panel["type"] == "row":
            sheet.text(place, 0.06, 0.02, panel["title"], fontsize=11, weight="bold")
        else:
            answers = [ask(target["expr"], target["range"]) for target in panel["targets"]]
            _panel(sheet, place, panel, answers)
    return figure


def _events(found: Sequence[Series], span: Span) -> list[float]:
    """When something began to be so: the first of points that follow each other."""
    times = sorted({at_s for series in found for at_s, _ in series.points})
    return [at_s for at_s, before_s in zip(times, [0.0, *times], strict=False) if at_s - before_s > 2 * span.step_s]


def _panel(sheet: Sheet, place: Place, panel: Json, answers: Answers) -> None:
    back = sheet.axes(place)
    back.set_axis_off()
    frame = Rectangle((0, 0), 1, 1, transform=back.transAxes, facecolor="white", edgecolor="#d5d8dc", linewidth=0.8)
    back.add_patch(frame)
    sheet.text(place, 0.1, place.height - 0.19, panel["title"], fontsize=8.5, weight="bold")
    if not any(answers) and panel["type"] != "stat":
        middle = panel["fieldConfig"]["defaults"]["noValue"] or "No data"
        sheet.text(place, place.width / 2, place.height / 2 - 0.12, middle, fontsize=10, ha="center", color=_FAINT)
    else:
        _KINDS[panel["type"]](sheet, place, panel, answers)


def _named(panel: Json, answers: Answers) -> list[tuple[str, Series]]:
    """Each series of the panel with its legend."""
    targets = zip(panel["targets"], answers, strict=True)
    return [(series.named(target["legendFormat"]), series) for target, found in targets for series in found]


def _overridden(panel: Json, name: str, key: str) -> Any:
    """What the last override says of the field of that name; None without one."""
    found = None
    for override in panel["fieldConfig"]["overrides"]:
        title = override["matcher"]["options"]
        if title == name or (title.startswith("/") and re.search(title.strip("/"), name)):
            found = next((each["value"] for each in override["properties"] if each["id"] == key), found)
    return found


def _color(panel: Json, name: str, value: float, number: int | None = None) -> str:
    fixed = _overridden(panel, name, "color")
    if fixed is not None:
        return _COLORS[fixed["fixedColor"]]
    if number is not None:
        return _CYCLE[number % len(_CYCLE)]
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    return _COLORS[[step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1]]


def _timeseries(sheet: Sheet, place: Place, panel: Json, answers: Answers) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    unit, decimals = defaults["unit"], defaults.get("decimals")
    named = sorted(_named(panel, answers), key=lambda pair: pair[0] if len(answers) == 1 else "")[:9]
    longest = max(len(_short(name, _NAME)) for name, _ in named)
    columns = max(1, int(place.width / (0.95 + 0.065 * longest)))
    lines = -(-len(named) // columns)
    axes = sheet.axes(place, left=0.72, bottom=0.34 + lines * _LINE_IN, right=0.14, top=0.3)
    curves = [_curve(series, sheet.span) for _, series in named]
    colors = [_color(panel, name, 0, number) for number, (name, _) in enumerate(named)]
    times = _grid(sheet.span)
    if defaults["custom"]["stacking"]["mode"] == "normal":
        parts = [[0.0 if value is None else value for value in curve] for curve in curves]
        axes.stackplot(times, parts, colors=colors, alpha=0.75, linewidth=0)
    else:
        for (name, _), curve, color in zip(named, curves, colors, strict=True):
            dashed = _overridden(panel, name, "custom.lineStyle") is not None
            points = [float("nan") if value is None else value for value in curve]
            axes.plot(times, points, color=color, linewidth=1.3, linestyle="--" if dashed else "-")
    if defaults["custom"]["thresholdsStyle"]["mode"] == "line":
        for step in defaults["thresholds"]["steps"][1:]:
            axes.axhline(step["value"], color=_COLORS[step["color"]], linewidth=1, linestyle=":")
    for at_s, color in sheet.notes:
        axes.axvline(at_s, color=_COLORS[color], linewidth=0.8, linestyle="--")
    _scales(axes, times, unit, whole=decimals == 0)
    for number, ((name, _), curve, color) in enumerate(zip(named, curves, colors, strict=True)):
        across = 0.12 + (number % columns) * (place.width - 0.2) / columns
        up = 0.07 + (lines - 1 - number // columns) * _LINE_IN
        sheet.text(place, across, up, "▬", fontsize=7, color=color)
        value = curve[-1]
        last = "" if value is None else written(value, unit, decimals)
        sheet.text(place, across + 0.17, up, f"{_short(name, _NAME)}   {last}", fontsize=7)


def _grid(span: Span) -> list[float]:
    count = round((span.end_s - span.begin_s) / span.step_s)
    return [span.begin_s + number * span.step_s for number in range(count + 1)]


def _curve(series: Series, span: Span) -> list[float | None]:
    """Its values on the common grid, None where there is none."""
    found = {round((at_s - span.begin_s) / span.step_s): value for at_s, value in series.points}
    return [found.get(number) for number in range(len(_grid(span)))]


def _scales(axes: Axes, times: Sequence[float], unit: str, *, whole: bool) -> None:
    axes.set_xlim(times[0], times[-1])
    low, high = axes.get_ylim()
    if low > 0:
        axes.set_ylim(bottom=0)
    elif high < 0.1 and low == -high:
        # matplotlib's room around nothing but zeros.
        axes.set_ylim(bottom=0, top=1)
    steps = {"s": _TICKS_S, "bytes": [2**power for power in range(10, 50)]}.get(unit, ())
    high = axes.get_ylim()[1]
    even = next((step for step in steps if high / step <= 6), None) if high > min(steps, default=0) else None
    axes.yaxis.set_major_locator(MultipleLocator(even) if even else MaxNLocator(nbins=5, integer=whole))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value, unit)))
    between_s = next((step_s for step_s in _TICKS_S if (times[-1] - times[0]) / step_s <= 7), 86400)
    axes.xaxis.set_major_locator(MultipleLocator(between_s))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at_s, _: datetime.fromtimestamp(at_s, UTC).strftime("%H:%M")))
    axes.tick_params(labelsize=7, colors=_INK, length=2)
    axes.grid(visible=True, color="#e3e5e8", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _stat(sheet: Sheet, place: Place, panel: Json, answers: Answers) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    names_alone = panel["options"]["textMode"] == "name"
    background = panel["options"]["colorMode"] == "background"
    found = [
        (name, value, name if names_alone else written(value, defaults["unit"], defaults.get("decimals")))
        for name, value in ((name, series.points[-1][1]) for name, series in _named(panel, answers))
    ]
    # Nothing is below all numbers, as it is for Grafana.
    found = found or [("", -math.inf, defaults["noValue"])]
    wide = (place.width - 0.12) / len(found)
    for number, (name, value, text) in enumerate(found):
        color = _color(panel, name, value)
        tile = Place(
            left=place.left + 0.06 + number * wide,
            bottom=place.bottom + 0.06,
            width=wide - 0.04,
            height=place.height - 0.34,
        )
        if background:
            axes = sheet.axes(tile)
            axes.set_axis_off()
            axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, facecolor=color, linewidth=0))
            color = _INK if color == "none" else "white"
        size = min(20.0, 96 * tile.width / max(4, len(text)))
        style = {"ha": "center", "va": "center", "weight": "bold", "color": color}
        sheet.text(tile, tile.width / 2, tile.height * 0.52, text, fontsize=size, **style)
        if panel["options"]["textMode"] == "value_and_name":
            label = _short(name, int(tile.width * 15))
            sheet.text(tile, tile.width / 2, 0.06, label, fontsize=7, ha="center", color=color)


def _bargauge(sheet: Sheet, place: Place, panel: Json, answers: Answers) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    named = sorted(_named(panel, answers), key=lambda pair: -pair[1].points[-1][1])[:8]
    axes = sheet.axes(place, left=1.5, bottom=0.12, right=0.4, top=0.32)
    values = [series.points[-1][1] for _, series in named]
    colors = [_color(panel, name, value) for (name, _), value in zip(named, values, strict=True)]
    axes.barh([_short(name, 24) for name, _ in named], values, color=colors, height=0.6)
    for number, value in enumerate(values):
        text = f" {written(value, defaults['unit'], defaults.get('decimals'))}"
        axes.text(value, number, text, va="center", fontsize=7, color=_INK)
    axes.set_ylim(max(4.5, len(named) - 0.5), -0.5)
    axes.set_xticks([])
    axes.tick_params(labelsize=7, colors=_INK, length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _table(sheet: Sheet, place: Place, panel: Json, answers: Answers) -> None:
    organize = panel["transformations"][-1]["options"]
    titles: dict[str, str] = organize["renameByName"]
    merged: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    for target, found in zip(panel["targets"], answers, strict=True):
        key = f"Value #{target['refId']}" if len(answers) > 1 else "Value"
        for series in found:
            merged.setdefault(tuple(sorted(series.labels.items())), {})[key] = series.points[-1][1]
    rows: list[dict[str, str | float]] = [{**dict(labels), **values} for labels, values in merged.items()]
    downwards = {sort["displayName"]: sort["desc"] for sort in panel["options"]["sortBy"]}
    first = next((name for name, title in titles.items() if title in downwards), next(iter(titles)))
    sign = -1 if downwards.get(titles[first], True) else 1
    rows.sort(key=lambda row: (sign * value if isinstance(value := row.get(first), float) else 0.0, str(value)))
    fits = int((place.height - 0.36) / 0.21) - 1
    lengths = [
        max(6, len(title), *(len(str(row.get(name, ""))[:40]) for row in rows)) for name, title in titles.items()
    ]
    across = 0.12
    for length, (name, title) in zip(lengths, titles.items(), strict=True):
        wide = (place.width - 0.2) * length / sum(lengths)
        unit = _overridden(panel, title, "unit") or panel["fieldConfig"]["defaults"]["unit"]
        linked = _overridden(panel, title, "links") is not None
        up = place.height - 0.42
        sheet.text(place, across, up, title, fontsize=7.5, color=_FAINT)
        for number, row in enumerate(rows[:fits]):
            value = row.get(name, _overridden(panel, title, "noValue") or "")
            text = written(value, unit) if isinstance(value, float) else str(value)
            color = _COLORS["blue"] if linked else _INK
            text = _short(text, int(wide * 15))
            sheet.text(place, across, up - 0.21 * (number + 1), text, fontsize=7.5, color=color)
        across += wide
    if len(rows) > fits:
        sheet.text(
            place, place.width - 0.12, 0.05, f"and {len(rows) - fits} more", fontsize=7, ha="right", color=_FAINT
        )


_KINDS: Mapping[str, Callable[[Sheet, Place, Json, Answers], None]] = {
    "timeseries": _timeseries,
    "stat": _stat,
    "bargauge": _bargauge,
    "table": _table,
}
