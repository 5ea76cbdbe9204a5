"""What is written into the status, its numbers and its bounds."""

import dataclasses
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.builders import (
    CONFIG,
    CREATED,
    NOW,
    condition_object,
    ended_pod,
    finished_job,
    make_artifact,
    make_finetune,
    make_job,
    make_resolved,
    make_results,
    make_summary,
    minutes_ago,
    running_pod,
    with_status,
)
from tests.unit.deciding import decide, run_of
from tests.unit.reports import make_plan, make_report
from tests.unit.status_schema import check_status, status_schema

from lora_operator.decide.blocks import block_from, read_block
from lora_operator.decide.progress import close_progress, follow_progress, next_question_s
from lora_operator.decide.results import kept_quantization, resolved_by_spec
from lora_operator.model.config import OperatorConfig
from lora_operator.model.objects import FineTune, Observed
from lora_operator.model.stored import read_stored
from lora_operator.model.wording import instant
from lora_trainer.spec.config import (
    DatasetConfig,
    DeviceConfig,
    LoraConfig,
    ModelConfig,
    OutputConfig,
    Quantization,
    RunIdentity,
    TrainConfig,
    TrainingConfig,
)
from lora_trainer.spec.device_section import GpuSetting
from lora_trainer.spec.preflight import ModelFacts, OutputCheck, Preflight, RowFacts
from lora_trainer.spec.progress import Phase, Progress
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.run_plan import RunPlan
from lora_trainer.spec.summary import (
    Artifact,
    DatasetStats,
    ResolvedRun,
    Results,
    SavedState,
    Summary,
    Verification,
)

TEXT = st.text(max_size=20) | st.just("long " * 300)
COUNT = st.integers(-(2**70), 2**70)
FRACTION = st.floats()
RESOLVED = st.builds(
    ResolvedRun,
    **dict.fromkeys(("device", "compute_dtype", "model_type", "model_revision", "dataset_format"), TEXT),
    dataset_fingerprint=TEXT,
    target_modules=st.lists(TEXT, max_size=3).map(tuple) | st.just(("q_proj",) * 300),
    **dict.fromkeys(("trainable_parameters", "total_parameters", "micro_batch_size"), COUNT),
    gradient_accumulation_steps=COUNT,
    **dict.fromkeys(("quantization", "attention", "optimizer"), TEXT),
    **dict.fromkeys(("packing", "activation_checkpointing", "selective_checkpointing", "sharded"), st.booleans()),
    processes=COUNT,
    micro_batch_tokens=COUNT,
    sharded_over=st.none() | COUNT,
    kernels=st.none() | st.lists(TEXT, max_size=20).map(tuple),
    kernels_left_out=st.lists(TEXT, max_size=20).map(tuple),
    kernels_unchecked=st.booleans(),
)
PROGRESS = st.builds(
    Progress,
    phase=st.sampled_from(Phase),
    step=COUNT,
    total_steps=st.none() | COUNT,
    epoch=st.none() | FRACTION,
    loss=st.none() | FRACTION,
    eval_loss=st.none() | FRACTION,
    learning_rate=st.none() | FRACTION,
    tokens_per_second=st.none() | FRACTION,
    estimated_remaining_seconds=st.none() | COUNT,
    peak_memory_bytes=st.none() | COUNT,
    updated_at=FRACTION,
    checkpoint_step=st.none() | COUNT,
    resumed_step=st.none() | COUNT,
    resolved=st.none() | RESOLVED,
)
RESULTS = st.builds(
    Results,
    **dict.fromkeys(("steps", "trained_tokens", "peak_memory_bytes"), COUNT),
    **{name: FRACTION for name, kind in Results.__annotations__.items() if kind is float},
    **{name: st.none() | FRACTION for name, kind in Results.__annotations__.items() if kind == float | None},
    held_out=st.booleans(),
    best_step=st.none() | COUNT,
    merge_failure=st.none() | TEXT,
    resumed_step=st.none() | COUNT,
    stopped_early=st.booleans(),
    verification=st.builds(
        Verification, loss=FRACTION, difference=FRACTION, noise=st.none() | FRACTION, tolerance=FRACTION
    ),
)
STATS = st.builds(DatasetStats, **dict.fromkeys(DatasetStats.__annotations__, COUNT))
ARTIFACT = st.builds(
    Artifact,
    **dict.fromkeys(("uri", "digest", "format", "base_model", "base_revision", "serving", "serving_needs"), TEXT),
    size_bytes=COUNT,
    rank=COUNT,
    servable=st.booleans(),
)
PREFLIGHT = st.builds(
    Preflight,
    model=st.from_type(ModelFacts),
    dataset=st.from_type(RowFacts),
    output=st.sampled_from(OutputCheck),
)
PLAN = st.from_type(RunPlan)
SUMMARY = st.builds(
    Summary,
    reason=st.sampled_from(Reason),
    message=TEXT,
    resolved=st.none() | RESOLVED,
    dataset=st.none() | STATS,
    results=st.none() | RESULTS,
    artifact=st.none() | ARTIFACT,
    checkpoint=st.none() | st.builds(SavedState, uri=TEXT, step=COUNT),
)


