"""What a Prometheus scrapes in a fleet, by the code that exposes it: an operator, the pods that train, and what others
expose about their GPUs and memory."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.monitored.chart import NAMESPACE, Chart
from benchmarks.monitored.life import STEPS, TRAINS_S, Run, finetune, pod_name, runs
from prometheus_client import CollectorRegistry, generate_latest

from lora_operator.controller.metrics import Metrics
from lora_operator.controller.object_metrics import ObjectCollector
from lora_operator.model.names import ATTEMPT_LABEL, INDEX_LABEL, NAME_LABEL, ROLE_LABEL, UID_LABEL, child_labels
from lora_operator.model.objects import FineTune, Observed
from lora_trainer.distributed.reports import Counters, GpuMemory
from lora_trainer.host.metrics import TrainingMetrics
from lora_trainer.spec.progress import Phase, Progress

_GIB = 2**30
_TOKENS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Something that is scraped. `labels` are those that it is given; with `honors` its own win over them."""

    path: str
    labels: Mapping[str, str]
    honors: bool
    text: Callable[[], bytes]


class Fleet:
    """All targets of a fleet of so many runs; `at` moves it on to a time, which never goes back."""

    def __init__(self, total: int, chart: Chart, address: str) -> None:
        self._total, self._chart, self._address = total, chart, address
        self._operator = _Operator()
        self._pods: dict[Run, TrainingMetrics] = {}
        self._now_s = 0.0

    def at(self, now_s: float) -> list[Target]:
        """The targets that there are at a time, in seconds since 1970."""
        self._now_s = now_s
        alive = list(runs(self._total, now_s))
        self._operator.see([finetune(run, now_s) for run in alive], now_s)
        training = [run for run in alive if run.trains(now_s)]
        self._pods = {run: self._pods.get(run) or self._begun() for run in training}
        for run, metrics in self._pods.items():
            train(metrics, now_s - run.started_s)
        return [
            self._target("/operator", self._chart.operator_labels, self._operator.text, honors=True),
            *(self._target(f"/{run.name}", _labels(run), metrics.text) for run, metrics in self._pods.items()),
            self._target("/dcgm", {"job": "dcgm-exporter"}, lambda: _dcgm(training), honors=True),
            self._target("/kubelet", {"job": "kubelet"}, lambda: _cadvisor(training), honors=True),
        ]

    def _begun(self) -> TrainingMetrics:
        metrics = TrainingMetrics(lambda: self._now_s)
        metrics.leads = True
        metrics.checkpoint_interval(600)
        return metrics

    def _target(
        self, path: str, labels: Mapping[str, str], text: Callable[[], bytes], *, honors: bool = False
    ) -> Target:
        return Target(path=path, labels={**labels, "instance": self._address}, honors=honors, text=text)


def pod_labels(namespace: str, pod: str, labels: Mapping[str, str]) -> dict[str, str]:
    """Those of the series of a training pod, whose own labels are these, by the chart's PodMonitor."""
    return {
        "job": f"{NAMESPACE}/lora-trainers",
        "namespace": namespace,
        "pod": pod,
        "container": "trainer",
        "endpoint": "metrics",
        "name": labels[NAME_LABEL],
        "uid": labels[UID_LABEL],
        "attempt": labels[ATTEMPT_LABEL],
        "role": labels[ROLE_LABEL],
        "completion_index": labels.get(INDEX_LABEL, ""),
    }


class _Operator:
    """The operator's registry over resources that are played; what it counts of them it counts itself."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._metrics = Metrics(self._registry)
        self._now_s = 0.0
        self._before: dict[str, FineTune] = {}
        self._registry.register(ObjectCollector(self, lambda: self._now_s))

    def __iter__(self) -> Iterator[FineTune]:
        return iter(self._before.values())

    def see(self, finetunes: list[FineTune], now_s: float) -> None:
        """Take over what there is now; each status that is new is a turn with one write."""
        self._now_s = now_s
        changed = 0
        for run in finetunes:
            before = self._before.get(run.name)
            if before is not None and before.status != run.status:
                changed += 1
                self._metrics.status_written(before, Observed(), run.status)
                self._metrics.reconcile_seconds.observe(0.002 * (1 + changed % 10))
        self._before = {run.name: run for run in finetunes}
        self._metrics.reconciles.labels("success").inc(changed)
        self._metrics.requests.labels("update", "200").inc(changed)
        self._metrics.requests.labels("get", "200").inc()
        self._metrics.leader.set(1)
        self._metrics.watch_heard(dict.fromkeys(("lorafinetunes", "jobs", "pods"), now_s - 5))

    def text(self) -> bytes:
        """What `/metrics` answers."""
        return generate_latest(self._registry)


def _labels(run: Run) -> dict[str, str]:
    labels = {**child_labels(run.name, run.uid, 1), INDEX_LABEL: "0"}
    return pod_labels(run.namespace, pod_name(run), labels)


def train(metrics: TrainingMetrics, age_s: float) -> None:
    """Report as a training does that is so old."""
    step = int(age_s * STEPS / TRAINS_S)
    progress = Progress(
        phase=Phase.TRAINING,
        step=step,
        total_steps=STEPS,
        epoch=3 * step / STEPS,
        loss=1 + 1.5 / (1 + step / 500),
        eval_loss=1.1 + 1.5 / (1 + step / 500),
        learning_rate=2e-4 * (1 - step / STEPS),
        tokens_per_second=_TOKENS * STEPS / TRAINS_S,
        peak_memory_bytes=19 * _GIB,
    )
    counters = Counters(
        tokens=_TOKENS * step,
        rows=16 * step,
        saves=int(age_s // 600),
        gradient_norm=0.5 + 1 / (1 + step),
        step_seconds=TRAINS_S / STEPS * (1 + step % 7 / 10),
        fill=0.97,
        mfu=0.41,
    )
    metrics.update(progress, counters)
    used = 17 * _GIB + step % 11 * 2**24
    metrics.memory(GpuMemory(gpu=0, allocated_bytes=used, reserved_bytes=20 * _GIB, peak_bytes=19 * _GIB))


def _dcgm(training: list[Run]) -> bytes:
    """Of NVIDIA's exporter: one GPU for each run, eight a node. Nodes come and go with the runs."""
    lines = []
    for run in training:
        gpu, node = run.number % 8, run.number // 8
        of = (
            f'gpu="{gpu}",UUID="GPU-{run.number:08x}",device="nvidia{gpu}",modelName="NVIDIA L4",'
            f'Hostname="node-{node}",container="trainer",namespace="{run.namespace}",pod="{pod_name(run)}"'
        )
        values = {"GPU_UTIL": 80 + run.number % 20, "FB_USED": 20_500, "FB_FREE": 2_000, "XID_ERRORS": 0}
        lines += [f"DCGM_FI_DEV_{name}{{{of}}} {number}\n" for name, number in values.items()]
    return "".join(lines).encode()


def _cadvisor(training: list[Run]) -> bytes:
    """Of the kubelet, and of kube-state-metrics: the containers that train."""
    values = {
        "container_memory_rss": ("", 6 * _GIB),
        "kube_pod_container_resource_limits": (',resource="memory",unit="byte"', 16 * _GIB),
    }
    return "".join(
        f'{name}{{namespace="{run.namespace}",pod="{pod_name(run)}",container="trainer"{more}}} {number}\n'
        for name, (more, number) in values.items()
        for run in training
    ).encode()
