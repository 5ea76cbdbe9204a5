"""Strict JSON of the contract: what is written is read back, and nothing else is."""

import contextlib
import dataclasses
import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.builders import make_artifact, make_resolved, make_results, make_summary
from tests.unit.junk import JSON

from lora_trainer.spec import codec
from lora_trainer.spec.config import VERSION as CONFIG_VERSION
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.exit_codes import FINAL, ExitCode, reason_of
from lora_trainer.spec.names import run_suffix
from lora_trainer.spec.progress import MAX_BYTES as MAX_PROGRESS_BYTES
from lora_trainer.spec.progress import Phase, Progress
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.summary import MAX_BYTES, Artifact, DatasetStats, ResolvedRun, Results, Summary, Verification
from lora_trainer.spec.summary import VERSION as SUMMARY_VERSION

CONFIGS = st.from_type(TrainConfig).map(lambda config: dataclasses.replace(config, version=CONFIG_VERSION))
SUMMARIES = st.from_type(Summary).map(lambda summary: dataclasses.replace(summary, version=SUMMARY_VERSION))


@given(CONFIGS)
def test_a_configuration_is_read_back_as_it_was_written(config: TrainConfig) -> None:
    """Byte for byte the same text again."""
    text = config.to_json()
    again = TrainConfig.from_json(text)
    assert again.to_json() == text


@given(st.from_type(Progress))
def test_progress_is_read_back_unless_it_had_to_be_shortened(progress: Progress) -> None:
    """Within 4 KiB in any case."""
    text = progress.to_json()
    assert len(text.encode()) <= MAX_PROGRESS_BYTES
    again = Progress.from_json(text.encode())
    assert again.to_json() == text
    assert again.resolved is None or again.resolved == progress.resolved


@given(SUMMARIES)
def test_a_summary_fits_a_termination_message_and_is_read_back(summary: Summary) -> None:
    """4096 bytes are the kubelet's limit; reason and message always get through."""
    text = summary.to_message()
    assert len(text.encode()) <= MAX_BYTES
    again = Summary.from_message(text)
    assert again.reason is summary.reason
    assert again.message == summary.message


@pytest.mark.parametrize("letter", ["x", "é", "\U0001f600", '"', "\x00", "\ud800"])
def test_a_summary_of_any_length_fits_a_termination_message(letter: str) -> None:
    """Letters take up to six bytes in JSON; what does not fit is left out, the reason last."""
    long = letter * 5000
    resolved = make_resolved(target_modules=(long,) * 9, device=long)
    for artifact in (make_artifact(), make_artifact(uri=long)):
        text = make_summary(message=long, resolved=resolved, artifact=artifact).to_message()
        assert len(text.encode()) <= MAX_BYTES
        assert Summary.from_message(text).reason is Reason.SUCCEEDED


def test_what_is_left_out_of_a_summary_is_what_the_manifest_tells() -> None:
    """Results and artifact are kept as long as anything can be."""
    text = make_summary(message="m" * 900, resolved=make_resolved(target_modules=("module" * 20,) * 30)).to_message()
    again = Summary.from_message(text)
    assert again.succeeded
    assert again.results == make_results()
    assert again.artifact == make_artifact()
    assert again.resolved is None or len(again.resolved.target_modules) <= 8


def test_a_success_needs_reason_results_and_artifact() -> None:
    """Each alone is not enough."""
    assert make_summary().succeeded
    assert not make_summary(Reason.STORAGE_FULL).succeeded
    assert not make_summary(artifact=None).succeeded
    assert not make_summary(results=None).succeeded


@given(JSON)
def test_no_document_is_too_odd_to_be_refused(junk: Any) -> None:
    """With the one exception that is promised."""
    for kind in (TrainConfig, Progress, Summary, ResolvedRun, Results, DatasetStats, Artifact, Verification):
        with contextlib.suppress(codec.CodecError):
            assert isinstance(codec.decode(kind, junk), kind)


@pytest.mark.parametrize("text", ["", "null", "[]", "{", "[" * 4000, "\x00", '{"version": 1}', "9" * 4000])
def test_text_that_is_no_document_is_refused_with_a_sentence(text: str) -> None:
    """A tail of a log, above all."""
    for read in (TrainConfig.from_json, Summary.from_message):
        with pytest.raises(codec.CodecError):
            read(text)
    with pytest.raises(codec.CodecError):
        Progress.from_json(text if text != '{"version": 1}' else "1")


def test_progress_that_is_too_long_is_not_even_parsed() -> None:
    """A hostile pod must not cost memory."""
    with pytest.raises(codec.CodecError, match="must have at most 4096"):
        Progress.from_json(b" " * 5000)


def test_progress_without_a_number_keeps_the_rest() -> None:
    """JSON of Python knows NaN, and a loss may be that."""
    progress = Progress.from_json(Progress(phase=Phase.TRAINING, loss=float("nan"), step=3).to_json())
    assert (progress.step, str(progress.loss)) == (3, "nan")


PROBLEMS = [
    ({"colour": 1}, "$.colour is unknown: the known keys are"),
    ({"step": "3"}, "$.step is '3': must be a whole number"),
    ({"step": True}, "$.step is True: must be a whole number"),
    ({"phase": "Idle"}, "$.phase is 'Idle': must be one of Starting, Preparing"),
    ({"resolved": {"device": "cpu"}}, "$.resolved.compute_dtype is missing: it is required"),
    ({"resolved": []}, "$.resolved is []: must be an object"),
]


