"""`status` of a LoRAFineTune: what the trainer says (`summary`, `preflight`, `run_plan`, `progress`), and what the
operator adds."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from lora_trainer.spec.advice import Severity
from lora_trainer.spec.api import Api, fact
from lora_trainer.spec.preflight import Preflight
from lora_trainer.spec.progress import Progress
from lora_trainer.spec.run_plan import RunPlan
from lora_trainer.spec.summary import Artifact, DatasetStats, ResolvedRun, Results, SavedState


class Truth(enum.StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A condition in the usual form."""

    type: str = field(metadata=fact("Name of the condition.", longest=64, shortest=1))
    status: Truth = field(metadata=fact("Whether it holds.", longest=None))
    observed_generation: int | None = field(
        default=None, metadata=fact("The metadata.generation that the condition is about.")
    )
    last_transition_time: datetime = field(metadata=fact("When status last changed."))
    reason: str = field(metadata=fact("Why, as one word of the documented reasons.", longest=64, shortest=1))
    message: str = field(metadata=fact("Why, as a sentence.", longest=4096))


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How often a run was begun again."""

    used: int | None = field(
        default=None,
        metadata=fact(
            "Retries that count against maxRetries: failed pods, as the Jobs count them, and deleted Jobs. With "
            "several nodes, the pods of the node that failed most. One more than maxRetries ends the run.",
            wide=False,
        ),
    )
    preempted: int | None = field(
        default=None,
        metadata=fact(
            "How often the run was preempted, drained or evicted, at least. This does not count against maxRetries.",
            wide=False,
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviceItem:
    """A piece of advice, put into words."""

    code: str = field(metadata=fact("Topic of the advice, as one word.", longest=64, shortest=1))
    severity: Severity = field(
        metadata=fact("Warning if work may be lost or the result may mislead, otherwise Info.", longest=None)
    )
    message: str = field(metadata=fact("What to do, and why."))
    evidence: str | None = field(default=None, metadata=fact("What was seen in this run."))


@dataclass(frozen=True, slots=True, kw_only=True)
class PodToleration:
    """A taint that the pods tolerate."""

    key: str | None = field(default=None, metadata=fact("Key of the taint.", longest=317))
    operator: str | None = field(default=None, metadata=fact("Exists or Equal.", longest=32))
    value: str | None = field(default=None, metadata=fact("Value of the taint.", longest=63))
    effect: str | None = field(default=None, metadata=fact("Effect of the taint.", longest=32))
    toleration_seconds: int | None = field(default=None, metadata=fact("Seconds on a node that gets the taint."))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """What each training pod asks for."""

    gpu_resource_name: str | None = field(default=None, metadata=fact("Resource name of the GPUs.", longest=253))
    cpu: str | None = field(default=None, metadata=fact("Requested CPU cores.", longest=64))
    memory: str | None = field(default=None, metadata=fact("Requested and maximum main memory.", longest=64))
    node_selector: Mapping[str, str] | None = field(
        default=None,
        metadata=fact("Labels that a node must have.", most=32, item=Api(about="Value of the label.", longest=63)),
    )
    tolerations: tuple[PodToleration, ...] | None = field(
        default=None,
        metadata=fact("Taints that the pods tolerate.", most=32, item=Api(about="One tolerated taint.")),
    )
    affinity: Mapping[str, Any] | None = field(
        default=None,
        metadata=fact("Affinity of the pods, without what gpuMinMemoryGiB and gpuProducts add to it.", most=3),
    )
    runtime_class_name: str | None = field(
        default=None, metadata=fact("RuntimeClass of the training pods.", longest=253)
    )
    priority_class_name: str | None = field(default=None, metadata=fact("PriorityClass of the pods.", longest=253))
    queue: str | None = field(default=None, metadata=fact("Kueue queue of a run whose labels name none.", longest=253))
    ttl_seconds_after_finished: int | None = field(
        default=None, metadata=fact("TTL of the Jobs of a run whose spec names none.", low=1)
    )
    environment: Mapping[str, str] | None = field(
        default=None,
        metadata=fact(
            "Variables that the operator's defaults add to the pods' environment.",
            most=64,
            item=Api(about="Value of the variable.", longest=1024),
        ),
    )
    checkpoint_claim: str | None = field(
        default=None, metadata=fact("PersistentVolumeClaim of the checkpoints.", longest=253)
    )
    cache_claim: str | None = field(
        default=None, metadata=fact("PersistentVolumeClaim of the cache for models and data.", longest=253)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved(ResolvedRun):
    """What a run used: what its trainer found out, and what its spec and the defaults say."""

    validation_fraction: str | None = field(
        default=None, metadata=fact("Share of the rows that was held out.", longest=32)
    )
    max_validation_rows: int | None = field(
        default=None,
        metadata=fact("Maximum rows of the validation set; absent if unlimited.", low=1, wide=False),
    )
    rank: int | None = field(default=None, metadata=fact("Rank of the adapter.", wide=False))
    alpha: int | None = field(default=None, metadata=fact("Alpha of the adapter.", wide=False))
    dropout: str | None = field(default=None, metadata=fact("Dropout of the adapter's input.", longest=32))
    scaling: str | None = field(default=None, metadata=fact("Scaling of the adapter.", longest=32))
    variant: str | None = field(default=None, metadata=fact("Variant of the adapter.", longest=32))
    init: str | None = field(default=None, metadata=fact("Initial weights of the adapter.", longest=32))
    image: str | None = field(default=None, metadata=fact("Image of the trainer."))
    epochs: str | None = field(
        default=None, metadata=fact("Passes over the data, if they decided when to stop.", longest=32)
    )
    max_steps: int | None = field(
        default=None, metadata=fact("Optimizer steps, if they decided when to stop.", wide=False)
    )
    learning_rate: str | None = field(default=None, metadata=fact("Peak learning rate.", longest=32))
    schedule: str | None = field(default=None, metadata=fact("Schedule of the learning rate.", longest=32))
    warmup_ratio: str | None = field(
        default=None, metadata=fact("Share of the steps in which the learning rate rose.", longest=32)
    )
    effective_batch_size: int | None = field(default=None, metadata=fact("Examples per optimizer step.", wide=False))
    max_sequence_length: int | None = field(
        default=None, metadata=fact("Maximum length of an example in tokens.", wide=False)
    )
    weight_decay: str | None = field(default=None, metadata=fact("Weight decay of the trained weights.", longest=32))
    max_grad_norm: str | None = field(default=None, metadata=fact("Maximum gradient norm.", longest=32))
    eval_steps: int | None = field(
        default=None,
        metadata=fact("Optimizer steps between evaluations, if there were any during training.", wide=False),
    )
    loss_on: str | None = field(default=None, metadata=fact("Which tokens were loss tokens.", longest=32))
    precision: str | None = field(
        default=None, metadata=fact("The precision asked for; see computeDtype for the one used.", longest=32)
    )
    seed: int | None = field(default=None, metadata=fact("Seed of everything random."))
    pod: Pod | None = field(
        default=None,
        metadata=fact(
            "What each training pod requests, and the operator's other defaults when the first Job was created. "
            "Later changes of defaults affect new runs only."
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(RunPlan):
    """A plan with its sizes for people."""

    device_memory: str | None = field(default=None, metadata=fact("deviceBytes, readable, as in 79.6 GiB.", longest=32))
    peak_memory: str | None = field(default=None, metadata=fact("peakBytes, readable, as in 18.7 GiB.", longest=32))
    pod_memory: str | None = field(default=None, metadata=fact("podMemoryBytes, readable, as in 12.4 GiB.", longest=32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Course(Progress):
    """A moment of a run with its numbers for people."""

    steps: str | None = field(default=None, metadata=fact("Steps done and planned, as in 120/400.", longest=64))
    percentage: int | None = field(
        default=None, metadata=fact("Share of the steps done, in per cent.", wide=False, high=100)
    )
    eta: str | None = field(
        default=None, metadata=fact("estimatedRemainingSeconds, readable, as in 1h12m.", longest=32)
    )
    peak_memory: str | None = field(
        default=None, metadata=fact("peakMemoryBytes, readable, as in 18.7 GiB.", longest=32)
    )
    checkpoint_time: datetime | None = field(
        default=None, metadata=fact("When the checkpoint of checkpointStep was first reported.")
    )
    last_update_time: datetime | None = field(default=None, metadata=fact("When the trainer last reported."))


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """All that the operator writes."""

    observed_generation: int | None = field(
        default=None, metadata=fact("The metadata.generation that this status is about.")
    )
    conditions: tuple[Condition, ...] | None = field(
        default=None,
        metadata=fact(
            "Conditions in the usual form. Complete and Failed are the terminal pair. The reason of Complete is the "
            "STATE in kubectl get.",
            most=16,
            item=Api(about="One aspect of the run's state."),
            key="type",
        ),
    )
    attempt: int | None = field(
        default=None,
        metadata=fact(
            "Number of training Jobs created. It is above 1 only if a Job was deleted before it was done; retried "
            "pods count in retries.",
            wide=False,
        ),
    )
    state_since: datetime | None = field(
        default=None, metadata=fact("When the present STATE, the reason of Complete, began.")
    )
    start_time: datetime | None = field(default=None, metadata=fact("When the first Job started."))
    completion_time: datetime | None = field(default=None, metadata=fact("When the run succeeded or failed."))
    run_seconds: int | None = field(
        default=None,
        metadata=fact(
            "Active seconds until activeUntil, over all attempts and with the preflight. activeDeadlineSeconds "
            "limits them together with the time since activeSince."
        ),
    )
    active_since: datetime | None = field(
        default=None,
        metadata=fact(
            "When the present active time began; absent while the run is suspended, queued or without a Job."
        ),
    )
    active_until: datetime | None = field(default=None, metadata=fact("The time up to which runSeconds counts."))
    retries: Retries | None = field(default=None, metadata=fact("How often the run was retried; absent if never."))
    advice: tuple[AdviceItem, ...] | None = field(
        default=None,
        metadata=fact(
            "What would improve this run, or the next one, warnings first. Advice never stops a run.",
            most=16,
            item=Api(about=""),
            key="code",
        ),
    )
    job_name: str | None = field(default=None, metadata=fact("The Job of the present attempt.", longest=253))
    pod_name: str | None = field(default=None, metadata=fact("The latest pod, for kubectl logs.", longest=253))
    preflight: Preflight | None = field(
        default=None,
        metadata=fact("What preflight found; absent if spec.preflight is Skip or the preflight failed."),
    )
    plan: Plan | None = field(
        default=None,
        metadata=fact(
            "How the run computes, and its expected memory and time. If preflight did not know the GPU, the training "
            "writes it at its end."
        ),
    )
    resolved: Resolved | None = field(
        default=None, metadata=fact("Every value that the run used, defaults and computed ones included.")
    )
    dataset: DatasetStats | None = field(default=None, metadata=fact("What the trainer found in the dataset."))
    progress: Course | None = field(
        default=None, metadata=fact("The state of the training, updated every few seconds.")
    )
    checkpoint: SavedState | None = field(
        default=None,
        metadata=fact("The last valid checkpoint, for resumeFrom or lora-trainer export."),
    )
    results: Results | None = field(
        default=None,
        metadata=fact("What the run achieved. Losses are means per loss token in nats; lower is better."),
    )
    artifact: Artifact | None = field(default=None, metadata=fact("The adapter, published and verified."))
