"""Whole runs of the tiny model: what comes out, and every way to end."""

import contextlib
import json
import re
import shutil
import signal
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import PeftModel
from tests.ports import free_port
from tests.trainer import tiny
from tests.trainer.conftest import make_config
from tests.trainer.forked import ForkedRuns
from tests.trainer.runs import PATIENCE_S, Finished, Workplace, prepared, read_json
from transformers import AutoModelForCausalLM

from lora_trainer.data.dataset import open_data
from lora_trainer.model.device import Device
from lora_trainer.spec.exit_codes import ExitCode
from lora_trainer.spec.names import run_suffix
from lora_trainer.spec.progress import Phase, Progress
from lora_trainer.spec.reasons import Reason
from lora_trainer.storage.run_folders import FOLDER
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.batches import MicroBatchLimit
from lora_trainer.train.evaluate import evaluate


@pytest.fixture
def forked(workplace: Workplace, capfd: pytest.CaptureFixture[str]) -> ForkedRuns:
    """Runs on these claims whose stages need not import the libraries."""
    return ForkedRuns(workplace, capfd)


def test_a_manifest_becomes_a_verified_adapter_that_peft_loads(
    workplace: Workplace, forked: ForkedRuns, cpu: Device
) -> None:
    """From the YAML of kubectl apply to a loss that PEFT reproduces; a second run gets a folder of its own."""
    manifest = workplace.manifest_file()
    quickstart = manifest.read_text(encoding="utf-8")
    manifest.write_text(yaml.safe_dump({"kind": "ConfigMap"}) + "---\n" + quickstart, encoding="utf-8")
    done = workplace.run("-f", manifest)
    assert done.status == 0, done.log
    summary, results, artifact = done.summary, done.summary.results, done.summary.artifact
    assert summary.succeeded
    assert results is not None
    assert artifact is not None
    assert summary.resolved is not None
    assert (summary.resolved.device, summary.resolved.compute_dtype) == ("cpu", "fp32")
    assert summary.resolved.trainable_parameters == 4 * 2 * (2 * 128 + 2 * 96 + 3 * 192)
    assert (summary.resolved.micro_batch_size, summary.resolved.gradient_accumulation_steps) == (8, 1)
    assert results.held_out
    assert results.improvement_standard_error is not None
    assert results.eval_loss_after < results.eval_loss_before - 5 * results.improvement_standard_error
    assert results.verification.difference <= 1e-5
    assert (results.steps, artifact.uri) == (6, "pvc://adapters/out")
    assert summary.resolved.quantization == "None"
    assert summary.plan is not None
    assert (summary.plan.device, summary.plan.peak_bytes) == ("cpu", results.estimated_peak_memory_bytes)
    assert results.estimated_peak_memory_bytes is not None
    assert results.estimated_seconds is None
    assert "expected: without a GPU a CPU computes" in done.log
    assert "Loss on held-out rows:" in done.output
    assert "FewHeldOutRows" in [one.code for one in done.summary.advice]
    assert "Advice for the next run:" in done.output
    assert "advice: Hold out more rows by spec.dataset.validationFraction" in done.log
    assert "Traceback" not in done.log

    folder = workplace.claims / "adapters/out"
    assert (folder / "adapter_model.safetensors").stat().st_mode & 0o777 == 0o644
    assert _loss_with_peft(workplace, folder, cpu) == pytest.approx(results.eval_loss_after, abs=1e-5)
    measured = read_json(folder / "manifest.json")["measured"]
    assert measured["estimated_peak_memory_bytes"] == results.estimated_peak_memory_bytes
    config = read_json(folder / "adapter_config.json")
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8, "pvc://models/tiny")

    again = forked.run("-f", manifest)
    assert again.status == 0, again.log
    assert again.summary.artifact is not None
    second = again.summary.artifact.uri.rpartition("/")[2]
    assert second.startswith("out-")
    assert workplace.adapters() == ["out", second]
    first, other = (workplace.claims / "adapters" / name / "adapter_model.safetensors" for name in ("out", second))
    assert first.read_bytes() == other.read_bytes()