def follow(progress: Progress | None, finetune: FineTune | None = None) -> dict[str, Any]:
    """The progress block of a running pod."""
    return follow_progress(read_stored((finetune or make_finetune()).status), running_pod(), progress, NOW)


@given(PROGRESS)
def test_whatever_a_trainer_says_the_status_is_accepted_by_the_api_server(progress: Progress) -> None:
    """One value out of bounds would refuse the whole write."""
    observed = Observed(jobs=(make_job(),), pods=(running_pod(),), progress=progress)
    check_status(decide(make_finetune(), observed, CONFIG, NOW).status)


@given(PREFLIGHT, PLAN)
def test_whatever_a_preflight_reports_the_status_is_accepted_by_the_api_server(
    preflight: Preflight, plan: RunPlan
) -> None:
    """And the plan is read back from it."""
    report = Summary(reason=Reason.PREFLIGHT_PASSED, message="", preflight=preflight, plan=plan).to_message()
    jobs, pods = (finished_job(stage="preflight"),), (ended_pod(0, report, stage="preflight"),)
    status = decide(make_finetune(spec={"preflight": "Run"}), Observed(jobs=jobs, pods=pods), CONFIG, NOW).status
    check_status(status)
    again = read_block(RunPlan, status["plan"])
    assert again is not None
    assert (again.quantization, again.fits) == (plan.quantization, plan.fits)


@given(SUMMARY, st.sampled_from([0, 65, 75]), st.booleans())
def test_whatever_a_summary_says_the_status_is_accepted_by_the_api_server(
    summary: Summary, code: int, job_failed: bool
) -> None:
    """Also one that does not fit the end of its pod."""
    job = finished_job("Failed", reason="BackoffLimitExceeded") if job_failed else finished_job()
    pod = ended_pod(code, "{}")
    message = summary.to_message() if code or not job_failed else "no summary"
    pod = ended_pod(code, message)
    plan = decide(make_finetune(), Observed(jobs=(job,), pods=(pod,)), CONFIG, NOW)
    check_status(plan.status)
    complete = next(c for c in plan.status["conditions"] if c["type"] == "Complete")
    if complete["status"] == "True":
        assert plan.status["artifact"]
        assert plan.status["results"]["verification"]


