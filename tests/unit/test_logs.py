"""Log lines for people and for machines."""

import asyncio
import io
import json
import logging
import sys

import pytest

from lora_operator.cluster.store import Key
from lora_operator.controller import logs


@pytest.fixture
def stream() -> io.StringIO:
    """Where the lines go."""
    return io.StringIO()


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


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_is_bounded_whatever_an_error_says(stream: io.StringIO, form: str) -> None:
    """A tenant may write a MiB into an object, and what cannot be read of it is logged with an error's text."""
    logs.configure("INFO", form, stream)
    try:
        raise ValueError(("x" * 2000 + "\n  y hf_abcdefghijk") * 2**8 + "z" * 2**20)
    except ValueError as error:
        logging.getLogger("lora_operator.x").exception("failed: %s", error)
    assert len(stream.getvalue()) < 24_000
    assert "abcdefghijk" not in stream.getvalue()


def test_libraries_speak_from_warning_on(stream: io.StringIO) -> None:
    """kopf tells of every event that it has handled."""
    logs.configure("DEBUG", "text", stream)
    logging.getLogger("kopf.objects").info("chatter")
    logging.getLogger("kopf.objects").warning("trouble")
    logging.getLogger("lora_operator.x").debug("detail")
    assert "chatter" not in stream.getvalue()
    assert "trouble" in stream.getvalue()
    assert "detail" in stream.getvalue()


def test_all_lines_of_a_turn_carry_its_run_and_number_also_those_of_its_tasks(stream: io.StringIO) -> None:
    """So that one turn can be read out of a log that sixteen workers write."""
    logs.configure("DEBUG", "json", stream)
    logger = logging.getLogger("lora_operator.x")

    async def task() -> None:
        logger.debug("asked")

    async def work() -> None:
        for name in ("a", "b"):
            with logs.turn(Key("team", name), f"uid-of-{name}"):
                logger.info("begun")
                await asyncio.create_task(task())
        logger.info("done")

    asyncio.run(work())
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line.get("name") for line in lines] == ["a", "a", "b", "b", None]
    assert [line.get("uid") for line in lines] == ["uid-of-a", "uid-of-a", "uid-of-b", "uid-of-b", None]
    turns = [line.get("turn") for line in lines]
    assert (turns[0], turns[2], turns[4]) == (turns[1], turns[3], None)
    assert turns[0] != turns[2]
    assert turns[0].partition("-")[0] == turns[2].partition("-")[0]


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_line_holds_a_secret_whoever_wrote_it(stream: io.StringIO, form: str) -> None:
    """Message, reason and traceback, of the operator and of libraries."""
    logs.configure("INFO", form, stream)
    token = "hf_abcdefghijklmnop"
    try:
        raise ValueError(f"https://user:{token}@hub.example refused")
    except ValueError:
        logging.getLogger("lora_operator.x").exception("Bearer %s", "eyJhbGciOi.JIUzI1NiIs", extra={"reason": token})
    logging.getLogger("kopf").warning("token=%s", token)
    assert token not in stream.getvalue()
    assert "eyJhbGciOi" not in stream.getvalue()
    assert stream.getvalue().count("***") >= 4


def test_a_text_line_stays_one_line_and_quotes_what_is_no_word(stream: io.StringIO) -> None:
    """A trainer's words must not look like a line of the operator's."""
    logs.configure("INFO", "text", stream)
    fields = logs.about(Key("team", "tone"), "u", type="decision", wrote=["created Job/a", "status"], code=403)
    logging.getLogger("lora_operator.x").info("said\n2026 INFO team/other all is well", extra=fields)
    (line,) = stream.getvalue().splitlines()
    end = ' team/tone said 2026 INFO team/other all is well type=decision uid=u wrote="created Job/a, status" code=403'
    assert line.endswith(end)


def test_a_field_that_no_page_knows_is_refused() -> None:
    """Names of fields are stable: a new one is first explained."""
    with pytest.raises(KeyError, match="colour"):
        logs.about(Key("team", "tone"), colour="red")
