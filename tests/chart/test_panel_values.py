"""What panels and marks show for series that promtool plays, where a query that is accepted could still mislead."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from tests.chart.test_dashboards import BOARDS, queries

SCRAPED_S = 30
"""By the chart's ServiceMonitor."""


def asked(board: str, title: str, legend: str | None = None, **choice: str) -> str:
    """The query of a panel or a mark as Grafana sends it, at the step of marks."""
    (query,) = [q for at, q, named in queries(BOARDS[board]) if at == title and legend in (None, named)]
    filled_in = {"__rate_interval": f"{max(4 * SCRAPED_S, 60 + SCRAPED_S)}s", "__range_s": "3600"}
    for name, value in {**filled_in, "namespace": "team", **choice}.items():
        query = query.replace(f"${name}", value)
    return query


def series(metric: str, values: str, /, **labels: str) -> dict[str, str]:
    return {
        "series": f"{metric}{{{', '.join(f'{key}={json.dumps(text)}' for key, text in labels.items())}}}",
        "values": values,
    }


def play(folder: Path, given: list[dict[str, str]], wanted: list[tuple[str, str, dict[str, float]]]) -> None:
    """Hold queries, each at a time, against their samples: labels as PromQL writes them, and values."""
    tests = [
        {
            "expr": query,
            "eval_time": at,
            "exp_samples": [{"labels": labels, "value": value} for labels, value in samples.items()],
        }
        for query, at, samples in wanted
    ]
    played = {"interval": f"{SCRAPED_S}s", "input_series": given, "promql_expr_test": tests}
    file = folder / "tests.yaml"
    file.write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [played]}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_releases_of_one_name_do_not_add_up_to_one_operator(tmp_path: Path) -> None:
    """Of one in each of two namespaces, one that does not lead is red, and two that do are not orange."""
    given = [
        series("lora_operator_leader", "1+0x10", namespace=namespace, job="lora-metrics", pod="lora-1")
        for namespace in ("one", "two")
    ]
    given += [
        series("lora_operator_leader", "0+0x10", namespace="three", job="lora-metrics", pod="lora-1"),
        *(
            series("lora_operator_queue_depth", f"{depth}+0x10", namespace=namespace, job="lora-metrics", pod="lora-1")
            for namespace, depth in (("one", 3), ("two", 4))
        ),
    ]
    each = {f'{{job="lora-metrics", namespace="{namespace}"}}': 1.0 for namespace in ("one", "two")}
    lines = {f'{{namespace="{namespace}", pod="lora-1"}}': 1.0 for namespace in ("one", "two")}
    waiting = {
        f'{{job="lora-metrics", namespace="{namespace}"}}': depth for namespace, depth in (("one", 3.0), ("two", 4.0))
    }
    play(
        tmp_path,
        given,
        [
            (asked("fleet", "Operators that lead"), "1m", {**each, '{job="lora-metrics", namespace="three"}': 0.0}),
            (asked("fleet", "Leaders"), "1m", {**lines, '{namespace="three", pod="lora-1"}': 0.0}),
            (asked("fleet", "LoRAFineTunes that wait for a worker"), "1m", waiting),
        ],
    )


HISTOGRAMS = (
    ("fleet", "From creation to the Job's start", "half of them within", "lorafinetune_queue_wait_seconds"),
    ("fleet", "Duration of a turn", "99 of 100 within", "lora_operator_reconcile_duration_seconds"),
    ("run", "Duration of an optimizer step", "95 of 100 within", "lora_training_step_duration_seconds"),
    ("run", "Duration of an optimizer step", "on average", "lora_training_step_duration_seconds"),
    ("run", "Time to go", "time to go", "lora_training_step_duration_seconds"),
)


@pytest.mark.parametrize(("board", "title", "legend", "name"), HISTOGRAMS)
def test_where_nothing_happened_a_duration_has_no_value(
    tmp_path: Path, board: str, title: str, legend: str, name: str
) -> None:
    """NaN would be drawn as a number, and the panel's own words be missing. Where something happens it has a value."""
    of = {"namespace": "team", "name": "tone"}
    rising = "0+0x20 1+1x20"
    given = [series(f"{name}_bucket", rising, le=le, **of) for le in ("1", "5", "+Inf")]
    given += [series(f"{name}_count", rising, **of), series(f"{name}_sum", rising, **of)]
    given += [series("lora_training_steps", "100+0x60", **of), series("lora_training_step", "10+0x60", **of)]
    query = asked(board, title, legend, name="tone")
    play(tmp_path, given, [(query, "9m", {}), (f"count(({query}) > 0)", "18m", {"{}": 1.0})])


