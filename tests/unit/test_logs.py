"""Log lines for people and for machines."""

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from lora_operator import logs
from lora_operator.cache import Key


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where the lines go; the root logger is put back afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("lora_operator").setLevel(logging.NOTSET)


def test_a_text_line_names_the_run_first_and_the_fields_last(stream: io.StringIO) -> None:
    """One line, in the order in which one reads."""
    logs.configure("INFO", "text", stream)
    fields = {"finetune": Key("team", "tone"), "attempt": 2, "reason": "Training"}
    logging.getLogger("lora_operator.x").info("step %d", 3, extra=fields)
    assert stream.getvalue().endswith("Z INFO team/tone step 3 attempt=2 reason=Training\n")


def test_a_json_line_has_the_same_as_keys_and_holds_a_traceback(stream: io.StringIO) -> None:
    """Each line is one JSON object, an exception included."""
    logs.configure("INFO", "json", stream)
    try:
        raise ValueError("odd")
    except ValueError:
        logging.getLogger("lora_operator.x").error("failed", exc_info=sys.exc_info(), extra={"finetune": Key("a", "b")})
    document = json.loads(stream.getvalue())
    assert (document["namespace"], document["name"], document["level"]) == ("a", "b", "ERROR")
    assert "ValueError: odd" in document["exception"]


def test_libraries_speak_from_warning_on(stream: io.StringIO) -> None:
    """kopf tells of every event that it has handled."""
    logs.configure("DEBUG", "text", stream)
    logging.getLogger("kopf.objects").info("chatter")
    logging.getLogger("kopf.objects").warning("trouble")
    logging.getLogger("lora_operator.x").debug("detail")
    assert "chatter" not in stream.getvalue()
    assert "trouble" in stream.getvalue()
    assert "detail" in stream.getvalue()
