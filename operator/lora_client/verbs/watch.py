"""`lora watch`: a run on the terminal until it ends."""

import sys
from datetime import UTC, datetime
from typing import Any

from lora_client.cluster.connection import Cluster, Object
from lora_client.cluster.follow import follow
from lora_client.cluster.queue_place import QueuePlace
from lora_client.cluster.run_pods import choose, pods_of
from lora_client.errors import FAILED, ClientError
from lora_client.output import Form, draws, is_terminal, note, say, show
from lora_client.views.curve import BARS, points_in
from lora_client.views.resources import result, waiting_for
from lora_client.views.summary import summary
from lora_client.views.watching import line, picture, point_of
from lora_operator.model.names import TRAIN, TRAINER_CONTAINER
from lora_operator.model.visible import visible

_LOG_LINES = "2000"


def watch(cluster: Cluster, name: str, form: Form) -> int:
    """Follow a run to its end: 0 for a success, 1 for a failure. Raises `ClientError`.

    In another form than text only the end is printed.
    """
    screen = _Nothing() if form is not Form.TEXT else _Picture() if is_terminal() and draws(BARS) else _Lines()
    last = _follow_to_end(cluster, name, screen)
    show(form, [last], summary(last, datetime.now(UTC)))
    return 0 if result(last) == "succeeded" else FAILED


def _follow_to_end(cluster: Cluster, name: str, on: "_Nothing") -> Object:
    place = QueuePlace(cluster)
    points: dict[int, float] = {}
    seen: Object = {}
    with on as screen:
        for resource in follow(cluster, name, screen.report):
            if resource is None and not seen:
                continue  # no server has answered yet
            if resource is not None:
                seen = resource
                if screen.draws and not points:
                    points |= _earlier(cluster, seen)
                points |= point_of(seen)
            screen.show(seen, points, place.of(seen))
            if result(seen):
                break
    return seen


def _earlier(cluster: Cluster, resource: Object) -> dict[int, float]:
    """The curve up to now, out of the log of the pod that trains; empty where that cannot be read."""
    if not point_of(resource):
        return {}
    try:
        pod = choose(pods_of(cluster, resource), attempt=None, stage=TRAIN, index=0)
        if pod is None:
            return {}
        query = {"container": TRAINER_CONTAINER, "tailLines": _LOG_LINES}
        lines = cluster.lines(cluster.path("pods", pod.name, "log"), query, silence_s=10.0)
        return points_in(line.decode(errors="replace") for line in lines)
    except ClientError:
        return {}


class _Nothing:
    """Shows nothing but trouble."""

    draws = False

    def __enter__(self) -> "_Nothing":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        pass

    def report(self, text: str) -> None:
        """Something is amiss."""
        note(text)

    def show(self, resource: Object, points: dict[int, float], place: str) -> None:
        """The run as it is now."""


class _Lines(_Nothing):
    """A line for each change, for a pipe or a file."""

    def __init__(self) -> None:
        self._last = ""

    def show(self, resource: Object, points: dict[int, float], place: str) -> None:
        text = line(resource, place, datetime.now(UTC))
        if text != self._last:
            self._last = text
            say(f"{datetime.now(UTC):%H:%M:%SZ} {text}")
            sys.stdout.flush()


class _Picture(_Nothing):
    """A picture on a terminal, drawn anew in place."""

    draws = True

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - a tenth of a second, which a pipe does without
        from rich.live import Live  # noqa: PLC0415

        self._console = Console(highlight=False)
        self._live: Any = Live(console=self._console, auto_refresh=False, transient=True)
        self._why = ""

    def __enter__(self) -> "_Picture":
        self._live.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._live.stop()
        if error and self._why:  # the picture is gone, and in it the sentence was broken into lines
            note(self._why)

    def report(self, text: str) -> None:
        self._console.print(visible(text), markup=False, emoji=False, soft_wrap=True)

    def show(self, resource: Object, points: dict[int, float], place: str) -> None:
        from rich.text import Text  # noqa: PLC0415 - as above

        now, size = datetime.now(UTC), self._console.size
        self._why = waiting_for(resource, now)
        rows = picture(resource, points, place, now, width=size.width, height=size.height)
        self._live.update(Text("\n".join(map(visible, rows))), refresh=True)
