"""A Prometheus that holds an afternoon of two dozen runs, none of which there was: for pictures of the dashboards.

What it has scraped is exposed by the code of operator and trainer, over statuses and reports that are played.
"""

import contextlib
import math
import random
import re
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from lora_operator.controller.metrics import Metrics
from lora_operator.controller.object_metrics import ObjectCollector
from lora_operator.decide.states import STATES, Group
from lora_operator.model.names import QUEUE_LABEL
from lora_operator.model.objects import FineTune
from lora_operator.model.observe import parse_finetune
from lora_operator.model.wording import instant
from lora_trainer.distributed.reports import Counters, GpuMemory
from lora_trainer.host.metrics import TrainingMetrics
from lora_trainer.spec.progress import Phase, Progress
from lora_trainer.spec.reasons import Reason

SCRAPE_S = 30
_BEGIN_S = datetime(2026, 1, 30, 9, tzinfo=UTC).timestamp()
END_S = _BEGIN_S + 6 * 3600
"""When what is played ends, in seconds since 1970."""
_GPUS = 12
_GIB = 2**30
_TEAMS = ("billing", "support", "legal", "search")
_TASKS = ("tone", "triage", "summary", "routing", "contracts", "intents", "rewrite")
_BASES = ("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-14B", "mistralai/Mistral-7B-v0.3", "google/gemma-2-9b-it")
_FAILURES = {5: Reason.DATASET_INVALID, 11: Reason.CUDA_OUT_OF_MEMORY, 16: Reason.MODEL_ACCESS_DENIED}
_UNSCHEDULABLE = 19
_OPERATOR = {"job": "lora-operator", "namespace": "lora-system", "pod": "lora-operator-7c9f4-x2v8p"}


@dataclass(slots=True, kw_only=True)
class _Run:
    """A run on `gpus`, which waits for them from `created_s` on; `steps` of `step_s` end well, but for a `failure`."""

    number: int
    created_s: float
    gpus: int
    steps: int
    step_s: float
    failure: Reason | None
    started_s: float | None = None
    now_s: float = 0.0
    metrics: TrainingMetrics = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = TrainingMetrics(lambda: self.now_s)
        self.metrics.leads = True
        self.metrics.checkpoint_interval(600)

    @property
    def namespace(self) -> str:
        return f"team-{_TEAMS[self.number % len(_TEAMS)]}"

    @property
    def name(self) -> str:
        return f"{_TASKS[self.number % len(_TASKS)]}-{self.number // len(_TASKS) + 1}"

    @property
    def ends_s(self) -> float:
        lasts = {None: 1.0, Reason.CUDA_OUT_OF_MEMORY: 0.1}.get(self.failure, 0.0)
        return math.inf if self.started_s is None else self.started_s + 60 + lasts * self.steps * self.step_s

    def step(self, now_s: float) -> int:
        return (
            0 if self.started_s is None else min(self.steps, max(0, int((now_s - self.started_s - 60) / self.step_s)))
        )

    def state(self, now_s: float) -> tuple[Reason, float]:
        """What it is in, and since when."""
        if self.started_s is None:
            return (Reason.UNSCHEDULABLE if self.number == _UNSCHEDULABLE else Reason.QUEUED), self.created_s
        if now_s >= self.ends_s:
            return self.failure or Reason.SUCCEEDED, self.ends_s
        return (Reason.TRAINING, self.started_s + 60) if self.step(now_s) else (Reason.LOADING_MODEL, self.started_s)


@contextlib.contextmanager
def played() -> Iterator[str]:
    """The address of a Prometheus with these runs, on 127.0.0.1. Raises CalledProcessError, FileNotFoundError."""
    with tempfile.TemporaryDirectory(prefix="played-") as name:
        folder = Path(name)
        (folder / "samples").write_text("".join(_samples()) + "# EOF\n")
        (folder / "none.yaml").write_text("{}")
        blocks: list[str | Path] = [
            "promtool",
            "tsdb",
            "create-blocks-from",
            "openmetrics",
            folder / "samples",
            folder / "data",
        ]
        subprocess.run(blocks, check=True, stdout=subprocess.DEVNULL)
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        command = ["prometheus", f"--config.file={folder / 'none.yaml'}", f"--storage.tsdb.path={folder / 'data'}"]
        command += [f"--web.listen-address={address}", "--storage.tsdb.retention.time=100y", "--log.level=error"]
        # Blocks that are written have no marks of series that end.
        command += [f"--query.lookback-delta={SCRAPE_S + 1}s"]
        with subprocess.Popen(command) as server:
            try:
                _await(f"http://{address}/-/ready")
                yield f"http://{address}"
            finally:
                server.terminate()


