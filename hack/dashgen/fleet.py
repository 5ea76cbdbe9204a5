"""The dashboard *LoRA fleet*: what runs, waits and fails, and why; what it costs; whether the operator is well."""

from dashgen.board import Bars, Board, Curves, Link, Numbers, Panel, Query, Row, Table, Variable
from dashgen.histograms import quantile

_OF = 'namespace=~"$namespace"'
_STATE = f"lorafinetune_state{{{_OF}}}"
_COMPLETED = f"max by (namespace, name) (lorafinetune_completed_timestamp_seconds{{{_OF}}})"
_ENDED_FOR = f"(time() - (lorafinetune_completed_timestamp_seconds{{{_OF}}} > time() - $__range_s))"
_ALERTS = 'ALERTS{alertname=~"LoRA(Operator|FineTune).+", alertstate="firing"}'
_RUNS = "It needs metrics.serviceMonitor.enabled and config.runMetrics."
_PODS = "It needs metrics.podMonitor.enabled."
_SELF = "It needs metrics.serviceMonitor.enabled."
_GROUPS = (
    ("Running", "good"),
    ("Succeeded", "good"),
    ("Waiting", "doubtful"),
    ("Held", "busy"),
    ("Retrying", "doubtful"),
    ("Failing", "bad"),
    ("Failed", "bad"),
)


def _in_group(groups: str) -> str:
    """Runs in these groups of states. To merge those of two operators by name and namespace would take Prometheus a
    second for each thousand; the one before is gone at the next scrape."""
    return f'lorafinetune_state{{{_OF}, group=~"{groups}"}}'


# A preflight runs, and holds none of the GPUs that its run asks for.
_AS_HOLDING = f'label_replace({_in_group("Running|Waiting|Held")}, "group", "Waiting", "state", "Preflight")'


def _with_state(value: str, groups: str, by: str) -> str:
    """A number of each run in these groups of states, by its state. Both are joined as one operator told them at once:
    when a leader has died, Prometheus has two of each for some minutes, and nothing can be joined with two."""
    joined = f"{_in_group(groups)} * on (namespace, name, instance) group_left () {value}"
    return f"max by (namespace, name, {by}) ({joined})"


def _unfinished(value: str) -> str:
    return _with_state(value, "Waiting|Held|Running|Retrying|Failing", "group, state")


_GLANCE: tuple[Panel, ...] = (
    Numbers(
        title="Alerts",
        description="How many fire now. They need metrics.prometheusRule.enabled.",
        unit="none",
        queries=[Query(expr=f"count by (severity) ({_ALERTS})", legend="{{severity}}")],
        width=5,
        height=4,
        empty="none",
        levels=[(0, "bad")],
        colors=[("warning", "doubtful"), ("info", "busy")],
    ),
    Numbers(
        title="Operators that lead",
        description="1 is right: red where no operator works on runs, orange where several do. It needs "
        "metrics.serviceMonitor.enabled.",
        unit="none",
        queries=[Query(expr="sum by (namespace, job) (lora_operator_leader)", legend="{{namespace}}/{{job}}")],
        width=4,
        height=4,
        empty="not scraped",
        missing="bad",
        levels=[(0, "bad"), (1, "good"), (2, "doubtful")],
    ),
    Numbers(
        title="Runs",
        description=f"Runs by group of states, those that ended as long as they are not deleted. {_RUNS}",
        unit="none",
        queries=[Query(expr=f"count by (group) ({_STATE})", legend="{{group}}")],
        width=15,
        height=4,
        empty="no runs",
        colors=_GROUPS,
    ),
    Table(
        title="Alerts that fire",
        description="Each has a runbook in docs/runbooks. A run's name leads to its own dashboard. They need "
        "metrics.prometheusRule.enabled.",
        unit="none",
        queries=[Query(expr=f"max by (severity, alertname, namespace, name) ({_ALERTS})", legend="{{alertname}}")],
        columns=[("severity", "severity"), ("alertname", "alert"), ("namespace", "namespace"), ("name", "name")],
        link="name",
        width=24,
        height=5,
        empty="none",
    ),
)