def _loss_with_peft(workplace: Workplace, folder: Path, cpu: Device) -> float:
    """The held-out loss, with PEFT's own loading."""
    model_folder = workplace.claims / "models/tiny"
    base: Any = AutoModelForCausalLM.from_pretrained(model_folder)
    model = PeftModel.from_pretrained(base, str(folder))
    data = open_data(prepared(make_config(), Volumes(claims=workplace.claims), workplace.root / "again"))
    return evaluate(
        model, base.get_output_embeddings(), data.evaluation, cpu, lambda count: None, limit=MicroBatchLimit.of(4, 64)
    ).loss


def test_a_run_that_was_already_published_is_verified_and_not_trained_again(
    workplace: Workplace, forked: ForkedRuns
) -> None:
    """The pod died after the adapter was in place: the next attempt reports it; a damaged one is not reported."""
    config = workplace.config_file(training={"maxSteps": 1})
    assert forked.run("--config", config, "--metrics-port", "0").status == 0
    manifest = workplace.claims / "adapters/out/manifest.json"
    before = manifest.stat().st_mtime_ns
    (own,) = (workplace.claims / "adapters" / FOLDER).iterdir()
    kept = workplace.checkpoints()
    # What a result that was copied to another place leaves where it grew.
    shutil.copytree(manifest.parent, own / "staged")
    shutil.copytree(own / kept[0], own / "step-00000000")
    (own / "rows-0123456789abcdef").mkdir()
    again = forked.run("--config", config, "--metrics-port", "0")
    assert (again.status, again.summary.reason) == (0, Reason.SUCCEEDED)
    assert workplace.adapters() == ["out"]
    assert not [path.name for path in own.iterdir() if path.name.startswith(("staged", "rows"))]
    assert workplace.checkpoints() == kept
    assert manifest.stat().st_mtime_ns == before
    weights = workplace.claims / "adapters/out/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    damaged = forked.run("--config", config, "--metrics-port", "0")
    assert (damaged.status, damaged.summary.reason) == (1, Reason.VERIFICATION_FAILED)
    assert "adapter_model.safetensors has sha256" in damaged.summary.message


def test_progress_and_metrics_are_served_and_sigterm_ends_with_143(workplace: Workplace) -> None:
    """A run that is asked to stop is never a success and leaves nothing behind."""
    port = free_port()
    config = workplace.config_file(training={"maxSteps": 100_000})
    process = workplace.start("--config", config, "--metrics-port", str(port))
    try:
        progress = _wait_for_step(lambda: process.poll() is None, port)
        assert progress.phase is Phase.TRAINING
        assert progress.total_steps == 100_000
        assert progress.loss is not None
        assert progress.tokens_per_second is not None
        assert progress.estimated_remaining_seconds is not None
        assert progress.peak_memory_bytes is not None
        assert progress.resolved is not None
        metrics = _get(port, "/metrics")
        for name in ("step", "tokens_total", "loss", "checkpoint_interval_seconds", "peak_memory_bytes"):
            assert f"\nlora_training_{name} " in metrics
        assert "\nlora_training_loss 0.0" not in metrics
        assert 'lora_training_phase{phase="' in metrics
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == ExitCode.TERMINATED
    assert workplace.summary().reason is Reason.EVICTED
    assert workplace.adapters() == []
    assert "Traceback" not in log


def test_a_local_run_that_was_interrupted_goes_on_with_its_uid_or_with_resume(
    workplace: Workplace, forked: ForkedRuns
) -> None:
    """Ctrl-C saves, the last line says how to go on, and the same command with --resume finishes that very run; so does
    the same command where it names the run."""
    manifest = workplace.manifest_file(training={"maxSteps": 400})
    uid, port = str(uuid.uuid4()), free_port()
    process = workplace.start("-f", manifest, "--uid", uid, "--metrics-port", str(port))
    try:
        _wait_for_step(lambda: process.poll() is None, port, least=50)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.communicate()
    saved = _saved_step(process.returncode, printed)

    def interrupt() -> None:
        reached.append(_wait_for_step(lambda: not ended.is_set(), port).step)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    reached, ended = list[int](), threading.Event()
    interrupted = _meanwhile(interrupt, lambda: forked.run("-f", manifest, "--uid", uid, "--metrics-port", port), ended)
    assert _saved_step(interrupted.status, interrupted.output) >= reached[0] >= saved >= 50

    again = forked.run("-f", manifest, "--resume")
    assert again.status == 0, again.log
    assert again.summary.results is not None
    assert again.summary.results.resumed_step is not None
    assert again.summary.results.resumed_step >= reached[0]
    assert "Rows: 40 encoded by an earlier attempt are read again" in again.log
    assert again.summary.results.steps == 400
    assert workplace.adapters() == ["out"]