def _await(url: str) -> None:
    for _ in range(150):
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1):  # noqa: S310 - ours
            return
        time.sleep(0.2)
    raise TimeoutError(f"{url} does not answer")


def _runs() -> list[_Run]:
    drawn = random.Random(7)  # noqa: S311 - of a picture
    return [
        _Run(
            number=number,
            created_s=_BEGIN_S + 900 * number * drawn.uniform(0.75, 1.0),
            gpus=drawn.choice((1, 1, 1, 2, 4)),
            steps=drawn.choice((600, 900, 1500)),
            step_s=drawn.uniform(4, 9),
            failure=_FAILURES.get(number),
        )
        for number in range(24)
    ]


def _samples() -> Iterator[str]:
    """What was scraped, as OpenMetrics."""
    runs, registry = _runs(), CollectorRegistry()
    operator, known, seen = Metrics(registry), list[FineTune](), dict[int, tuple[Reason, float]]()
    now_s = _BEGIN_S
    registry.register(ObjectCollector(known, lambda: now_s))
    while now_s < END_S:
        there = [run for run in runs if run.created_s <= now_s]
        _schedule(there, operator, now_s)
        known[:] = [_finetune(run, now_s) for run in there]
        _count(there, seen, operator, now_s)
        yield from _exposed(generate_latest(registry), _OPERATOR, now_s)
        for run in there:
            if run.started_s is not None and now_s < run.ends_s and run.failure not in _FAILURES.values():
                yield from _pod(run, now_s)
            waits = now_s - run.created_s > 1800
            if run.number == _UNSCHEDULABLE and waits:
                of = {"alertname": "LoRAFineTuneStuckPending", "severity": "warning", "alertstate": "firing"}
                yield _line("ALERTS", {**of, "namespace": run.namespace, "name": run.name}, "1", now_s)
        now_s += SCRAPE_S


def _schedule(there: Sequence[_Run], operator: Metrics, now_s: float) -> None:
    """Give GPUs that are free to those that wait longest."""
    free = _GPUS - sum(run.gpus for run in there if run.started_s is not None and now_s < run.ends_s)
    for run in there:
        if run.started_s is None and run.number != _UNSCHEDULABLE and run.gpus <= free and now_s > run.created_s + 90:
            run.started_s, free = now_s, free - run.gpus
            operator.wait_seconds.observe(now_s - run.created_s)


def _count(there: Sequence[_Run], seen: dict[int, tuple[Reason, float]], operator: Metrics, now_s: float) -> None:
    """A turn for each run that trains, and a write for each new state."""
    training = [run for run in there if run.state(now_s)[0] is Reason.TRAINING]
    changed = [run for run in there if seen.get(run.number) != run.state(now_s)]
    seen |= {run.number: run.state(now_s) for run in there}
    for run in changed:
        if now_s >= run.ends_s:
            operator.finished.labels("failed" if run.failure else "succeeded").inc()
    for run in training + changed:
        operator.reconcile_seconds.observe(0.004 + 0.002 * (run.number % 9))
    operator.reconciles.labels("success").inc(len(training) + len(changed))
    operator.requests.labels("patch", "200").inc(len(training) + 2 * len(changed))
    operator.requests.labels("get", "200").inc(1 + len(changed))
    operator.leader.set(1)
    operator.queue_depth.set(0)
    operator.watch_heard(dict.fromkeys(("lorafinetunes", "jobs", "pods"), now_s - now_s % 90))


def _finetune(run: _Run, now_s: float) -> FineTune:
    reason, since_s = run.state(now_s)
    ended = reason in STATES[Group.SUCCEEDED] or (run.started_s is not None and now_s >= run.ends_s)
    step = run.step(min(now_s, run.ends_s))
    status: dict[str, Any] = {
        "observedGeneration": 1,
        "stateSince": _moment(since_s),
        "plan": {"peakBytes": 21 * _GIB},
        "conditions": [
            {"type": "Complete", "status": str(ended and not run.failure), "reason": reason.value},
            {"type": "Failed", "status": str(ended and bool(run.failure)), "reason": reason.value},
        ],
        "retries": {"preempted": 1} if run.number % 8 == 3 and step > run.steps / 2 else {},
        "advice": [{"code": "SeveralEpochs", "severity": "Info"}] if run.number % 4 == 2 else [],
    }
    if run.started_s is not None:
        status |= {
            "podName": _name_of_pod(run),
            "progress": {"step": step, "totalSteps": run.steps, "checkpointStep": _saved(run, step)},
            "activeSince": _moment(run.started_s),
        }
    if ended:
        del status["activeSince"]
        status |= {
            "runSeconds": int(run.ends_s - (run.started_s or 0)),
            "activeUntil": _moment(run.ends_s),
            "completionTime": _moment(run.ends_s),
            "results": {}
            if run.failure
            else {"evalLossBefore": "2.12", "evalLossAfter": f"{_held_out(run, run.steps)}"},
        }
    base, queue = _BASES[run.number % len(_BASES)], run.namespace
    spec = {"model": {"uri": f"hf://{base}"}, "quantization": "NF4", "resources": {"gpus": run.gpus}}
    metadata = {
        "name": run.name,
        "namespace": run.namespace,
        "uid": f"{run.number:08x}-0000-4000-8000-000000000000",
        "generation": 1,
        "resourceVersion": "1",
        "creationTimestamp": _moment(run.created_s),
        "labels": {QUEUE_LABEL: queue},
    }
    return parse_finetune({"metadata": metadata, "spec": spec, "status": status})