_RUNNING: tuple[Panel, ...] = (
    Curves(
        title="Runs that have not ended",
        description=f"By group of states. {_RUNS}",
        unit="none",
        queries=[
            Query(expr=f"count by (group) ({_in_group('Waiting|Held|Running|Retrying|Failing')})", legend="{{group}}")
        ],
        width=12,
        stacked=True,
        colors=_GROUPS,
        decimals=0,
    ),
    Curves(
        title="GPUs",
        description="That running runs have, and that others wait for, in their preflight too. How busy they are is on "
        f"DCGM's dashboard. {_RUNS}",
        unit="none",
        queries=[
            Query(
                expr=f"sum by (group) ({_AS_HOLDING} "
                f"* on (namespace, name, instance) group_left () lorafinetune_requested_gpus{{{_OF}}})",
                legend="{{group}}",
            )
        ],
        width=12,
        stacked=True,
        colors=_GROUPS,
        decimals=0,
    ),
    Table(
        title="Runs that have not ended, the one longest in its state first",
        description=f"A run's name leads to its own dashboard. {_RUNS}",
        unit="none",
        queries=[
            Query(
                expr=_unfinished(f"(time() - lorafinetune_state_since_timestamp_seconds{{{_OF}}})"),
                legend="in this state",
            ),
            Query(expr=_unfinished(f"lorafinetune_progress_ratio{{{_OF}}}"), legend="progress"),
            Query(expr=_unfinished(f"lorafinetune_requested_gpus{{{_OF}}}"), legend="GPUs"),
        ],
        columns=[
            ("namespace", "namespace"),
            ("name", "name"),
            ("group", "group"),
            ("state", "state"),
            ("A", "in this state for"),
            ("B", "progress"),
            ("C", "GPUs"),
        ],
        units=[("A", "s"), ("B", "percentunit")],
        link="name",
        by="A",
        width=24,
        height=9,
        empty="none",
    ),
)

_WAITING: tuple[Panel, ...] = (
    Curves(
        title="What runs wait for",
        description="Runs by the state that they wait in; docs/states.md says what each means and what helps. " + _RUNS,
        unit="none",
        queries=[Query(expr=f"count by (state) ({_in_group('Waiting|Held')})", legend="{{state}}")],
        width=12,
        stacked=True,
        decimals=0,
        empty="nothing waits",
    ),
    Curves(
        title="From creation to the Job's start",
        description="Of the Job that trains, over the last six hours, of all namespaces: what a queue, a quota, a "
        "preflight and spec.suspend cost until its first pod. It needs metrics.serviceMonitor.enabled.",
        unit="s",
        queries=[
            Query(
                expr=quantile(share, "increase", "lorafinetune_queue_wait_seconds", "[6h]"),
                legend=legend,
            )
            for share, legend in ((0.5, "half of them within"), (0.9, "nine of ten within"))
        ],
        width=12,
        empty="none began",
    ),
)

_FAILING: tuple[Panel, ...] = (
    Bars(
        title="Failures in the time shown, by reason",
        description="Of runs that are not deleted yet; docs/states.md says what helps. " + _RUNS,
        unit="none",
        queries=[
            Query(
                expr=f"sort_desc(count by (state) ({_in_group('Failed')} and on (namespace, name) "
                f"({_COMPLETED} > time() - $__range_s)))",
                legend="{{state}}",
            )
        ],
        width=8,
        empty="none failed",
        levels=[(0, "bad")],
        decimals=0,
    ),
    Curves(
        title="Retries",
        description="How often runs were begun again: used counts against maxRetries, preempted does not. " + _RUNS,
        unit="none",
        queries=[
            Query(
                expr=f"sum by (kind) (increase(lorafinetune_retries_total{{{_OF}}}[$__rate_interval]))",
                legend="{{kind}}",
            )
        ],
        width=8,
        stacked=True,
        colors=[("used", "bad"), ("preempted", "busy")],
    ),
    Curves(
        title="Runs that have ended",
        description="Succeeded and failed ones that are not deleted yet: the line rises when one ends. " + _RUNS,
        unit="none",
        queries=[Query(expr=f"count by (group) ({_in_group('Succeeded|Failed')})", legend="{{group}}")],
        width=8,
        stacked=True,
        colors=_GROUPS,
        decimals=0,
        empty="none ended",
    ),
    Table(
        title="Runs that failed in the time shown, the latest first",
        description=f"A run's name leads to its own dashboard. {_RUNS}",
        unit="s",
        queries=[
            Query(
                expr=_with_state(_ENDED_FOR, "Failed", "state"),
                legend="ended",
            )
        ],
        columns=[
            ("namespace", "namespace"),
            ("name", "name"),
            ("state", "reason"),
            ("A", "ended, ago"),
        ],
        link="name",
        by="A",
        smallest_first=True,
        width=24,
        height=7,
        empty="none failed",
    ),
)