def test_every_field_of_the_schema_is_written_by_something() -> None:
    """A field that nobody fills in promises what it does not keep."""
    progress = Progress(
        phase=Phase.TRAINING,
        step=120,
        total_steps=400,
        epoch=0.3,
        loss=1.5,
        eval_loss=1.6,
        learning_rate=0.0002,
        tokens_per_second=440.0,
        estimated_remaining_seconds=4350,
        peak_memory_bytes=20_079_050_752,
        checkpoint_step=100,
        resumed_step=80,
    )
    running = decide(
        make_finetune(), Observed(jobs=(make_job(),), pods=(running_pod(),), progress=progress), CONFIG, NOW
    )
    saved = SavedState(uri="pvc://adapters/.lora-checkpoints/support-tone-abcde/step-00000100", step=100)
    merge: dict[str, Any] = {"merged_loss": 1.3, "merged_expected_loss": 1.29, "merge_failure": "the volume is full"}
    estimated = {"estimated_peak_memory_bytes": 19_000_000_000, "estimated_seconds": 1800}
    results = make_results(best_step=350, resumed_step=100, micro_batch_fill=0.67, **merge, **estimated)
    artifact = make_artifact(serving_needs="vLLM 0.32")
    kernels: dict[str, Any] = {"kernels": ("a",), "kernels_left_out": ("b: it fails",), "kernels_unchecked": True}
    resolved = make_resolved(sharded=True, sharded_over=8, micro_batch_tokens=8192, **kernels)
    summary = make_summary(checkpoint=saved, results=results, artifact=artifact, resolved=resolved)
    pods = (ended_pod(0, summary.to_message()),)
    steps = make_finetune(spec={"training": {"maxSteps": 400, "evalSteps": 50}})
    far = {"step": 7, "lastUpdateTime": instant(minutes_ago(20))}
    fast = make_finetune(spec={"training": {"learningRate": "0.5"}}, status={"progress": far})
    killed = Observed(jobs=(make_job(status={"failed": 1}),), pods=(ended_pod(137, reason="OOMKilled"),))
    drained = ended_pod(143, conditions=(condition_object("DisruptionTarget"),))
    looked_at = make_finetune(spec={"preflight": "Run"})
    report = ended_pod(0, make_report(plan=make_plan(sharded=True, sharded_over=8)).to_message(), stage="preflight")
    plans = [
        running,
        decide(looked_at, Observed(jobs=(finished_job(stage="preflight"),), pods=(report,)), CONFIG, NOW),
        decide(fast, killed, CONFIG, NOW),
        decide(fast, Observed(jobs=(make_job(),), pods=(drained,)), CONFIG, NOW),
        *(decide(f, Observed(jobs=(finished_job(),), pods=pods), CONFIG, NOW) for f in (make_finetune(), steps)),
    ]
    written: dict[str, set[str]] = {"": set()}
    for plan in plans:
        check_status(plan.status)
        written[""] |= set(plan.status)
        for key, value in plan.status.items():
            if isinstance(value, dict):
                written.setdefault(key, set()).update(value)
    schema = status_schema()["properties"]
    assert written[""] == set(schema)
    found = ("preflight", "plan", "resolved", "dataset", "results", "artifact")
    for key in (*found, "progress", "checkpoint", "retries"):
        assert written[key] == set(schema[key]["properties"]), key
    for key in ("model", "dataset"):
        part = next(plan.status["preflight"][key] for plan in plans if "preflight" in plan.status)
        assert set(part) == set(schema["preflight"]["properties"][key]["properties"]), key
    results_blocks = [plan.status["results"] for plan in plans if "results" in plan.status]
    for block in results_blocks:
        assert (block["estimatedPeakMemoryBytes"], block["estimatedSeconds"]) == (19_000_000_000, 1800)
    verified = [block["verification"] for block in results_blocks]
    keys = set(schema["results"]["properties"]["verification"]["properties"])
    assert [set(block) for block in verified] == [keys, keys]


def test_progress_is_reported_in_numbers_and_in_ready_strings() -> None:
    """A printer column cannot join two fields or format bytes."""
    block = follow(
        Progress(
            phase=Phase.TRAINING,
            step=120,
            total_steps=400,
            epoch=0.3,
            loss=1.23456,
            eval_loss=2.0,
            learning_rate=0.00019999,
            tokens_per_second=442.71,
            estimated_remaining_seconds=4350,
            peak_memory_bytes=20_079_050_752,
            updated_at=1e300,
        )
    )
    assert block == {
        "phase": "Training",
        "step": 120,
        "totalSteps": 400,
        "steps": "120/400",
        "percentage": 30,
        "epoch": "0.30",
        "loss": "1.2346",
        "evalLoss": "2.0000",
        "learningRate": "0.0002",
        "tokensPerSecond": "442.7",
        "estimatedRemainingSeconds": 4350,
        "eta": "1h12m",
        "peakMemoryBytes": 20_079_050_752,
        "peakMemory": "18.7 GiB",
        "lastUpdateTime": instant(NOW),
    }


