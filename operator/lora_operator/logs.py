"""Log lines: one for each decision, with the run's name, attempt and reason as fields; as text or as JSON."""

import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson

_FIELDS = ("attempt", "reason", "code")


def configure(level: str, form: str, stream: TextIO = sys.stderr) -> None:
    """Send everything to the stream, as `form` (text or json) says. Libraries speak from WARNING on."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("lora_operator").setLevel(level)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    finetune = getattr(record, "finetune", None)
    if finetune is not None:
        fields["namespace"], fields["name"] = finetune
    for name in _FIELDS:
        if hasattr(record, name):
            fields[name] = getattr(record, name)
    return fields


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO default/tone Training: Step 3/40 attempt=1 reason=Training`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        place = f"{fields.pop('namespace')}/{fields.pop('name')} " if "name" in fields else ""
        tail = "".join(f" {name}={value}" for name, value in fields.items())
        line = f"{_time(record)} {record.levelname} {place}{record.getMessage()}{tail}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object to a line: time, level, logger, message, and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        document = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(document, default=str).decode()
