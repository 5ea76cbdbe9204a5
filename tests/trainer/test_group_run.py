"""Whole runs with two processes under the real torchrun: stopped, gone on from, and with a fault of one of them."""

import dataclasses
import signal
import time
from subprocess import Popen

from tests.trainer import rank_programs
from tests.trainer.processes import together
from tests.trainer.runs import PATIENCE_S, Workplace, read_json

from lora_trainer.spec.exit_codes import ExitCode
from lora_trainer.spec.reasons import Reason
from lora_trainer.storage.manifest import read_manifest
from lora_trainer.storage.sealed import MANIFEST

STEPS = 80


def wait_for_a_checkpoint(workplace: Workplace, process: Popen[str]) -> None:
    """Until the run's folder on the claim holds one."""
    deadline = time.monotonic() + PATIENCE_S
    while not list(workplace.claims.glob("adapters/.lora-checkpoints/*/step-*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.02)


def test_a_run_of_two_processes_that_was_stopped_is_gone_on_from(workplace: Workplace) -> None:
    """SIGTERM to the supervisor: all save and end with 143; the next attempt ends with a verified adapter."""
    config = workplace.config_file(
        resources={"gpus": 2},
        training={"maxSteps": STEPS, "precision": "BF16"},
        checkpoint={"intervalSteps": 5},
    )
    process = workplace.start("--config", config, "--metrics-port", "0")
    wait_for_a_checkpoint(workplace, process)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == ExitCode.TERMINATED, log
    assert workplace.summary().reason is Reason.EVICTED
    assert "Traceback" not in log
    record = read_json(next(workplace.claims.glob("adapters/.lora-checkpoints/*/step-*/run.json")))

    done = workplace.run("--config", config, "--metrics-port", "0")
    assert done.status == 0, done.log
    resolved, results = done.summary.resolved, done.summary.results
    assert resolved is not None
    assert results is not None
    assert done.summary.succeeded
    assert (resolved.processes, resolved.sharded) == (2, False)
    assert (resolved.micro_batch_size, resolved.gradient_accumulation_steps) == (4, 1)
    assert resolved.kernels == tuple(record["resolved"]["kernels"]), "whatever a clock said this time"
    assert results.steps == STEPS
    assert results.resumed_step is not None
    assert 5 <= results.resumed_step < STEPS
    assert done.log.count("device cpu") == 1, "one process of a node speaks for all"
    assert done.log.count("encoded by an earlier attempt are read again") == 1
    _verify_divided(workplace)


def _verify_divided(workplace: Workplace) -> None:
    """The adapter of a base that did not fit one GPU is verified on all of them, as it was trained."""
    folder = workplace.claims / "adapters/out"
    manifest = read_manifest(folder)
    divided = dataclasses.replace(manifest, resolved=dataclasses.replace(manifest.resolved, sharded=True))
    (folder / MANIFEST).write_text(divided.to_json(), encoding="utf-8")
    found = together(2, rank_programs.verify_adapter, folder, workplace.claims)
    assert found[0] == found[1]
    assert isinstance(found[0], float), found[0]
    assert abs(found[0] - manifest.measured.eval_loss_after) < 2e-2
