"""What a dashboard is made of, and Grafana's JSON for it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH = 24
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLORS = {"good": "green", "bad": "red", "doubtful": "orange", "busy": "blue", "idle": "text"}
_NO_COLOR = "transparent"
# Grafana 10.0; later ones migrate it when they load it.
_SCHEMA_VERSION = 38

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """PromQL with a legend in Grafana's form, as in {{namespace}}/{{name}}."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A panel of the dashboard, `width` of 24 columns and `height` rows of 30 pixels.

    `levels` are the values from which on another color holds, by the names of `_COLORS`, and `colors` those of single
    legends, or of those that match /a pattern/; `empty` is what stands there where the query finds nothing. `limits`:
    legends drawn as dashed lines.
    """

    title: str
    description: str
    unit: str
    queries: Sequence[Query]
    width: int
    height: int = 8
    empty: str = "no data"
    levels: Sequence[tuple[float, str]] = ()
    colors: Sequence[tuple[str, str]] = ()
    limits: Sequence[str] = ()
    decimals: int | None = None
    largest: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves(Panel):
    """Lines over time; `stacked` for parts of a whole, `logarithmic` where orders of magnitude matter."""

    stacked: bool = False
    logarithmic: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers(Panel):
    """The present value of each query in large figures, or with `names` its legend. `missing`: color behind `empty`,
    where nothing found is a fault and not good news."""

    names: bool = False
    missing: str = ""

    @property
    def colored(self) -> bool:
        """Whether the color is that of the background, and not of the figures."""
        return bool(self.levels or self.colors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars(Panel):
    """The present value of each legend as a bar, the longest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table(Panel):
    """Labels and present values of the queries, a row for each set of labels. `columns`: label, or letter of the query,
    to title, in the order in which they stand; `units` by letter. `link`: column that leads to the run's dashboard.
    `by`: column by which rows are sorted, the largest first unless `smallest_first`."""

    columns: Sequence[tuple[str, str]]
    units: Sequence[tuple[str, str]] = ()
    link: str = ""
    by: str = ""
    smallest_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A choice of label values. `several`: more than one at a time, and all of them."""

    name: str
    label: str
    query: str
    several: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """An event that is marked in all curves."""

    name: str
    expr: str
    title: str
    color: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """To another dashboard."""

    title: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A dashboard."""

    uid: str
    title: str
    description: str
    span: str
    variables: Sequence[Variable]
    links: Sequence[Link]
    rows: Sequence[Row]
    notes: Sequence[Note] = field(default=())


def render(board: Board) -> Json:
    """The dashboard as Grafana reads it from a file."""
    return {
        "id": None,
        "uid": board.uid,
        "title": board.title,
        "description": board.description,
        "tags": ["lora-operator"],
        "timezone": "browser",
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": f"now-{board.span}", "to": "now"},
        "fiscalYearStartMonth": 0,
        "schemaVersion": _SCHEMA_VERSION,
        "links": [_link(link) for link in board.links],
        "annotations": {"list": [_note(note) for note in board.notes]},
        "templating": {"list": [_data_source(), *map(_variable, board.variables)]},
        "panels": list(_panels(board.rows)),
    }


def _link(link: Link) -> Json:
    fixed: Json = {"type": "link", "icon": "external link", "tags": [], "tooltip": "", "asDropdown": False}
    return fixed | {
        "title": link.title,
        "url": link.url,
        "targetBlank": False,
        "includeVars": False,
        "keepTime": True,
    }


def _note(note: Note) -> Json:
    return {
        "name": note.name,
        "datasource": _SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": note.color,
        "expr": note.expr,
        "titleFormat": note.title,
    }


def _data_source() -> Json:
    return {
        "type": "datasource",
        "name": "datasource",
        "label": "Prometheus",
        "query": "prometheus",
        "hide": 0,
        "skipUrlSync": False,
        "multi": False,
        "includeAll": False,
    }


def _variable(variable: Variable) -> Json:
    every: Json = {"allValue": ".*", "current": {"selected": True, "text": "All", "value": "$__all"}}
    return {
        "type": "query",
        "name": variable.name,
        "label": variable.label,
        "datasource": _SOURCE,
        "query": variable.query,
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "skipUrlSync": False,
        "multi": variable.several,
        "includeAll": variable.several,
        **(every if variable.several else {}),
    }


def _panels(rows: Sequence[Row]) -> Iterator[Json]:
    """Rows and panels from left to right and from top to bottom, numbered as they stand."""
    number = top = 0
    for row in rows:
        number += 1
        place = {"h": 1, "w": WIDTH, "x": 0, "y": top}
        yield {"type": "row", "id": number, "title": row.title, "collapsed": False, "gridPos": place, "panels": []}
        top += 1
        left = height = 0
        for panel in row.panels:
            if left + panel.width > WIDTH:
                left, top, height = 0, top + height, 0
            number += 1
            place = {"h": panel.height, "w": panel.width, "x": left, "y": top}
            yield _common(panel, number, place) | _special(panel)
            left, height = left + panel.width, max(height, panel.height)
        top += height


