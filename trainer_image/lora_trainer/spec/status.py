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
    reason: str = field(metadata=fact("Why, as one word of the published vocabulary.", longest=64, shortest=1))
    message: str = field(metadata=fact("Why, as a sentence for people.", longest=4096))


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How often a run was begun again."""

    used: int | None = field(
        default=None,
        metadata=fact(
            "What counts against maxRetries: failed pods as the Jobs count them, of several nodes those of the "
            "node with most of them, and Jobs that somebody deleted. One more than maxRetries ends the run.",
            wide=False,
        ),
    )
    preempted: int | None = field(
        default=None,
        metadata=fact(
            "How often the run was preempted, drained or evicted, at least. That does not count against maxRetries.",
            wide=False,
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviceItem:
    """A piece of advice, put into words."""

    code: str = field(metadata=fact("What it is about, one word.", longest=64, shortest=1))
    severity: Severity = field(
        metadata=fact("Warning where work may be lost or the result may not be what it seems, else Info.", longest=None)
    )
    message: str = field(metadata=fact("What to do, and why."))
    evidence: str | None = field(default=None, metadata=fact("What was seen."))


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

    gpu_resource_name: str | None = field(
        default=None, metadata=fact("Name of the resource under which nodes offer the GPUs.", longest=253)
    )
    cpu: str | None = field(default=None, metadata=fact("Requested CPU cores.", longest=64))
    memory: str | None = field(default=None, metadata=fact("Main memory, requested and at most.", longest=64))
    node_selector: Mapping[str, str] | None = field(
        default=None,
        metadata=fact("Labels that a node must have.", most=32, item=Api(about="Value of the label.", longest=63)),
    )
    tolerations: tuple[PodToleration, ...] | None = field(
        default=None,
        metadata=fact("Taints of nodes that the pods tolerate.", most=32, item=Api(about="One tolerated taint.")),
    )
    affinity: Mapping[str, Any] | None = field(
        default=None,
        metadata=fact("Affinity of the pods, without what gpuMinMemoryGiB and gpuProducts add to it.", most=3),
    )
    runtime_class_name: str | None = field(
        default=None, metadata=fact("RuntimeClass of the training pods.", longest=253)
    )
    priority_class_name: str | None = field(default=None, metadata=fact("PriorityClass of the pods.", longest=253))
    queue: str | None = field(
        default=None, metadata=fact("Queue of Kueue for a run whose labels name none.", longest=253)
    )
    ttl_seconds_after_finished: int | None = field(
        default=None, metadata=fact("Time to live of a run whose spec names none.", low=1)
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
        default=None, metadata=fact("PersistentVolumeClaim that keeps models and data.", longest=253)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved(ResolvedRun):
    """What a run used: what its trainer found out, and what its spec and the defaults say."""

    validation_fraction: str | None = field(
        default=None, metadata=fact("Share of the rows that was held out.", longest=32)
    )
    max_validation_rows: int | None = field(
        default=None,
        metadata=fact("How many rows are held out at most. Absent where there is no limit.", low=1, wide=False),
    )
    rank: int | None = field(default=None, metadata=fact("Rank of the adapter.", wide=False))
    alpha: int | None = field(default=None, metadata=fact("Alpha of the adapter.", wide=False))
    dropout: str | None = field(default=None, metadata=fact("Dropout of the adapter's input.", longest=32))
    scaling: str | None = field(default=None, metadata=fact("Scaling of the adapter.", longest=32))
    variant: str | None = field(default=None, metadata=fact("Variant of the adapter.", longest=32))
    init: str | None = field(default=None, metadata=fact("Start values of the adapter.", longest=32))
    image: str | None = field(default=None, metadata=fact("Image of the trainer."))
    epochs: str | None = field(
        default=None, metadata=fact("Passes over the data, if that decided when to stop.", longest=32)
    )
    max_steps: int | None = field(
        default=None, metadata=fact("Optimizer steps, if that decided when to stop.", wide=False)
    )
    learning_rate: str | None = field(default=None, metadata=fact("Peak learning rate.", longest=32))
    schedule: str | None = field(default=None, metadata=fact("Schedule of the learning rate.", longest=32))
    warmup_ratio: str | None = field(
        default=None, metadata=fact("Share of the steps in which the learning rate rose.", longest=32)
    )
    effective_batch_size: int | None = field(
        default=None, metadata=fact("Examples for each optimizer step.", wide=False)
    )
    max_sequence_length: int | None = field(default=None, metadata=fact("Longest example in tokens.", wide=False))
    weight_decay: str | None = field(default=None, metadata=fact("Weight decay of the trained weights.", longest=32))
    max_grad_norm: str | None = field(
        default=None, metadata=fact("Norm that gradients were scaled down to.", longest=32)
    )
    eval_steps: int | None = field(
        default=None, metadata=fact("Optimizer steps between evaluations, if there were any on the way.", wide=False)
    )
    loss_on: str | None = field(default=None, metadata=fact("Which tokens were learned.", longest=32))
    precision: str | None = field(
        default=None, metadata=fact("The precision asked for; see computeDtype for the one used.", longest=32)
    )
    seed: int | None = field(default=None, metadata=fact("Seed of everything random."))
    pod: Pod | None = field(
        default=None,
        metadata=fact(
            "What each training pod asks of the cluster, and what else the operator's defaults decided when the "
            "run's first Job was made: a default that is changed later reaches new runs alone."
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(RunPlan):
    """A plan with its sizes for people."""

    device_memory: str | None = field(default=None, metadata=fact("The same for people, as in 79.6 GiB.", longest=32))
    peak_memory: str | None = field(default=None, metadata=fact("The same for people, as in 18.7 GiB.", longest=32))
    pod_memory: str | None = field(default=None, metadata=fact("The same for people, as in 12.4 GiB.", longest=32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Course(Progress):
    """A moment of a run with its numbers for people."""

    steps: str | None = field(default=None, metadata=fact("Steps done and planned, as in 120/400.", longest=64))
    percentage: int | None = field(
        default=None, metadata=fact("Share of the steps done, from 0 to 100.", wide=False, high=100)
    )
    eta: str | None = field(default=None, metadata=fact("The same for people, as in 1h12m.", longest=32))
    peak_memory: str | None = field(default=None, metadata=fact("The same for people, as in 18.7 GiB.", longest=32))
    checkpoint_time: datetime | None = field(default=None, metadata=fact("When that checkpoint was first reported."))
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
            "State of the run in the usual form. Complete and Failed are the terminal pair, Accepted, "
            "QuotaReserved (in a queue of Kueue), PreflightPassed (where spec.preflight is Run), PodsReady, "
            "CheckpointSaved, Suspended and ArtifactPublished give details. The reason of Complete is what "
            "kubectl get shows as STATE.",
            most=16,
            item=Api(about="One aspect of the run's state."),
            key="type",
        ),
    )
    attempt: int | None = field(
        default=None,
        metadata=fact(
            "Number of training Jobs made for this run. It is above 1 only if a Job was deleted before it was "
            "done; retries of pods are the Job's own, and are counted in retries.",
            wide=False,
        ),
    )
    state_since: datetime | None = field(
        default=None, metadata=fact("Since when the run is in its present STATE, the reason of the condition Complete.")
    )
    start_time: datetime | None = field(default=None, metadata=fact("When the first Job started."))
    completion_time: datetime | None = field(default=None, metadata=fact("When the run ended, successfully or not."))
    run_seconds: int | None = field(
        default=None,
        metadata=fact(
            "Seconds that the run was active until activeUntil, over all attempts and with the preflight; this "
            "and the time since activeSince are what activeDeadlineSeconds limits."
        ),
    )
    active_since: datetime | None = field(
        default=None,
        metadata=fact("Since when the run is active; absent while it is suspended, in a queue or without a Job."),
    )
    active_until: datetime | None = field(default=None, metadata=fact("Up to when runSeconds counts."))
    retries: Retries | None = field(
        default=None, metadata=fact("How often the run was begun again; absent where it never was.")
    )
    advice: tuple[AdviceItem, ...] | None = field(
        default=None,
        metadata=fact(
            "What would make this run, or the next one, go better, warnings first; it never stops a run.",
            most=16,
            item=Api(about=""),
            key="code",
        ),
    )
    job_name: str | None = field(default=None, metadata=fact("The Job of the present attempt.", longest=253))
    pod_name: str | None = field(default=None, metadata=fact("The latest pod, for kubectl logs.", longest=253))
    preflight: Preflight | None = field(
        default=None,
        metadata=fact(
            "What was found out before a GPU was asked for; absent where spec.preflight is Skip, and where the "
            "preflight failed."
        ),
    )
    plan: Plan | None = field(
        default=None,
        metadata=fact(
            "How the run computes, and the memory and time that it is expected to take, as preflight found, or at "
            "the end the training where preflight knew no GPU. docs/fit.md explains how accurate the estimates "
            "are."
        ),
    )
    resolved: Resolved | None = field(
        default=None, metadata=fact("Every value that the run really used, defaults and computed ones included.")
    )
    dataset: DatasetStats | None = field(default=None, metadata=fact("What was found in the data set."))
    progress: Course | None = field(
        default=None, metadata=fact("Where the training is, updated every few seconds while it runs.")
    )
    checkpoint: SavedState | None = field(
        default=None,
        metadata=fact("The last valid checkpoint that the run left, for resumeFrom or lora-trainer export."),
    )
    results: Results | None = field(
        default=None,
        metadata=fact("What the run achieved. Losses are means per target token in nats; lower is better."),
    )
    artifact: Artifact | None = field(default=None, metadata=fact("The adapter, once it is published and verified."))
