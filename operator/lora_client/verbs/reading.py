"""`lora list`, `status`, `compare`: what the cluster has of runs, printed."""

from datetime import UTC, datetime

from lora_client.cluster.connection import Cluster, Object
from lora_client.output import Form, data, note, say, show
from lora_client.views import comparison
from lora_client.views.listing import table
from lora_client.views.resources import result
from lora_client.views.summary import summary

_COLOURS = {"succeeded": "green", "failed": "red", "": "yellow"}


def list_runs(cluster: Cluster, form: Form, *, everywhere: bool) -> None:
    """The runs of a namespace or of all. Raises `ClientError`."""
    runs = sorted(
        cluster.items("lorafinetunes", everywhere=everywhere),
        key=lambda run: (run["metadata"].get("namespace", ""), run["metadata"]["name"]),
    )
    if not runs and form is Form.TEXT:
        where = "in any namespace" if everywhere else f"in namespace {cluster.namespace}"
        others = "" if everywhere else ", lora list -A shows those of all namespaces"
        note(f"There are no runs {where}: lora init writes one{others}")
        return
    show(form, runs, _painted(runs, everywhere=everywhere), many=True)


def _painted(runs: list[Object], *, everywhere: bool) -> list[tuple[str, str]]:
    head, *rows = table(runs, datetime.now(UTC), everywhere=everywhere)
    pairs = zip(rows, runs, strict=True)
    return [(head, "bold"), *((row, _COLOURS[result(run)]) for row, run in pairs)]


def status(cluster: Cluster, name: str, form: Form) -> None:
    """One run. Raises `ClientError`."""
    run = cluster.get("lorafinetunes", name)
    head, *rest = summary(run, datetime.now(UTC))
    show(form, [run], [(head, _COLOURS[result(run)]), *rest])


def compare(cluster: Cluster, first: str, second: str, form: Form) -> None:
    """Two runs of the namespace. Raises `ClientError`."""
    runs = [cluster.get("lorafinetunes", name) for name in (first, second)]
    if form is Form.NAME:
        show(form, runs, ())
        return
    document = comparison.compare(*runs)
    if form is Form.TEXT:
        for line in comparison.lines(document):
            say(line)
    else:
        data(form, document)
