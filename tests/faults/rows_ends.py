"""Rows B1 to B10: Jobs and pods that end before their work is done."""

from tests.faults.promises import Kept, Row, Sees, Shown

from lora_trainer.contract.reasons import Reason

ROWS = (
    Row(
        id="B1",
        fault="A Job is deleted by hand",
        sees=(
            Sees(
                key="recreated",
                conditions={"Accepted": ("True", None)},
                says=("{job}",),
                event=("Warning", Reason.JOB_RECREATED),
                status=("attempt",),
            ),
            Sees(
                key="orphan", when="with --cascade=orphan", state=Reason.RESTARTING, says=("kubectl delete pod {pod}",)
            ),
            Sees(
                key="counts",
                when="more often than `maxRetries`",
                conditions={"Failed": ("True", Reason.BACKOFF_LIMIT_EXCEEDED)},
                says=("deleted 2 times", "to pause a run, set spec.suspend to true instead"),
            ),
        ),
        keeps=(Kept.ONE_WRITER, Kept.ONE_JOB, Kept.VERDICT),
    ),
    Row(
        id="B2",
        fault="A pod is deleted, or evicted by a drain",
        sees=(
            Sees(
                key="evicted",
                conditions={"PodsReady": ("False", Reason.EVICTED)},
                says=("does not count against maxRetries",),
            ),
            Sees(
                key="deleted",
                when="deleted by somebody",
                conditions={"PodsReady": ("False", Reason.RESTARTING)},
                says=("was deleted and is being stopped; a new one follows",),
            ),
            Sees(
                key="counts", when="then a new pod", conditions={"PodsReady": ("True", None)}, retries={"preempted": 1}
            ),
        ),
        keeps=(
            Kept.RETRIES,
            Kept.ONE_JOB,
            Kept.ENDS_WELL,
            Shown(key="grace", says="The pod has its grace period of 120 s to save in"),
            Shown(key="checkpoint", says="Every whole step: SIGTERM saves, and ends with 143", by="by the trainer"),
            Shown(
                key="node",
                says="The run goes on at the step that it had reached",
                by="on a node, with the real trainer",
            ),
        ),
    ),
    Row(
        id="B3",
        fault="The scheduler or Kueue takes the node away for a more important workload",
        sees=(
            Sees(
                key="preempted",
                when="Kueue takes the quota",
                state=Reason.PREEMPTED,
                conditions={"Suspended": ("True", Reason.PREEMPTED), "QuotaReserved": ("False", Reason.PREEMPTED)},
                says=("{sentence}",),
                event=("Warning", Reason.PREEMPTED),
                retries={"preempted": 1},
            ),
            Sees(
                key="scheduler",
                when="the scheduler takes the node",
                conditions={"PodsReady": ("False", Reason.EVICTED)},
                says=("{sentence}", "does not count against maxRetries"),
            ),
            Sees(
                key="counts", when="then a new pod", conditions={"PodsReady": ("True", None)}, retries={"preempted": 1}
            ),
            Shown(key="node", says="The same, with Kueue's own words", by="on a node, with Kueue"),
        ),
        keeps=(
            Kept.ONE_JOB,
            Kept.RETRIES,
            Kept.ENDS_WELL,
            Shown(
                key="progress",
                says="The step of the checkpoint, the attempt, and `maxRetries`",
                by="on a node, with Kueue",
            ),
        ),
    ),
    Row(
        id="B4",
        fault="The trainer is stopped and ends with exit code 0, without a result",
        sees=(
            Sees(
                key="unknown",
                conditions={
                    "Failed": ("True", Reason.RESULT_UNKNOWN),
                    "Complete": ("False", Reason.RESULT_UNKNOWN),
                    "ArtifactPublished": ("False", None),
                },
                says=("no summary of a verified adapter", "create a new LoRAFineTune"),
                event=("Warning", Reason.RESULT_UNKNOWN),
            ),
        ),
        keeps=(Shown(key="no-artifact", says="A run is complete with a verified adapter or not at all"),),
    ),
    Row(
        id="B5",
        fault="The kernel kills the trainer for want of memory (exit code 137)",
        sees=(
            Sees(
                key="again",
                state=Reason.RESTARTING,
                says=("OOMKilled", "{limit}"),
                event=("Warning", Reason.RESTARTING),
                retries={"outOfMemory": 1},
            ),
            Sees(
                key="last",
                when="without a retry left",
                conditions={"Failed": ("True", Reason.OOM_KILLED), "Complete": ("False", Reason.OOM_KILLED)},
                says=("{limit}", "spec.resources.memory"),
                event=("Warning", Reason.OOM_KILLED),
            ),
            Shown(
                key="stage", says="A part of the trainer that the kernel kills ends it with 137", by="by the trainer"
            ),
        ),
        keeps=(Kept.ONE_JOB, Kept.ENDS_WELL),
    ),
    Row(
        id="B6",
        fault="The GPU has too little memory (exit code 71)",
        sees=(
            Sees(
                key="verdict",
                conditions={"Failed": ("True", Reason.CUDA_OUT_OF_MEMORY)},
                says=("{sentence}",),
                event=("Warning", Reason.CUDA_OUT_OF_MEMORY),
            ),
            Sees(
                key="silent",
                when="where the trainer's sentence is missing",
                conditions={"Failed": ("True", Reason.CUDA_OUT_OF_MEMORY)},
                says=("torch.OutOfMemoryError", "quantization NF4"),
            ),
            Shown(key="sentence", says="The sentence names the peak and what to change", by="by the trainer"),
        ),
        keeps=(Kept.ONE_JOB, Shown(key="no-retry", says="No retry is spent on it: there is no second pod")),
    ),
    Row(
        id="B7",
        fault="A node is lost",
        sees=(
            Sees(
                key="unreachable",
                conditions={"PodsReady": ("False", Reason.NODE_UNREACHABLE)},
                says=("{node}", "out-of-service"),
                event=("Warning", Reason.NODE_UNREACHABLE),
            ),
            Sees(key="advice", when="after five minutes", advice="out-of-service"),
            Sees(
                key="container",
                when="the kubelet lost the container",
                state=Reason.RESTARTING,
                says=("NodeLost", "lost the container"),
                event=("Warning", Reason.RESTARTING),
                retries={"nodeLost": 1},
            ),
            Sees(
                key="last",
                when="without a retry left then",
                conditions={"Failed": ("True", Reason.NODE_LOST), "Complete": ("False", Reason.NODE_LOST)},
                says=("lost the container",),
                event=("Warning", Reason.NODE_LOST),
            ),
        ),
        keeps=(
            Kept.ONE_WRITER,
            Kept.PODS,
            Kept.ONE_JOB,
            Kept.ENDS_WELL,
            Shown(
                key="retries",
                says="No retry is used up by a node that is lost or comes back; a lost container alone uses one",
            ),
        ),
    ),
    Row(
        id="B8",
        fault="A kubelet restarts",
        sees=(
            Sees(key="nothing", when="its pods are unready for a moment", nothing=True),
            Sees(
                key="silent",
                when="away for so long that its node counts as lost",
                conditions={"PodsReady": ("False", Reason.NODE_UNREACHABLE)},
                says=("{node}", "the run continues when the node is back"),
            ),
            Sees(key="back", when="afterwards", conditions={"PodsReady": ("True", None)}, retries={}),
        ),
        keeps=(
            Kept.PODS,
            Kept.RETRIES,
            Kept.ENDS_WELL,
            Shown(
                key="pod",
                says="The running pod, its container, which is not restarted, and the verdict",
                by="on a node",
            ),
        ),
    ),
    Row(
        id="B9",
        fault="A GPU fails (exit code 72)",
        sees=(
            Sees(
                key="again",
                state=Reason.RESTARTING,
                says=("GPUFault", "{sentence}"),
                event=("Warning", Reason.RESTARTING),
                retries={"error": 1},
            ),
            Sees(
                key="last",
                when="without a retry left",
                conditions={"Failed": ("True", Reason.GPU_FAULT), "Complete": ("False", Reason.GPU_FAULT)},
                says=("{sentence}",),
                event=("Warning", Reason.GPU_FAULT),
            ),
            Sees(
                key="unfit",
                when="a GPU or a driver that is too old for the image (exit code 64)",
                conditions={"Failed": ("True", Reason.GPU_FAULT)},
                says=("{sentence}",),
                event=("Warning", Reason.GPU_FAULT),
            ),
            Shown(
                key="code", says="A GPU that was given and is not there ends the trainer with 72", by="by the trainer"
            ),
            Shown(
                key="cuda",
                says="So does a CUDA error of a broken GPU; one of a GPU or driver that does not fit ends it with 64",
                by="by the trainer",
            ),
        ),
        keeps=(Kept.ONE_JOB, Kept.ENDS_WELL),
    ),
    Row(
        id="B10",
        fault="The trainer stands still without a sign of life",
        sees=(
            Sees(
                key="stalled",
                when="while it stands still, and does not end itself",
                state=Reason.STALLED,
                says=("no step since", "from its last checkpoint"),
            ),
            Sees(
                key="again",
                when="the trainer ends itself",
                state=Reason.RESTARTING,
                says=("Stalled", "{sentence}"),
                event=("Warning", Reason.RESTARTING),
                retries={"error": 1},
            ),
            Sees(
                key="last",
                when="without a retry left then",
                conditions={"Failed": ("True", Reason.STALLED), "Complete": ("False", Reason.STALLED)},
                says=("{sentence}",),
                event=("Warning", Reason.STALLED),
            ),
        ),
        keeps=(
            Kept.ONE_JOB,
            Kept.ENDS_WELL,
            Shown(key="checkpoint", says="The last checkpoint; the trainer ends with 75", by="by the trainer"),
        ),
    ),
)
