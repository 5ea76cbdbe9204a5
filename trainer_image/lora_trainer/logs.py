"""The trainer's log: lines for people or JSON lines for machines on stderr, and a copy for the result: `train.log`."""

import contextlib
import datetime
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEXT, JSON = "text", "json"
FORMATS = (TEXT, JSON)
_FIELDS = "lora_fields"
_LINE = "%(asctime)s %(levelname)s %(message)s"


def set_up(
    level: int = logging.INFO, *, form: str = TEXT, run: Mapping[str, Any] | None = None, copy: Path | None = None
) -> None:
    """One line for each record from `level` on; the libraries only from warnings on.

    `form` is that on stderr; `run` goes into each JSON line. `copy` gets the same records as text, appended: several
    processes may write to it. A copy that cannot be written is told once and given up.
    """
    root = logging.getLogger()
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(_JsonFormatter(run or {}) if form == JSON else logging.Formatter(_LINE))
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        if isinstance(handler, _Copy):
            handler.close()
    root.addHandler(stream)
    root.setLevel(logging.WARNING)
    logging.getLogger("lora_trainer").setLevel(level)
    # On a CPU it advises to install a package that downloads native code at run time.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if copy is not None:
        add_copy(copy)


def add_copy(path: Path) -> None:
    """Write every further record to `path`, too."""
    try:
        handler = _Copy(path, encoding="utf-8")
    except OSError as error:
        logging.getLogger(__name__).warning("no %s: %s", path.name, error.strerror)
        return
    handler.setFormatter(logging.Formatter(_LINE))
    logging.getLogger().addHandler(handler)


class _Copy(logging.FileHandler):
    """Each record is one write at the file's end. A volume that is full costs the rest of the copy, not the run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name that logging calls
        logging.getLogger().removeHandler(self)
        with contextlib.suppress(OSError):
            self.close()
        logging.getLogger(__name__).warning("%s ends here: it cannot be written", Path(self.baseFilename).name)


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: time in UTC, level, message, the run, and what the record adds."""

    def __init__(self, run: Mapping[str, Any]) -> None:
        super().__init__()
        self._run = run

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        document: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **self._run,
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, ensure_ascii=False, default=str)


def fields(**values: Any) -> dict[str, Any]:
    """What a record's JSON line also holds, as the `extra` of a logging call."""
    return {_FIELDS: values}


def duration(seconds: float) -> str:
    """For people: 42s, 3m05s, 1h12m, 2d03h."""
    whole = max(0, round(seconds))
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part:02d}{smaller}"
    return f"{whole}s"
