"""Log lines with stable fields, as text or as JSON; docs/operate.md is their reference.

What is logged within a turn, the work on one LoRAFineTune from its take out of the queue on, carries the run and the
number of the turn by itself. No line holds anything that looks like a secret, whoever wrote it.
"""

import contextlib
import itertools
import json
import logging
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TextIO

import orjson

from lora_operator.cluster.store import Key
from lora_operator.model.conditions import condition_in, result_of, state_of
from lora_operator.model.objects import FineTune, Plan
from lora_operator.model.wording import maps_of, sentence
from lora_trainer.spec.summary import clip

logger = logging.getLogger(__name__)

FIELDS = {
    "type": "What kind of line it is: `decision`, `refusal`, `retry`; absent for what is about the process.",
    "namespace": "Namespace of the LoRAFineTune.",
    "name": "Name of the LoRAFineTune.",
    "uid": "Its uid, which distinguishes two that had the same name one after the other.",
    "turn": "The same for all lines of one turn; what comes before the dash is the same for all of one process.",
    "attempt": "Attempt of the run.",
    "reason": "Of a decision the state that it leaves the run in, of a refusal the API server's reason.",
    "previous": "State before the decision, where it changed it.",
    "result": "`succeeded` or `failed`, on the one line of a run that is its end.",
    "wrote": "What a decision wrote, in order: `created Job/x`, `adopted`, `patched`, `deleted`, `status`.",
    "nextLookSeconds": "When the run is looked at again if nothing happens before; absent where only news wakes it.",
    "code": "HTTP status of an API server's refusal, or of the answer that a retry follows.",
    "retryInSeconds": "How long a retry waits.",
    "failures": "How often in a row the turn has failed.",
}
"""The fields of a line beside `time`, `level`, `logger`, `message` and `exception`, in the order of the text form."""

# What somebody wrote into an object may be in an error's text.
_LONGEST_LINE = 4096
_LONGEST_TRACE = 16_384
_MOST_LINES = 200
_DEEPEST = 20
_PLAIN = re.compile(r"[^\s\"=]+")
_CHANGES_WITH_PROGRESS = ("progress", "resolved", "conditions")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    number: str
    key: Key
    uid: str


_turn: ContextVar[_Turn | None] = ContextVar("turn", default=None)
_process = secrets.token_hex(2)
_numbers = itertools.count(1)


@contextlib.contextmanager
def turn(key: Key, uid: str) -> Iterator[None]:
    """Give all lines that are logged within, and by tasks that are started within, a run and a number of their own."""
    token = _turn.set(_Turn(number=f"{_process}-{next(_numbers)}", key=key, uid=uid))
    try:
        yield
    finally:
        _turn.reset(token)


def configure(level: str, form: str, stream: TextIO = sys.stderr) -> None:
    """Send everything to the stream, as `form` (text or json) says. Libraries speak from WARNING on."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    handler.addFilter(_without_traces_of_kopf)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("lora_operator").setLevel(level)


def _without_traces_of_kopf(record: logging.LogRecord) -> bool:
    """An answer of the API server that ends kopf is a sentence, and no defect whose place must be found."""
    if record.exc_info and type(record.exc_info[1]).__module__.startswith("kopf."):
        record.exc_info = record.exc_text = None
    return True


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """The line's own fields before those of its turn; one without a value is left out."""
    known: dict[str, Any] = {name: getattr(record, name, None) for name in FIELDS if name != "name"}
    key = getattr(record, "finetune", None)
    current = _turn.get()
    if current is not None:
        key = key or current.key
        known["turn"] = current.number
        known["uid"] = known["uid"] or (current.uid if key == current.key else None)
    if key is not None:
        known["namespace"], known["name"] = key
    if isinstance(known["reason"], str):
        known["reason"] = _clean(known["reason"])  # a server's text: all other fields are ours
    return {name: known[name] for name in FIELDS if known.get(name) not in (None, "", [])}


