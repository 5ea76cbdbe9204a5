"""The trainer's log: lines for people or JSON lines for machines on stderr, and a copy for the result: `train.log`."""

import contextlib
import datetime
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from lora_trainer.errors import discreet

TEXT, JSON = "text", "json"
FORMATS = (TEXT, JSON)
_FIELDS = "lora_fields"
_FORMAT_VARIABLE, _RUN_VARIABLE, _COPY_VARIABLE = "LORA_LOG_FORMAT", "LORA_LOG_RUN", "LORA_LOG_COPY"
_LINE = "%(asctime)s %(levelname)s %(message)s"


def set_up(level: int = logging.INFO, *, form: str = TEXT, run: Mapping[str, Any] | None = None) -> None:
    """One line on stderr for each record from `level` on; the libraries only from warnings on. `run` goes into each
    JSON line."""
    root = logging.getLogger()
    stream = logging.StreamHandler(sys.stderr)
    stream.addFilter(_make_discreet)
    stream.setFormatter(_JsonFormatter(run or {}) if form == JSON else logging.Formatter(_LINE))
    for handler in root.handlers[:]:
        root.removeHandler(handler)
    root.addHandler(stream)
    root.setLevel(logging.WARNING)
    logging.getLogger("lora_trainer").setLevel(level)
    # On a CPU it advises to install a package that downloads native code at run time.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def variables(form: str, run: Mapping[str, Any], copy: Path | None) -> dict[str, str]:
    """The environment of a process whose log is to be a part of this one's; torchrun passes it on to its own."""
    common = {_FORMAT_VARIABLE: form, _RUN_VARIABLE: json.dumps(dict(run))}
    return common if copy is None else {**common, _COPY_VARIABLE: str(copy)}


@contextlib.contextmanager
def inherited(environment: Mapping[str, str], level: int) -> Iterator[None]:
    """Log as the `variables` in the environment of this process say."""
    set_up(level, form=environment.get(_FORMAT_VARIABLE, TEXT), run=json.loads(environment.get(_RUN_VARIABLE, "{}")))
    copy = environment.get(_COPY_VARIABLE)
    with contextlib.nullcontext() if copy is None else copied_to(Path(copy)):
        yield


@contextlib.contextmanager
def copied_to(path: Path) -> Iterator[None]:
    """Append every record to `path`, too, as text; several processes may. What cannot be written is logged once."""
    root = logging.getLogger()
    try:
        handler = _Copy(path, encoding="utf-8")
    except OSError as error:
        logging.getLogger(__name__).warning("no %s: %s", path.name, error.strerror)
        yield
        return
    handler.setFormatter(logging.Formatter(_LINE))
    handler.addFilter(_make_discreet)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()


def _make_discreet(record: logging.LogRecord) -> bool:
    """Libraries log whole addresses, signatures included."""
    record.msg, record.args = discreet(record.getMessage()), None
    return True


class _Copy(logging.FileHandler):
    """Each record is one write at the file's end. A volume that is full costs the rest of the copy, not the run."""

    def _open(self) -> TextIOWrapper:
        # A link on the claim could lead to a file of somebody else.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        return TextIOWrapper(os.fdopen(os.open(self.baseFilename, flags, 0o644), "ab"), encoding=self.encoding)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name that logging calls
        logging.getLogger().removeHandler(self)
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


def with_error(value: float, standard_error: float | None) -> str:
    """For people: 1.2345 ± 0.0067, or the value alone where there is no error, None or 0."""
    return f"{value:.4f} ± {standard_error:.4f}" if standard_error else f"{value:.4f}"
