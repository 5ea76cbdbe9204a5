"""The dashboard *LoRA run*: how one LoRAFineTune learns, what it uses, and what happened to it."""

from dashgen.board import Board, Curves, Link, Note, Numbers, Panel, Query, Row, Table, Variable
from dashgen.histograms import quantile

_OF = '{namespace="$namespace", name="$name"}'
_RUNS = "It needs metrics.serviceMonitor.enabled and config.runMetrics."
_PODS = "It ends with the pod, and needs metrics.podMonitor.enabled."
_POD = (
    f"group by (pod) (lora_training_heartbeat_timestamp_seconds{_OF} or lora_training_gpu_memory_reserved_bytes{_OF})"
)
"""Each pod of the run; of several nodes only the first one's tells more than its GPUs' memory."""
_TRAINER = 'namespace="$namespace", container="trainer"'
_LIMIT = (
    f'max by (pod) (kube_pod_container_resource_limits{{{_TRAINER}, resource="memory"}}) '
    f"or max by (pod) (container_spec_memory_limit_bytes{{{_TRAINER}}} > 0)"
)
"""Of the memory. kube-prometheus-stack drops cAdvisor's, and has kube-state-metrics."""


def _max(metric: str, by: str = "") -> str:
    """The value, whichever operator or pod it comes from."""
    return f"max{f' by ({by}) ' if by else ''}({metric}{_OF})"


def _of_gpus(metric: str) -> str:
    """A metric of DCGM's exporter by the GPUs of the run's pods; {} is its selector. Where its exporter is scraped
    without honorLabels, the pod stands in exported_pod."""
    mine = metric.replace("{}", '{exported_namespace="$namespace", exported_pod!=""}')
    other = metric.replace("{}", '{namespace="$namespace", pod!="", exported_pod=""}')
    return (
        f'(label_replace(max by (exported_pod, Hostname, gpu) ({mine}), "pod", "$1", "exported_pod", "(.+)")'
        f" or max by (pod, Hostname, gpu) ({other})) * on (pod) group_left () {_POD}"
    )


_SINCE = f"{_max('lorafinetune_state_since_timestamp_seconds')} or {_max('lorafinetune_completed_timestamp_seconds')}"

_GLANCE: tuple[Panel, ...] = (
    Numbers(
        title="State",
        description=f"Group and state; docs/states.md says what it means and what helps. {_RUNS}",
        unit="none",
        queries=[Query(expr=_max("lorafinetune_state", "group, state"), legend="{{group}}: {{state}}")],
        width=6,
        height=4,
        empty="no such run",
        names=True,
        colors=[
            ("/^(Running|Succeeded)/", "good"),
            ("/^(Waiting|Retrying|Running: Stalled)/", "doubtful"),
            ("/^Held/", "busy"),
            ("/^Fail/", "bad"),
        ],
    ),
    Numbers(
        title="In this state for",
        description=_RUNS,
        unit="s",
        queries=[Query(expr=f"time() - ({_SINCE})", legend="in this state")],
        width=3,
        height=4,
    ),
    Numbers(
        title="Progress",
        description=f"Share of the optimizer steps that are done. {_RUNS}",
        unit="percentunit",
        queries=[Query(expr=_max("lorafinetune_progress_ratio"), legend="done")],
        width=3,
        height=4,
        empty="no step yet",
        decimals=0,
    ),
    Numbers(
        title="Time to go",
        description=f"For the steps that are left, at the pace of the last ten minutes. {_PODS}",
        unit="s",
        queries=[
            Query(
                expr=f"({_max('lora_training_steps')} - {_max('lora_training_step')}) * "
                f"max(rate(lora_training_step_duration_seconds_sum{_OF}[10m]) / "
                f"(rate(lora_training_step_duration_seconds_count{_OF}[10m]) > 0))",
                legend="time to go",
            )
        ],
        width=3,
        height=4,
        empty="not training",
    ),
    Numbers(
        title="Unsaved, in intervals",
        description="Training that would be done again if the pod ended now, in intervals between two checkpoints: "
        f"orange from two on, red from three. {_PODS}",
        unit="none",
        queries=[
            Query(
                expr=f"{_max('lora_training_unsaved_seconds')} / {_max('lora_training_checkpoint_interval_seconds')}",
                legend="intervals",
            ),
        ],
        width=3,
        height=4,
        empty="no pod saves now",
        levels=[(0, "good"), (2, "doubtful"), (3, "bad")],
        decimals=1,
    ),
    Numbers(
        title="Last saved step",
        description="From which the run resumes if its pod ends now. " + _RUNS,
        unit="none",
        queries=[Query(expr=_max("lorafinetune_checkpoint_step"), legend="step")],
        width=3,
        height=4,
        empty="none saved",
    ),
    Numbers(
        title="Retries",
        description=f"How often it was begun again: used counts against maxRetries, preempted does not. {_RUNS}",
        unit="none",
        queries=[Query(expr=f"{_max('lorafinetune_retries_total', 'kind')} > 0", legend="{{kind}}")],
        width=3,
        height=4,
        empty="none",
        levels=[(0, "doubtful")],
    ),
)