def _saved_step(status: int, printed: str) -> int:
    assert status == ExitCode.TERMINATED
    said = re.fullmatch(
        r"Interrupted\.\nStep (\d+) is saved: the same command with --resume continues from there\.\n", printed
    )
    assert said is not None, printed
    return int(said[1])


def _meanwhile(action: Callable[[], None], run: Callable[[], Finished], ended: threading.Event) -> Finished:
    """What a run came to during which something happened; `ended` says to the latter that it comes too late."""
    acting = threading.Thread(target=action)
    acting.start()
    try:
        return run()
    finally:
        ended.set()
        acting.join()


def test_resume_without_a_saved_run_is_refused(workplace: Workplace, forked: ForkedRuns) -> None:
    """A sentence with the claim and the remedy, before anything is loaded."""
    refused = forked.run("-f", workplace.manifest_file(), "--resume")
    assert refused.status == ExitCode.CONFIG_INVALID
    assert "no run" in refused.summary.message
    assert "start it without --resume" in refused.summary.message


def _wait_for_step(runs: Callable[[], bool], port: int, least: int = 1) -> Progress:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert runs(), "it ended before that step"
        with contextlib.suppress(OSError):
            progress = Progress.from_json(_get(port, "/progress"))
            if progress.step >= least:
                return progress
        time.sleep(0.05)
    raise AssertionError(f"no step within {PATIENCE_S} s")


def _get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
        return str(answer.read().decode())


def test_a_stage_that_the_kernel_kills_ends_with_137(workplace: Workplace, forked: ForkedRuns) -> None:
    """The supervisor survives and says so."""
    port, ended = free_port(), threading.Event()
    config = workplace.config_file(training={"maxSteps": 100_000})

    def kill() -> None:
        try:
            _wait_for_step(lambda: not ended.is_set(), port)
        finally:
            forked.stages[-1].send_signal(signal.SIGKILL)

    done = _meanwhile(kill, lambda: forked.run("--config", config, "--metrics-port", port), ended)
    assert [stage.wait() for stage in forked.stages] == [-signal.SIGKILL]
    assert (done.status, done.summary.reason) == (ExitCode.KERNEL_OUT_OF_MEMORY, Reason.OOM_KILLED)
    assert "raise resources.memory" in done.summary.message
    assert workplace.adapters() == []


def test_a_gpu_that_was_given_and_is_not_there_is_a_gpu_fault(workplace: Workplace) -> None:
    """Unless the operator allows the CPU."""
    config = workplace.config_file(allow_cpu=False)
    done = workplace.run("--config", config, "--metrics-port", str(free_port()), CUDA_VISIBLE_DEVICES="")
    assert (done.status, done.summary.reason) == (72, Reason.GPU_FAULT)
    assert "resources.gpus is 1, but the container sees no usable GPU" in done.summary.message
    assert workplace.adapters() == []


def test_a_bad_data_set_ends_with_65_before_a_model_is_loaded(workplace: Workplace) -> None:
    """File and line, no stack trace, nothing left on the claim."""
    (workplace.claims / "data/train.jsonl").write_text('{"messages": []}\nnonsense\n', encoding="utf-8")
    config = workplace.claims / "models/tiny/config.json"
    config.write_text(json.dumps({**read_json(config), "model_type": "unknown"}), encoding="utf-8")
    done = workplace.run("-f", workplace.manifest_file())
    assert (done.status, done.summary.reason) == (65, Reason.DATASET_INVALID)
    assert done.summary.message.startswith("train.jsonl, line 2: not JSON")
    assert "Traceback" not in done.log
    assert done.output.startswith("DatasetInvalid: train.jsonl, line 2")
    assert workplace.adapters() == []