@pytest.mark.parametrize(
    ("step", "total", "percentage"),
    [(400, 100, 100), (-3, 100, 0), (1, 3, 33), (99, 100, 99), (5, 0, None), (5, None, None)],
)
def test_a_percentage_is_between_0_and_100_or_absent(step: int, total: int | None, percentage: int | None) -> None:
    """A trainer may lie about its steps."""
    assert follow(Progress(phase=Phase.TRAINING, step=step, total_steps=total)).get("percentage") == percentage


def test_no_step_lies_behind_the_last_one() -> None:
    """Whatever a trainer says of where it is, what it saved and where it went on."""
    block = follow(Progress(phase=Phase.TRAINING, step=99, total_steps=40, checkpoint_step=98, resumed_step=97))
    assert [block[key] for key in ("step", "steps", "checkpointStep", "resumedStep")] == [40, "40/40", 40, 40]


def test_steps_are_not_reported_before_the_training_begins() -> None:
    """An empty column says more than a 0."""
    assert "step" not in follow(Progress(phase=Phase.LOADING_MODEL))


def test_the_time_of_the_last_news_is_the_operators_own_and_moves_with_news_only() -> None:
    """A pod's clock may be anything, and a trainer that hangs must look so."""
    progress = Progress(phase=Phase.TRAINING, step=1, total_steps=2, updated_at=5.0)
    first = follow(progress)
    finetune = make_finetune(status={"progress": first, "podName": running_pod().name})
    later = NOW + timedelta(minutes=3)
    assert follow_progress(read_stored(finetune.status), running_pod(), progress, later) == first
    news = follow_progress(
        read_stored(finetune.status), running_pod(), Progress(phase=Phase.TRAINING, step=2, total_steps=2), later
    )
    assert news["lastUpdateTime"] == instant(later)


@pytest.mark.parametrize(("age_s", "wait_s"), [(0, 15.0), (10, 5.0), (14.9, 1.0), (15, 0.0), (3600, 0.0), (-7200, 0.0)])
def test_the_next_question_comes_an_interval_after_the_last_news(age_s: float, wait_s: float) -> None:
    """A time in the future, from an operator with another clock, does not silence it."""
    block = {"lastUpdateTime": instant(NOW)}
    assert next_question_s(block, 15.0, NOW + timedelta(seconds=age_s)) == pytest.approx(wait_s)
    assert next_question_s({}, 15.0, NOW) == 0.0


def test_a_run_that_ends_without_results_keeps_its_numbers() -> None:
    """Only what was of the moment goes."""
    finetune = make_finetune(status={"progress": {"steps": "1/2", "eta": "3s", "phase": "Training"}})
    assert close_progress(read_stored(finetune.status), None) == {"steps": "1/2"}
    assert close_progress(read_stored(finetune.status), make_results(steps=2))["steps"] == "2/2"


def test_fractions_of_the_spec_are_resolved_in_plain_notation() -> None:
    """As one would write them."""
    train = TrainConfig(
        run=RunIdentity(namespace="a", name="b", uid="c"),
        model=ModelConfig(uri="hf://a/b"),
        dataset=DatasetConfig(uri="pvc://a/b", validation_fraction=0.0),
        lora=LoraConfig(dropout=0.05),
        training=TrainingConfig(epochs=None, max_steps=7, learning_rate=0.00001, warmup_ratio=1.0),
        device=DeviceConfig(),
        output=OutputConfig(uri="pvc://a/c"),
    )
    block = resolved_by_spec(train, "image")
    assert (block["dropout"], block["learningRate"], block["warmupRatio"]) == ("0.05", "0.00001", "1")
    assert (block["validationFraction"], block["maxSteps"]) == ("0", 7)
    assert not {"epochs", "maxValidationRows"} & set(block)


def test_a_length_of_time_is_a_whole_number_of_seconds() -> None:
    """As the definition has it; all other fractions are strings."""
    block = block_from(make_results(duration_seconds=61.7, tokens_per_second=442.71))
    assert (block["durationSeconds"], block["tokensPerSecond"]) == (62, "442.71")