@pytest.mark.parametrize(("change", "message"), PROBLEMS)
def test_what_does_not_fit_is_named_by_its_path(change: dict[str, Any], message: str) -> None:
    """Path, value, rule."""
    with pytest.raises(codec.CodecError) as error:
        codec.decode(Progress, change)
    assert str(error.value).startswith(message)


def test_lists_and_maps_are_checked_item_by_item() -> None:
    """The path tells which."""
    good = codec.encode(make_resolved())
    with pytest.raises(codec.CodecError, match=r"\$\.target_modules\[1\] is 5"):
        codec.decode(ResolvedRun, {**good, "target_modules": ["a", 5]})
    with pytest.raises(codec.CodecError, match=r"\$\.target_modules is 'a': must be a list"):
        codec.decode(ResolvedRun, {**good, "target_modules": "a"})
    dataset = {"uri": "pvc://a/b", "columns": {"prompt": 7}}
    with pytest.raises(codec.CodecError, match=r"\$\.dataset\.columns\.prompt is 7"):
        codec.decode(
            TrainConfig, {"run": {"namespace": "", "name": "", "uid": ""}, "model": {"uri": ""}, "dataset": dataset}
        )
    with pytest.raises(codec.CodecError, match=r"\$\.dataset\.columns is 1: must be an object"):
        codec.decode(
            TrainConfig,
            {
                "run": {"namespace": "", "name": "", "uid": ""},
                "model": {"uri": ""},
                "dataset": {**dataset, "columns": 1},
            },
        )


def test_a_whole_number_may_stand_for_a_fraction() -> None:
    """JSON writers drop the .0."""
    assert codec.decode(Verification, {"loss": 1, "difference": 0, "tolerance": 0.5}).loss == 1.0


def test_another_version_is_refused_with_a_remedy() -> None:
    """Operator and trainer come in one release."""
    with pytest.raises(codec.CodecError, match="use the trainer image of the operator's release"):
        TrainConfig.from_json('{"version": "lora-operator.io/train-config/v2"}')
    with pytest.raises(codec.CodecError, match=r"must be lora-operator\.io/summary/v1"):
        Summary.from_message('{"version": "v0"}')


def test_a_long_value_is_shown_in_part() -> None:
    """A message is a sentence."""
    with pytest.raises(codec.CodecError) as error:
        codec.decode(Verification, {"loss": "x" * 500, "difference": 0, "tolerance": 0})
    assert len(str(error.value)) < 120


def test_every_exit_code_has_a_reason_and_final_ones_are_not_retried() -> None:
    """The table of the documentation."""
    assert {code: reason_of(code) for code in (64, 72, 137, 143)} == {
        64: Reason.CONFIG_INVALID,
        72: Reason.GPU_FAULT,
        137: Reason.OOM_KILLED,
        143: Reason.EVICTED,
    }
    assert reason_of(3) is reason_of(1) is reason_of(0) is Reason.INTERNAL_ERROR
    assert set(FINAL) == {64, 65, 66, 70, 71, 73, 77, 78}
    assert not {ExitCode.TRANSIENT, ExitCode.PEER_FAILED} & set(FINAL)


@given(st.text(), st.text())
def test_a_suffix_fits_into_a_name_and_tells_uids_apart(one: str, other: str) -> None:
    """Five characters that may stand anywhere in a DNS label."""
    assert len(run_suffix(one)) == 5
    assert set(run_suffix(one)) <= set("abcdefghijklmnopqrstuvwxyz234567")
    assert run_suffix(one) == run_suffix(one)
    assert (run_suffix(one) == run_suffix(other)) is (one == other)


def test_progress_leaves_out_what_was_resolved_where_it_would_not_fit() -> None:
    """The numbers of the moment matter more."""
    progress = Progress(phase=Phase.TRAINING, step=3, resolved=make_resolved(target_modules=("module" * 30,) * 40))
    text = progress.to_json()
    assert len(text) <= MAX_PROGRESS_BYTES
    assert Progress.from_json(text) == Progress(phase=Phase.TRAINING, step=3)


def test_an_answer_that_says_no_phase_is_no_progress() -> None:
    """The trainer says its phase; whatever else answers at the port does not reset a run's steps."""
    with pytest.raises(codec.CodecError, match="no phase"):
        Progress.from_json('{"verdict": "Succeeded"}')


@dataclasses.dataclass(frozen=True)
class _Dated:
    day: date | None = None


def test_a_date_is_text_of_its_form() -> None:
    """And nothing else is a date."""
    assert codec.encode(_Dated(day=date(2026, 7, 26))) == {"day": "2026-07-26"}
    assert codec.decode(_Dated, {"day": "2026-07-26"}) == _Dated(day=date(2026, 7, 26))
    wrong: tuple[object, ...] = ("26 Jul 2026", 20260726, [])
    for other in wrong:
        with pytest.raises(codec.CodecError, match=r"\$\.day is .*: must be a date such as 2026-07-26"):
            codec.decode(_Dated, {"day": other})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Located:
    """A file on a day."""

    path: Path | None
    day: date


def test_a_path_and_a_date_are_read_back() -> None:
    """As processes of a run send them to each other."""
    for located in (Located(path=Path("/a/b"), day=date(2026, 7, 26)), Located(path=None, day=date.min)):
        assert codec.decode(Located, json.loads(json.dumps(codec.encode(located)))) == located
    with pytest.raises(codec.CodecError, match=r"\$\.path is 7: must be a path"):
        codec.decode(Located, {"path": 7, "day": "2026-07-26"})
