"""The log for people, for machines, and the copy that outlives the pod."""

import json
import logging
from pathlib import Path

import pytest

from lora_trainer.distributed.logs import JSON, TEXT, copied_to, duration, fields, inherited, set_up, variables

log = logging.getLogger("lora_trainer.test")


def test_machines_get_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """With the run, what the record adds, and a stack trace inside the line; libraries only from warnings on."""
    run = {"namespace": "team", "name": "tone", "uid": "u-1", "attempt": 2}
    set_up(form=JSON, run=run)
    log.info("step %d of\n%s", 3, "ä", extra=fields(step=3, loss=1.5))
    logging.getLogger("transformers").info("chatter")
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("unexpected error")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    time = first.pop("time")
    assert first == {"level": "info", "message": "step 3 of\nä", **run, "step": 3, "loss": 1.5}
    assert time.endswith("Z")
    assert len(time) == len("2026-01-01T00:00:00.000Z")
    assert second["level"] == "error"
    assert "ValueError: broken" in second["exception"]


def test_every_process_appends_to_the_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As text, whatever goes to stderr; what an earlier attempt logged stays, and a stage logs as it is set up."""
    copy = tmp_path / "train.log"
    for message in ("first attempt", "second attempt"):
        environment = variables(JSON, {"uid": "u-1"}, copy)
        with inherited(environment, logging.INFO):
            log.info(message, extra=fields(step=1))
            log.debug("not this")
        log.info("after it")
    lines = copy.read_text(encoding="utf-8").splitlines()
    assert [line.partition(" INFO ")[2] for line in lines] == ["first attempt", "second attempt"]
    shown = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["message"], line["uid"]) for line in shown][:2] == [("first attempt", "u-1"), ("after it", "u-1")]


def test_a_process_that_is_reported_nothing_logs_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """And makes no copy."""
    with inherited({}, logging.WARNING):
        log.info("not this")
        log.warning("careful")
    assert capsys.readouterr().err.endswith(" WARNING careful\n")


def test_a_copy_that_cannot_be_made_is_reported_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its folder is gone."""
    set_up()
    with copied_to(tmp_path / "missing" / "train.log"):
        log.info("going on")
    assert [line.partition(" ")[2].partition(" ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "WARNING no train.log: No such file or directory",
        "INFO going on",
    ]


def test_a_full_volume_ends_the_copy_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """/dev/full answers every write as a full volume does; one warning, then the lines on stderr alone."""
    set_up()
    with copied_to(Path("/dev/full")):
        for number in range(3):
            log.info("line %d", number)
    text = capsys.readouterr().err
    assert text.count("full ends here: it cannot be written") == 1
    assert [f"line {number}" in text for number in range(3)] == [True] * 3
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-1, "0s"), (59.4, "59s"), (60, "1m00s"), (3599, "59m59s"), (4321, "1h12m"), (86400 * 2 + 3 * 3600, "2d03h")],
)
def test_durations_are_shown_as_people_say_them(seconds: float, shown: str) -> None:
    """Two units, the larger first."""
    assert duration(seconds) == shown


def test_a_link_in_the_place_of_the_copy_is_not_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It may lead to a file of somebody else."""
    (tmp_path / "other").write_text("theirs", encoding="utf-8")
    (tmp_path / "train.log").symlink_to(tmp_path / "other")
    set_up()
    with copied_to(tmp_path / "train.log"):
        logging.getLogger("lora_trainer").info("ours")
    assert (tmp_path / "other").read_text(encoding="utf-8") == "theirs"
    assert "no train.log: Too many levels of symbolic links" in capsys.readouterr().err


def test_what_libraries_log_of_addresses_holds_no_signature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """urllib3 warns of each retry with the whole address, and the copy is published."""
    for form in (TEXT, JSON):
        set_up(form=form)
        with copied_to(tmp_path / "train.log"):
            logging.getLogger("urllib3.connectionpool").warning(
                "Retrying (%r) after connection broken by %r: %s", 3, "cut", "/blob?X-Amz-Signature=0123abcd"
            )
    shown = capsys.readouterr().err
    assert shown.count("broken by 'cut': /blob?…") == 2
    assert "0123abcd" not in shown + (tmp_path / "train.log").read_text(encoding="utf-8")