_COST: tuple[Panel, ...] = (
    Curves(
        title="Tokens trained on",
        description=f"By namespace, without padding. {_PODS}",
        unit="short",
        queries=[
            Query(
                expr=f"sum by (namespace) (rate(lora_training_tokens_total{{{_OF}}}[$__rate_interval]))",
                legend="{{namespace}}: tokens a second",
            )
        ],
        width=12,
        stacked=True,
        empty="nothing trains",
    ),
    Curves(
        title="GPU hours of the hour before",
        description="By namespace: the time for which runs were active times their GPUs, the preflight and a pod's "
        f"wait for its node included. {_RUNS}",
        unit="none",
        queries=[
            Query(
                expr=f"sum by (namespace) (delta(lorafinetune_gpu_seconds{{{_OF}}}[1h])) / 3600",
                legend="{{namespace}}",
            )
        ],
        width=12,
        stacked=True,
        empty="none",
    ),
)

_OPERATOR: tuple[Panel, ...] = (
    Curves(
        title="Turns by result",
        description="Turns of LoRAFineTunes a second. An error is refused what it must do, a retry met trouble that "
        f"passes. {_SELF}",
        unit="cps",
        queries=[
            Query(expr="sum by (result) (rate(lora_operator_reconcile_total[$__rate_interval]))", legend="{{result}}")
        ],
        width=8,
        colors=[("success", "good"), ("retry", "doubtful"), ("error", "bad")],
    ),
    Curves(
        title="Duration of a turn",
        description=f"With its requests to the API server. {_SELF}",
        unit="s",
        queries=[
            *(
                Query(
                    expr=quantile(share, "rate", "lora_operator_reconcile_duration_seconds", "[$__rate_interval]"),
                    legend=legend,
                )
                for share, legend in ((0.5, "half of them within"), (0.99, "99 of 100 within"))
            ),
        ],
        width=8,
    ),
    Curves(
        title="Requests to the API server",
        description=f"By what they do and the status of the answer; error where none came. {_SELF}",
        unit="reqps",
        queries=[
            Query(
                expr="sum by (verb, code) (rate(lora_operator_api_requests_total[$__rate_interval]))",
                legend="{{verb}} {{code}}",
            )
        ],
        width=8,
    ),
    Curves(
        title="Leaders",
        description=f"1 for the process that works on runs. Two lines change places in a hand-over. {_SELF}",
        unit="none",
        queries=[Query(expr="max by (namespace, pod) (lora_operator_leader)", legend="{{namespace}}/{{pod}}")],
        width=6,
        height=6,
        decimals=0,
    ),
    Curves(
        title="Silence of the watches",
        description="Since the last event, bookmark or list. A bookmark comes every minute, but none of LoRAFineTunes. "
        f"A watch that is silent for config.watchInactivitySeconds (70) is begun again. {_SELF}",
        unit="s",
        queries=[
            Query(
                expr="time() - min by (resource) (lora_operator_watch_last_event_timestamp_seconds > 0)",
                legend="{{resource}}",
            )
        ],
        width=6,
        height=6,
        levels=[(600, "bad")],
    ),
    Curves(
        title="LoRAFineTunes that wait for a worker",
        description=f"Near 0 when idle. {_SELF}",
        unit="none",
        queries=[Query(expr="max by (namespace, job) (lora_operator_queue_depth)", legend="{{namespace}}/{{job}}")],
        width=6,
        height=6,
        decimals=0,
    ),
    Numbers(
        title="Namespaces left out",
        description=f"Listed ones in which a right to list or watch is missing. {_SELF}",
        unit="none",
        queries=[Query(expr="max by (namespace) (lora_operator_left_out_namespace) == 1", legend="{{namespace}}")],
        width=6,
        height=6,
        empty="none",
        levels=[(0, "bad")],
        names=True,
    ),
)

BOARD = Board(
    uid="lora-fleet",
    title="LoRA fleet",
    description="All LoRAFineTunes: what runs, waits and fails, and why; what it costs; whether the operator is well.",
    span="6h",
    variables=[
        Variable(name="namespace", label="Namespace", query="label_values(lorafinetune_info, namespace)", several=True)
    ],
    links=[
        Link(title="LoRA run", url="/d/lora-run?var-datasource=${datasource}"),
        Link(title="NVIDIA DCGM", url="/d/Oxed_c6Wz"),
    ],
    rows=[
        Row(title="At a glance", panels=_GLANCE),
        Row(title="What runs", panels=_RUNNING),
        Row(title="What waits, and why", panels=_WAITING),
        Row(title="What fails, and why", panels=_FAILING),
        Row(title="What it costs", panels=_COST),
        Row(title="The operator", panels=_OPERATOR),
    ],
)
