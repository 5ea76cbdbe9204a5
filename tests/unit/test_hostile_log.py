"""What objects without measure cost in the log: one bounded line for each turn that has an effect, and no more."""

import logging
from collections.abc import Callable

import pytest
from tests.unit.builders import (
    UID,
    condition_object,
    make_job_object,
    make_manifest,
    make_pod_object,
    make_workload_object,
)
from tests.unit.junk import EVIL, FREE_TEXT, hostile
from tests.unit.turns import KEY, Object, World

from lora_operator.controller import logs
from lora_operator.controller.logs import JsonFormatter, TextFormatter

LONGEST = 6000
SAID = condition_object("PodScheduled", "False", message="m")
WAITING = {"waiting": {"reason": "ErrImagePull", "message": "m"}}
ENDED = {"terminated": {"exitCode": 1, "reason": "Error", "message": "m", "finishedAt": "2026-03-01T11:59:00Z"}}
FAILED = condition_object("Failed", reason="BackoffLimitExceeded", message="m")


def resource(world: World, text: str, keys: set[str] | None) -> None:
    """The LoRAFineTune: its spec, its annotations, and a status that was stored for it."""
    made = make_manifest(status={"attempt": 1, "conditions": [condition_object("Complete", "Unknown", message="m")]})
    made["metadata"]["annotations"] = {"message": "m"}
    world.server.finetune = hostile(made, text, keys)
    world.stores.finetunes.put(world.server.finetune)


def job(world: World, text: str, keys: set[str] | None) -> None:
    """Its Job, which has failed. Its limit is put right, and the rest comes back with the answer."""
    made = hostile(make_job_object(version="30", status={"conditions": [FAILED]}), text, keys)
    world.server.job = made
    world.stores.jobs.put(made)
    mended = {**make_job_object()["metadata"], "resourceVersion": "31"}
    world.server.patched = {
        **made,
        "metadata": {**made["metadata"], **mended},
        "spec": {**made["spec"], "backoffLimit": 3},
    }


def waiting_pod(world: World, text: str, keys: set[str] | None) -> None:
    """Its pod, which does not begin."""
    put_pod(world, make_pod_object(state=WAITING, conditions=(SAID,)), text, keys)


def ended_pod(world: World, text: str, keys: set[str] | None) -> None:
    """Its pod, which has failed."""
    put_pod(world, make_pod_object(state=ENDED, conditions=(SAID,), phase="Failed"), text, keys)


def put_pod(world: World, pod: Object, text: str, keys: set[str] | None) -> None:
    """A watch brings it."""
    pod["metadata"]["resourceVersion"] = "30"
    world.stores.pods.put(hostile(pod, text, keys))


def workload(world: World, text: str, keys: set[str] | None) -> None:
    """The Workload of its Job in a queue, which has no quota."""
    world.kueue.served = True
    world.tell_job("30", queue="team", spec={"suspend": True})
    said = condition_object("QuotaReserved", "False", reason="Pending", message="m")
    world.stores.workloads.put(hostile(make_workload_object(said), text, keys))


@pytest.mark.parametrize("keys", [None, FREE_TEXT], ids=["every string", "free text"])
@pytest.mark.parametrize("text", EVIL, ids=["long", "ambiguous", "digits", "open", "unprintable"])
@pytest.mark.parametrize("bring", [resource, job, waiting_pod, ended_pod, workload], ids=lambda bring: bring.__name__)
async def test_an_object_without_measure_costs_one_bounded_line(
    bring: Callable[[World, str, set[str] | None], None],
    text: str,
    keys: set[str] | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the turn that it is first seen in; the next ones say nothing, until something changes."""
    world = World()
    await world.turn()
    bring(world, text, keys)
    caplog.set_level(logging.INFO, "lora_operator")
    for most in (1, 1, 1, 1, 0, 0):
        caplog.clear()
        with logs.turn(KEY, UID):
            await world.turn()
            world.now_s += 120
            lines = [form.format(line) for line in caplog.records for form in (TextFormatter(), JsonFormatter())]
        assert len(caplog.records) <= most, [line[:200] for line in lines]
        assert all("\n" not in line and line.isprintable() and len(line) < LONGEST for line in lines)