def _pod(run: _Run, now_s: float) -> Iterator[str]:
    """What the run's pod, DCGM and the kubelet expose."""
    step, tokens = run.step(now_s), 8200 * run.gpus
    drawn = random.Random(f"{run.number} {step}")  # noqa: S311 - of a picture
    run.now_s = now_s
    progress = Progress(
        phase=Phase.TRAINING,
        step=step,
        total_steps=run.steps,
        epoch=2 * step / run.steps,
        loss=1.05 + 0.9 / (1 + step / 40) + drawn.gauss(0, 0.04),
        eval_loss=_held_out(run, step - step % 100),
        learning_rate=2e-4 * min(1, step / 30) * (1 + math.cos(math.pi * step / run.steps)) / 2,
        tokens_per_second=tokens / run.step_s,
        peak_memory_bytes=20 * _GIB,
    )
    counters = Counters(
        tokens=tokens * step,
        rows=16 * step,
        saves=int(step * run.step_s / 600),
        gradient_norm=0.35 + 1.2 / (1 + step / 15) + abs(drawn.gauss(0, 0.06)),
        step_seconds=run.step_s * drawn.uniform(0.93, 1.1),
        fill=0.94 + drawn.uniform(0, 0.05),
        mfu=0.39 + drawn.uniform(0, 0.03),
    )
    if step:
        run.metrics.update(progress, counters)
    pod = {"namespace": run.namespace, "pod": _name_of_pod(run), "container": "trainer"}
    for gpu in range(run.gpus):
        used = int((17.5 + drawn.uniform(0, 0.6)) * _GIB)
        memory = GpuMemory(gpu=gpu, allocated_bytes=used, reserved_bytes=21 * _GIB, peak_bytes=20 * _GIB)
        run.metrics.memory(memory)
        device = {
            **pod,
            "gpu": str(gpu),
            "UUID": f"GPU-{run.number:06x}{gpu:02x}",
            "Hostname": f"node-{run.number % 5}",
        }
        measured = {"GPU_UTIL": drawn.randint(91, 99), "FB_USED": 21_900, "FB_FREE": 1_100, "XID_ERRORS": 0}
        for name, value in measured.items():
            yield _line(f"DCGM_FI_DEV_{name}", {"job": "dcgm-exporter", **device}, str(value), now_s)
    yield from _exposed(run.metrics.text(), {"job": f"{run.namespace}/lora-trainers", **pod, "name": run.name}, now_s)
    yield _line("container_memory_rss", {"job": "kubelet", **pod}, str((6 + 2 * step / run.steps) * _GIB), now_s)
    limit = {"job": "kube-state-metrics", **pod, "resource": "memory", "unit": "byte"}
    yield _line("kube_pod_container_resource_limits", limit, str(16 * _GIB), now_s)


def _held_out(run: _Run, step: int) -> float:
    return round(1.17 + 0.95 / (1 + step / 70) + 0.01 * (run.number % 5), 3)


def _saved(run: _Run, step: int) -> int:
    each = max(1, int(600 / run.step_s))
    return step - step % each


def _name_of_pod(run: _Run) -> str:
    return f"{run.name}-{run.number:05x}-1-0-abcde"


def _moment(at_s: float) -> str:
    return instant(datetime.fromtimestamp(at_s, UTC))


_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


def _exposed(text: bytes, labels: Mapping[str, str], now_s: float) -> Iterator[str]:
    """The samples of an exposition, with the labels of its target where they have none of their own."""
    for line in text.decode().splitlines():
        if found := _SAMPLE.match(line):
            name, own, value = found.groups(default="")
            target = {key: word for key, word in labels.items() if f'{key}="' not in f",{own}"}
            yield _line(name, target, value, now_s, own)


def _line(name: str, labels: Mapping[str, str], value: str, now_s: float, own: str = "") -> str:
    written = ",".join([*filter(None, [own]), *(f'{key}="{word}"' for key, word in labels.items())])
    return f"{name}{{{written}}} {value} {now_s:.0f}\n"