def test_what_the_model_does_not_allow_is_refused_before_rows_are_encoded(
    workplace: Workplace, forked: ForkedRuns
) -> None:
    """Which would refuse them, too, and of many rows only after minutes."""
    cut = {"maxSequenceLength": 8}
    done = forked.run("-f", workplace.manifest_file(training=cut))
    assert (done.status, done.summary.reason) == (65, Reason.DATASET_INVALID)
    done = forked.run("-f", workplace.manifest_file(training=cut, lora={"targetModules": ["kew_proj"]}))
    assert (done.status, done.summary.reason) == (64, Reason.CONFIG_INVALID)
    assert "kew_proj" in done.summary.message


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lora": {"rnak": 4}}, "spec.lora.rnak is 4"),
        ({"training": {"learningRate": 0.1}}, "spec.training.learningRate"),
        ({"output": {"uri": "configmap://a/b"}}, "spec.output.uri"),
    ],
)
def test_a_bad_manifest_ends_with_64(
    workplace: Workplace, forked: ForkedRuns, change: dict[str, Any], sentence: str
) -> None:
    """As kubectl would refuse it: field, value, rule."""
    done = forked.run("-f", workplace.manifest_file(**change))
    assert (done.status, done.summary.reason) == (64, Reason.CONFIG_INVALID)
    assert sentence in done.summary.message


def test_a_configuration_of_another_release_ends_with_64(workplace: Workplace, forked: ForkedRuns) -> None:
    """The trainer image must be that of the operator."""
    path = workplace.config_file()
    path.write_text(json.dumps({**read_json(path), "version": "v0"}), encoding="utf-8")
    done = forked.run("--config", path)
    assert (done.status, done.summary.reason) == (64, Reason.CONFIG_INVALID)
    assert "use the trainer image of the operator's release" in done.summary.message


def test_a_claim_that_is_not_mounted_ends_with_74(workplace: Workplace, forked: ForkedRuns) -> None:
    """On a cluster, where nobody makes a folder in its place; the sentence names it."""
    done = forked.run("--config", workplace.config_file(output={"uri": "pvc://none/out"}), "--metrics-port", "0")
    assert (done.status, done.summary.reason) == (74, Reason.STORAGE_ERROR)
    folder = workplace.claims / "none"
    assert f"the claim none is not mounted: there is no folder {folder}" in done.summary.message


def test_a_folder_for_temporary_files_that_does_not_exist_ends_with_64(
    workplace: Workplace, forked: ForkedRuns
) -> None:
    """In a sentence, without a stack trace."""
    done = forked.run("-f", workplace.manifest_file(), "--work", workplace.root / "none")
    assert (done.status, done.summary.reason) == (64, Reason.CONFIG_INVALID)
    assert "must be a folder that exists" in done.summary.message
    assert "Traceback" not in done.log


def test_the_suffix_of_a_second_run_follows_its_uid(workplace: Workplace, forked: ForkedRuns) -> None:
    """So that the operator can predict it."""
    (workplace.claims / "adapters/out").mkdir()
    (workplace.claims / "adapters/out/precious").write_text("x", encoding="utf-8")
    tiny.write_jsonl(workplace.root / "configmaps/notes/notes.jsonl", [{"text": f"Ahoy {i}"} for i in range(9)])
    config = workplace.config_file(
        "uid-7", dataset={"uri": "configmap://notes/notes.jsonl"}, quantization="NF4", training={"maxSteps": 2}
    )
    done = forked.run("--config", config, "--metrics-port", "0")
    assert done.status == 0, done.log
    assert done.summary.artifact is not None
    assert done.summary.artifact.uri == f"pvc://adapters/out-{run_suffix('uid-7')}"
    assert (workplace.claims / "adapters/out/precious").exists()


def test_the_folder_of_the_outputs_claim_is_made_where_there_is_no_cluster(
    workplace: Workplace, forked: ForkedRuns
) -> None:
    """A claim is created by its user, a folder by the run, even one that then ends on its data."""
    manifest = workplace.manifest_file(output={"uri": "pvc://fresh/out"}, dataset={"uri": "pvc://data/none.jsonl"})
    ended = forked.run("-f", manifest)
    assert ended.summary.reason is Reason.DATASET_NOT_FOUND
    assert list((workplace.claims / "fresh").iterdir()) == []