def test_what_a_trainer_says_of_a_failure_shows_no_secret() -> None:
    """Its sentences may quote a library, which quotes what it was given; an address is what it is."""
    said = "cannot reach https://user:hunter2@hub.example"
    run = dataclasses.replace(make_resolved(), kernels_left_out=(said,))
    assert block_from(run)["kernelsLeftOut"] == ["cannot reach https://***@hub.example"]
    address = "oci://registry.example/token:v1@sha256:0123"
    assert block_from(make_artifact(uri=address))["uri"] == address
    assert block_from(make_results(merge_failure=said))["mergeFailure"] == "cannot reach https://***@hub.example"


def test_an_image_name_of_any_length_fits() -> None:
    """It is clipped like every other text."""
    config = OperatorConfig(trainer_image="registry.example/" + "x" * 600)
    check_status(decide(make_finetune(), Observed(), config, NOW).status)


@pytest.mark.parametrize(
    ("resolved", "kept"),
    [
        (None, None),
        ({}, None),
        ({"quantization": "Auto"}, None),
        ({"quantization": "None"}, Quantization.NONE),
        ({"quantization": "NF4"}, Quantization.NF4),
        ({"quantization": "INT2"}, None),
        ({"quantization": 4}, None),
        ("NF4", None),
    ],
)
def test_what_auto_became_is_read_from_the_status(resolved: Any, kept: Quantization | None) -> None:
    """Whatever anybody wrote there."""
    assert kept_quantization(resolved if isinstance(resolved, dict) else {}) is kept


def test_a_run_goes_on_with_the_quantization_that_it_was_found_to_use() -> None:
    """Also where its resource was replaced by the old file, which names none: the next attempt's Job has it."""
    for written in ({}, {"quantization": "Auto"}):
        finetune = with_status(make_finetune(spec=written), {"resolved": {"quantization": "NF4", "rank": 16}})
        train = run_of(finetune, Observed(), CONFIG, NOW).request.train
        assert train is not None
        assert train.quantization is Quantization.NF4
        assert resolved_by_spec(train, "image")["quantization"] == "NF4"
    fresh = run_of(make_finetune(), Observed(), CONFIG, NOW).request.train
    assert fresh is not None
    assert resolved_by_spec(fresh, "image")["quantization"] == "Auto"


def test_the_operators_gpus_tell_a_runs_device() -> None:
    """By the name of the resource that it asks for."""
    site = dataclasses.replace(CONFIG, gpus=(GpuSetting(name="nvidia.com/gpu", memory_gib=24, price=2.0),))
    train = run_of(make_finetune(), Observed(), site, NOW).request.train
    assert train is not None
    assert (train.device.gpu, train.device.gpu_price) == ("nvidia.com/gpu", 2.0)
    assert train.device.gpu_memory_bytes == 22_610 * 2**20


def test_the_status_keeps_since_when_the_run_is_in_its_state() -> None:
    """From the creation on for one that waits from the beginning; then since each change, and no look moves it."""
    pending = Observed(jobs=(make_job(),))
    first = decide(make_finetune(), pending, CONFIG, NOW).status
    assert first["stateSince"] == instant(CREATED)
    later = NOW + timedelta(minutes=5)
    waiting = with_status(make_finetune(), first)
    assert decide(waiting, pending, CONFIG, later).status["stateSince"] == instant(CREATED)
    runs = Observed(jobs=(make_job(),), pods=(running_pod(),), progress=Progress(phase=Phase.TRAINING))
    training = decide(waiting, runs, CONFIG, later).status
    assert training["stateSince"] == instant(later)
    again = decide(with_status(waiting, training), runs, CONFIG, later + timedelta(minutes=1)).status
    assert again["stateSince"] == instant(later)
    failed = Observed(jobs=(make_job(),), pods=(ended_pod(65),))
    ended = decide(with_status(waiting, training), failed, CONFIG, later).status
    assert ended["stateSince"] == instant(minutes_ago(11)), "a failure knows its own time"
