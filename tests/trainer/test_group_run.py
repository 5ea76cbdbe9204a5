"""Whole runs with two processes under the real torchrun: stopped, gone on from, and with a fault of one of them."""

import signal
import time

from tests.trainer.runs import Workplace

from lora_trainer.contract.exit_codes import ExitCode
from lora_trainer.contract.reasons import Reason

WAIT_S = 240
STEPS = 80


def wait_for_a_checkpoint(workplace: Workplace) -> None:
    """Until the run's folder on the claim holds one."""
    deadline = time.monotonic() + WAIT_S
    while not list(workplace.claims.glob("adapters/.lora-checkpoints/*/step-*")):
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.02)


def test_a_run_of_two_processes_that_was_stopped_is_gone_on_from(workplace: Workplace) -> None:
    """SIGTERM to the supervisor: all save and end with 143; the next attempt ends with a verified adapter."""
    config = workplace.config_file(
        resources={"gpus": 2},
        training={"maxSteps": STEPS},
        checkpoint={"intervalSteps": 5},
    )
    process = workplace.start("--config", config, "--metrics-port", "0")
    wait_for_a_checkpoint(workplace)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=WAIT_S)
    assert process.returncode == ExitCode.TERMINATED, log
    assert workplace.summary().reason is Reason.EVICTED
    assert "Traceback" not in log

    done = workplace.run("--config", config, "--metrics-port", "0")
    assert done.status == 0, done.log
    resolved, results = done.summary.resolved, done.summary.results
    assert resolved is not None
    assert results is not None
    assert done.summary.succeeded
    assert (resolved.processes, resolved.sharded) == (2, False)
    assert (resolved.micro_batch_size, resolved.gradient_accumulation_steps) == (4, 1)
    assert results.steps == STEPS
    assert results.resumed_step is not None
    assert 5 <= results.resumed_step < STEPS
    assert done.log.count("device cpu") == 1, "one process of a node speaks for all"