_WHAT: tuple[Panel, ...] = (
    Table(
        title="What is trained",
        description=f"Base model, the quantization that is used, and the queue. {_RUNS}",
        unit="none",
        queries=[
            Query(expr=_max("lorafinetune_info", "base_model, quantization, queue"), legend="{{base_model}}"),
        ],
        columns=[("base_model", "base model"), ("quantization", "quantization"), ("queue", "queue")],
        width=12,
        height=4,
        empty="no such run",
    ),
    Table(
        title="Advice",
        description="What the operator would do differently; docs/states.md says more, and kubectl describe has the "
        f"numbers. {_RUNS}",
        unit="none",
        queries=[Query(expr=_max("lorafinetune_advice", "code, severity"), legend="{{severity}}: {{code}}")],
        columns=[("severity", "severity"), ("code", "about")],
        width=12,
        height=4,
        empty="none",
    ),
)

_LEARNING: tuple[Panel, ...] = (
    Curves(
        title="Loss",
        description="In nats per token that is learned: of the last step, on the held-out rows (flat until it is "
        "measured again, as training.evalSteps says), and that of the base model on these, once the run has ended. "
        f"{_PODS}",
        unit="none",
        queries=[
            Query(expr=_max("lora_training_loss"), legend="training"),
            Query(expr=_max("lora_training_eval_loss"), legend="held-out"),
            Query(expr=_max("lorafinetune_final_eval_loss_before"), legend="held-out, base model"),
        ],
        width=12,
        height=9,
        limits=["held-out, base model"],
        decimals=3,
    ),
    Curves(
        title="Learning rate",
        description=_PODS,
        unit="sci",
        queries=[Query(expr=_max("lora_training_learning_rate"), legend="learning rate")],
        width=6,
        height=9,
    ),
    Curves(
        title="Norm of the gradient",
        description="Before clipping, and steps that were left out since it or the loss was not finite: apart from "
        f"them those after which FP16 scales the loss by less, which is normal. {_PODS}",
        unit="none",
        queries=[
            Query(expr=_max("lora_training_grad_norm"), legend="norm"),
            Query(expr=_max("lora_training_nonfinite_values_total"), legend="steps left out"),
            Query(expr=_max("lora_training_scaled_down_steps_total"), legend="left out by FP16's scaler"),
        ],
        width=6,
        height=9,
        colors=[("steps left out", "bad")],
    ),
)

_SPEED: tuple[Panel, ...] = (
    Curves(
        title="Tokens a second",
        description=f"Without padding. {_PODS}",
        unit="short",
        queries=[
            Query(expr=f"sum(rate(lora_training_tokens_total{_OF}[$__rate_interval]))", legend="tokens a second"),
        ],
        width=8,
    ),
    Curves(
        title="Duration of an optimizer step",
        description=_PODS,
        unit="s",
        queries=[
            Query(
                expr=f"sum(rate(lora_training_step_duration_seconds_sum{_OF}[$__rate_interval])) / "
                f"(sum(rate(lora_training_step_duration_seconds_count{_OF}[$__rate_interval])) > 0)",
                legend="on average",
            ),
            Query(
                expr=quantile(0.95, "rate", "lora_training_step_duration_seconds", f"{_OF}[$__rate_interval]"),
                legend="95 of 100 within",
            ),
        ],
        width=8,
    ),
    Curves(
        title="How well the GPUs are used",
        description="The share of their 16-bit peak that the training reaches (4N operations a token), where that is "
        "known; the share of micro-batches that is tokens and not padding; and the share of the time in which DCGM saw "
        f"a GPU work, where its exporter is scraped. {_PODS}",
        unit="percentunit",
        queries=[
            Query(expr=_max("lora_training_mfu_ratio"), legend="of the peak"),
            Query(expr=_max("lora_training_micro_batch_fill"), legend="tokens in micro-batches"),
            Query(
                expr=f"max by (Hostname, gpu) ({_of_gpus('DCGM_FI_DEV_GPU_UTIL{} / 100')})",
                legend="{{Hostname}} GPU {{gpu}} at work",
            ),
        ],
        width=8,
        empty="no GPU, or none that is known",
    ),
)