def _clean(text: str) -> str:
    return sentence(text, _LONGEST_LINE)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO default/tone Training: Step 3/40 type=decision attempt=1 reason=Training`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        place = f"{fields.pop('namespace')}/{fields.pop('name')} " if "name" in fields else ""
        tail = "".join(f" {name}={_plain(value)}" for name, value in fields.items())
        line = f"{_time(record)} {record.levelname} {place}{_clean(record.getMessage())}{tail}"
        return f"{line}\n{_masked_lines(self.formatException(record.exc_info))}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object to a line: time, level, logger, message, and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        document = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": _clean(record.getMessage()),
            **_fields(record),
        }
        if record.exc_info:
            document["exception"] = _masked_lines(self.formatException(record.exc_info))
        return orjson.dumps(document, default=str).decode()


def _plain(value: Any) -> str:
    """A value as logfmt writes it: bare where it is one word, else quoted."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _masked_lines(text: str) -> str:
    lines = text.splitlines()
    indents = (line[: min(_DEEPEST, len(line) - len(line.lstrip()))] for line in lines)
    cleaned = [f"{indent}{_clean(line)}" for indent, line in zip(indents, lines[:_MOST_LINES], strict=False)]
    return clip("\n".join(cleaned), _LONGEST_TRACE)


def about(finetune: tuple[str, str], uid: str = "", **fields: Any) -> Mapping[str, Any]:
    """The `extra` of a line about a run. Raises KeyError for a field that docs/operate.md does not know."""
    unknown = fields.keys() - FIELDS.keys()
    if unknown:
        raise KeyError(", ".join(sorted(unknown)))
    return {"finetune": finetune, "uid": uid, **fields}


class DecisionLine:
    """Collects what is written for one plan, and logs it in one line, also where a request cut the plan short.

    At INFO; at DEBUG for a plan that wrote nothing, or nothing but new progress, of which a thousand runs would fill
    the log and nobody reads it there.
    """

    def __init__(self, finetune: FineTune, plan: Plan) -> None:
        self._finetune = finetune
        self._plan = plan
        self._wrote: list[str] = []
        self._stated = False
        self.next_look_s: float | None = None
        """When the run is looked at again, set by whoever carries the plan out."""

    def wrote(self, verb: str, kind: str, name: str) -> None:
        """A child was created, adopted, patched or deleted."""
        self._wrote.append(f"{verb} {kind}/{name}")

    def wrote_status(self) -> None:
        """The plan's status is stored."""
        self._wrote.append("status")
        self._stated = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        level = logging.INFO if self._wrote and not self._is_progress() else logging.DEBUG
        if not logger.isEnabledFor(level):
            return
        before, status = self._finetune.status, self._plan.status
        reason, was = state_of(status), state_of(before)
        fields = about(
            (self._finetune.namespace, self._finetune.name),
            self._finetune.uid,
            type="decision",
            attempt=status.get("attempt"),
            reason=reason,
            previous=was if self._stated and was != reason else "",
            result=result_of(status) if self._stated and not result_of(before) else "",
            wrote=self._wrote,
            nextLookSeconds=None if self.next_look_s is None else round(self.next_look_s, 1),
        )
        logger.log(level, "%s: %s", reason or "No state yet", self._sentence(), extra=fields)

    def _sentence(self) -> str:
        if result_of(self._finetune.status) and any(what.startswith(("deleted", "patched")) for what in self._wrote):
            return "the run has ended, and what is left of its attempt is cleaned up"
        return str(condition_in(self._plan.status, "Complete").get("message", ""))

    def _is_progress(self) -> bool:
        """Whether all that was written is a status in which nothing has changed but how far the run is."""
        before, status = self._finetune.status, self._plan.status
        return (
            self._wrote == ["status"]
            and before.get("progress") != status.get("progress")
            and _rest(before) == _rest(status)
        )


def _rest(status: Mapping[str, Any]) -> tuple[object, ...]:
    conditions = maps_of(status.get("conditions"))
    known = sorted((str(c.get("type")), str(c.get("status")), str(c.get("reason"))) for c in conditions)
    return known, {key: value for key, value in status.items() if key not in _CHANGES_WITH_PROGRESS}