@pytest.mark.parametrize(("mark", "every", "labels"), [("Restarts", 7, '{cause="error"}'), ("Attempts", 9, "{}")])
def test_each_change_is_marked_at_the_step_of_marks(tmp_path: Path, mark: str, every: int, labels: str) -> None:
    """Grafana asks for marks each minute, of series that are scraped each half a minute, at other times."""
    name = {"Restarts": "lorafinetune_retries_total", "Attempts": "lorafinetune_attempts"}[mark]
    values = " ".join(str(scrape // every) for scrape in range(60))
    of = {"namespace": "team", "name": "tone", **({"cause": "error"} if mark == "Restarts" else {})}
    query = f"count by (cause) ({asked('run', mark, name='tone')})"
    minutes = {-(-scrape // 2) for scrape in range(every, 58, every)}
    play(tmp_path, [series(name, values, **of)], [(query, f"{minute}m15s", {labels: 1.0}) for minute in minutes])


def test_a_correction_of_gpu_seconds_is_not_counted_as_a_beginning(tmp_path: Path) -> None:
    """The end of a period of activity is known later than it is: the number then falls by some seconds."""
    rising = " ".join(str(scrape * SCRAPED_S) for scrape in range(120))
    given = [series("lorafinetune_gpu_seconds", f"{rising} 3540+0x20", namespace="team", name="tone")]
    query = asked("fleet", "GPU hours of the hour before")
    play(tmp_path, given, [(f"{query} > 0.8 < 1", "65m", {'{namespace="team"}': 3240 / 3600})])


@pytest.mark.parametrize("source", ["kube-state-metrics", "cAdvisor", "both"])
def test_the_limit_of_a_pods_memory_comes_from_whichever_tells_it(tmp_path: Path, source: str) -> None:
    """kube-prometheus-stack has the first alone; of the trainer's container, and no other."""
    pod = {"namespace": "team", "pod": "tone-1"}
    given = [series("lora_training_heartbeat_timestamp_seconds", "1+0x10", name="tone", **pod)]
    if source != "cAdvisor":
        asks = {"trainer": ("memory", "16"), "sidecar": ("memory", "99"), "": ("memory", "99")}
        given += [
            series(
                "kube_pod_container_resource_limits",
                f"{amount}+0x10",
                container=name,
                resource=what,
                unit="byte",
                **pod,
            )
            for name, (what, amount) in asks.items()
        ]
        given.append(
            series(
                "kube_pod_container_resource_limits", "64+0x10", container="trainer", resource="cpu", unit="core", **pod
            )
        )
    if source != "kube-state-metrics":
        given.append(series("container_spec_memory_limit_bytes", "16+0x10", container="trainer", **pod))
    query = asked("run", "Memory of the pods", "limit", name="tone")
    play(tmp_path, given, [(query, "2m", {"{}": 16.0})])


@pytest.mark.parametrize("honored", [True, False])
def test_dcgms_series_are_a_runs_whichever_label_has_its_pod(tmp_path: Path, *, honored: bool) -> None:
    """With honorLabels that is `pod`, and else `exported_pod`; the GPU of another run's pod does not count."""
    given = [series("lora_training_heartbeat_timestamp_seconds", "1+0x10", namespace="team", name="tone", pod="tone-1")]
    for gpu, pod in (("0", "tone-1"), ("1", "other-1")):
        exporter = {"namespace": "gpu-operator", "pod": "dcgm-1", "exported_namespace": "team", "exported_pod": pod}
        of = {"Hostname": "node-1", "gpu": gpu, **({"namespace": "team", "pod": pod} if honored else exporter)}
        given += [
            series(f"DCGM_FI_DEV_{name}", f"{value}+0x10", **of)
            for name, value in (("GPU_UTIL", 50 + int(gpu)), ("FB_USED", 1), ("FB_FREE", 3 - int(gpu)))
        ]
    at_work = asked("run", "How well the GPUs are used", "{{Hostname}} GPU {{gpu}} at work", name="tone")
    in_all = asked("run", "Memory of the GPUs", "all there is", name="tone")
    wanted = {'{Hostname="node-1", gpu="0"}': 0.5}
    play(tmp_path, given, [(at_work, "2m", wanted), (in_all, "2m", {"{}": 4.0 * 2**20})])


def test_a_run_with_the_longest_name_is_shown_alone(tmp_path: Path) -> None:
    """Beside one whose name begins in the same way."""
    name = "a" * 52
    given: list[dict[str, str]] = []
    for other, step in ((name, 10), (name[:-1], 90), (f"{name[:-1]}b", 90)):
        of = {"namespace": "team", "name": other}
        given += [series("lorafinetune_progress_ratio", f"{step}+0x10", **of)]
        given += [series("lorafinetune_info", "1+0x10", base_model=f"m{step}", quantization="None", queue="", **of)]
        given += [series("lora_training_step", f"{step}+0x10", pod="p", **of)]
    play(
        tmp_path,
        given,
        [
            (asked("run", "Progress", name=name), "1m", {"{}": 10.0}),
            (asked("run", "Steps", "taken", name=name), "1m", {"{}": 10.0}),
            (asked("run", "What is trained", name=name), "1m", {'{base_model="m10", quantization="None"}': 1.0}),
        ],
    )