_MEMORY: tuple[Panel, ...] = (
    Curves(
        title="Memory of the GPUs",
        description="Of the fullest GPU: taken by tensors now and at most, taken by PyTorch, what was planned before "
        f"the run, and all that there is, which DCGM's exporter says. Without a GPU, of the process. {_PODS}",
        unit="bytes",
        queries=[
            Query(expr=_max("lorafinetune_estimated_memory_bytes"), legend="planned"),
            Query(expr=_max("lora_training_gpu_memory_allocated_bytes"), legend="tensors now"),
            Query(expr=_max("lora_training_gpu_memory_peak_bytes"), legend="tensors at most"),
            Query(expr=_max("lora_training_gpu_memory_reserved_bytes"), legend="taken by PyTorch"),
            Query(
                expr=f"{_max('lora_training_peak_memory_bytes')} unless {_max('lora_training_gpu_memory_peak_bytes')}",
                legend="process at most",
            ),
            Query(
                expr=f"min({_of_gpus('(DCGM_FI_DEV_FB_USED{} + DCGM_FI_DEV_FB_FREE{})')}) * 2 ^ 20",
                legend="all there is",
            ),
        ],
        width=12,
        height=9,
        limits=["planned", "all there is"],
        colors=[("all there is", "bad")],
    ),
    Curves(
        title="Memory of the pods",
        description="Of the trainer's processes, from the kubelet's cAdvisor, and the limit beyond which the kernel "
        f"kills them, from kube-state-metrics or, without it, from cAdvisor. {_PODS}",
        unit="bytes",
        queries=[
            Query(
                expr=f"max by (pod) (container_memory_rss{{{_TRAINER}}}) * on (pod) {_POD}",
                legend="{{pod}}",
            ),
            Query(
                expr=f"max(({_LIMIT}) * on (pod) group_left () {_POD})",
                legend="limit",
            ),
        ],
        width=12,
        height=9,
        limits=["limit"],
        colors=[("limit", "bad")],
        empty="cAdvisor is not scraped",
    ),
)

_COURSE: tuple[Panel, ...] = (
    Curves(
        title="Steps",
        description=f"Taken, saved and in all. After a restart the line begins again at the checkpoint. {_PODS}",
        unit="none",
        queries=[
            Query(expr=_max("lora_training_step"), legend="taken"),
            Query(expr=_max("lorafinetune_checkpoint_step"), legend="saved"),
            Query(expr=_max("lora_training_steps"), legend="in all"),
        ],
        width=12,
        limits=["in all"],
        decimals=0,
    ),
    Curves(
        title="Active time",
        description="How long the run has been active over all attempts, which activeDeadlineSeconds limits. " + _RUNS,
        unit="s",
        queries=[Query(expr=_max("lorafinetune_active_seconds"), legend="active")],
        width=12,
    ),
)

BOARD = Board(
    uid="lora-run",
    title="LoRA run",
    description="One LoRAFineTune: how it learns, what it uses, and what happened to it.",
    span="3h",
    variables=[
        Variable(name="namespace", label="Namespace", query="label_values(lorafinetune_info, namespace)"),
        Variable(name="name", label="Run", query='label_values(lorafinetune_info{namespace="$namespace"}, name)'),
    ],
    links=[
        Link(title="LoRA fleet", url="/d/lora-fleet?var-datasource=${datasource}&var-namespace=${namespace}"),
        Link(title="NVIDIA DCGM", url="/d/Oxed_c6Wz"),
    ],
    notes=[
        Note(
            name="Restarts",
            expr=f"sum by (kind) (changes(lorafinetune_retries_total{_OF}[$__rate_interval])) > 0",
            title="Begun again: {{kind}}",
            color="orange",
        ),
        Note(
            name="Attempts",
            expr=f"sum(changes(lorafinetune_attempts{_OF}[$__rate_interval])) > 0",
            title="New attempt",
            color="blue",
        ),
    ],
    rows=[
        Row(title="At a glance", panels=(*_GLANCE, *_WHAT)),
        Row(title="How it learns", panels=_LEARNING),
        Row(title="How fast", panels=_SPEED),
        Row(title="Memory", panels=_MEMORY),
        Row(title="Course", panels=_COURSE),
    ],
)