def _common(panel: Panel, number: int, place: Json) -> Json:
    instant = not isinstance(panel, Curves)
    return {
        "id": number,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": place,
        "targets": [
            {
                "refId": chr(ord("A") + position),
                "datasource": _SOURCE,
                "editorMode": "code",
                "expr": query.expr,
                "legendFormat": query.legend,
                "instant": instant,
                "range": not instant,
                **({"format": "table"} if isinstance(panel, Table) else {}),
            }
            for position, query in enumerate(panel.queries)
        ],
    }


def _special(panel: Panel) -> Json:
    match panel:
        case Curves():
            return _curves(panel)
        case Numbers():
            return _numbers(panel)
        case Bars():
            return _bars(panel)
        case Table():
            return _table(panel)
    raise TypeError(f"no kind of panel that is known: {panel}")


def _curves(panel: Curves) -> Json:
    custom: Json = {"drawStyle": "line", "lineWidth": 1, "showPoints": "never", "spanNulls": False}
    custom |= {"fillOpacity": 30 if panel.stacked else 0}
    custom |= {"stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"}}
    custom |= {"scaleDistribution": {"type": "log", "log": 10} if panel.logarithmic else {"type": "linear"}}
    custom |= {"thresholdsStyle": {"mode": "line" if panel.levels else "off"}}
    options = {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["last", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return {"type": "timeseries", "fieldConfig": _fields(panel, custom), "options": options}


def _numbers(panel: Numbers) -> Json:
    labelled = any("{{" in query.legend for query in panel.queries)
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "background" if panel.colored else "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "name" if panel.names else "value_and_name" if labelled else "auto",
    }
    return {"type": "stat", "fieldConfig": _fields(panel, {}), "options": options}


def _bars(panel: Bars) -> Json:
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "displayMode": "basic",
        "orientation": "horizontal",
        "showUnfilled": True,
        "minVizHeight": 16,
        "minVizWidth": 0,
        "valueMode": "color",
    }
    return {"type": "bargauge", "fieldConfig": _fields(panel, {}), "options": options}


def _table(panel: Table) -> Json:
    titles = dict(panel.columns)
    several = len(panel.queries) > 1
    named = {f"Value #{name}" if len(name) == 1 and name.isupper() else name: title for name, title in titles.items()}
    if not several:
        named = {name.replace("Value #A", "Value"): title for name, title in named.items()}
    hidden = {name: True for name in ("Time", "__name__", "Value") if name not in named}
    order = {name: position for position, name in enumerate(named)}
    organize = {"excludeByName": hidden, "indexByName": order, "renameByName": named}
    merge = [{"id": "merge", "options": {}}] if several else []
    fields = _fields(panel, {"align": "auto", "filterable": False})
    fields["overrides"] += [_override(titles[name], "unit", unit) for name, unit in panel.units]
    if several:
        # A run lacks some of the values; what stands for an empty table would else stand in each such cell.
        letters = [name for name in titles if f"Value #{name}" in named]
        fields["overrides"] += [_override(titles[name], "noValue", "-") for name in letters]
    if panel.link:
        url = (
            "/d/lora-run?var-datasource=${datasource}&var-namespace=${__data.fields.namespace}"
            "&var-name=${__data.fields.name}&${__url_time_range}"
        )
        link = {"title": "Show this run", "url": url, "targetBlank": False}
        fields["overrides"].append(_override(titles[panel.link], "links", [link]))
    sort = [{"displayName": titles[panel.by], "desc": not panel.smallest_first}] if panel.by else []
    options = {"showHeader": True, "cellHeight": "sm", "sortBy": sort, "footer": {"show": False, "reducer": ["sum"]}}
    transformations = [*merge, {"id": "organize", "options": organize}]
    return {"type": "table", "fieldConfig": fields, "options": options, "transformations": transformations}


def _fields(panel: Panel, custom: Json) -> Json:
    # Grafana shows `empty` in the color of the first step, which is below all numbers.
    steps: list[Json] = [{"value": None, "color": _base(panel)}]
    steps += [{"value": value, "color": _COLORS[color]} for value, color in panel.levels]
    defaults: Json = {
        "unit": panel.unit,
        "noValue": panel.empty,
        "color": {"mode": "palette-classic" if isinstance(panel, Curves) else "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": [],
        "links": [],
    }
    defaults |= {"custom": custom} if custom else {}
    defaults |= {"decimals": panel.decimals} if panel.decimals is not None else {}
    defaults |= {"min": 0, "max": panel.largest} if panel.largest is not None else {}
    overrides = [
        _override(legend, "color", {"mode": "fixed", "fixedColor": _COLORS[color]}) for legend, color in panel.colors
    ]
    overrides += [_override(legend, "custom.lineStyle", {"fill": "dash", "dash": [8, 8]}) for legend in panel.limits]
    return {"defaults": defaults, "overrides": overrides}


def _base(panel: Panel) -> str:
    if isinstance(panel, Numbers) and panel.colored:
        return _COLORS[panel.missing] if panel.missing else _NO_COLOR
    return _COLORS["idle"]


def _override(title: str, key: str, value: object) -> Json:
    matcher = "byRegexp" if title.startswith("/") else "byName"
    return {"matcher": {"id": matcher, "options": title}, "properties": [{"id": key, "value": value}]}
