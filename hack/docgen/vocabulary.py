"""What each reason means and what to do about it: for docs/states.md."""

from collections.abc import Mapping
from typing import NamedTuple

from lora_trainer.spec.reasons import Reason


class Explanation(NamedTuple):
    """Two sentences for the person who reads a reason; Markdown, of which only `code` is used."""

    meaning: str
    remedy: str


VOCABULARY: Mapping[Reason, Explanation] = {
    Reason.PENDING: Explanation(
        "The run waits for its pod to be created, placed or started.",
        "Nothing. If it lasts, see `kubectl describe`.",
    ),
    Reason.ACCEPTED: Explanation(
        "The spec is valid and a Job runs it.",
        "Nothing.",
    ),
    Reason.QUEUED: Explanation(
        "The run waits for quota in its queue.",
        "Nothing. A higher priority class or more quota shortens the wait.",
    ),
    Reason.PREEMPTED: Explanation(
        "The queue gave the run's quota to another run.",
        "Nothing. The run resumes when the queue admits it again.",
    ),
    Reason.QUOTA_RESERVED: Explanation(
        "The queue has reserved the run's quota.",
        "Nothing.",
    ),
    Reason.SUSPENDED_BY_USER: Explanation(
        "`spec.suspend` is true: no pod runs, and no GPU is held.",
        "Set `spec.suspend` to false. If it is false, see `Accepted`.",
    ),
    Reason.SUSPENDED_EXTERNALLY: Explanation(
        "A queue or another client suspended the Job.",
        "Wait for the queue, or resume the Job where it was suspended.",
    ),
    Reason.NOT_SUSPENDED: Explanation(
        "Nothing holds the run.",
        "Nothing.",
    ),
    Reason.EVICTED: Explanation(
        "The cluster took the pod: a drain, a preemption, or a node short of memory or disk.",
        "Nothing while the run continues: a new pod follows.",
    ),
    Reason.NODE_UNREACHABLE: Explanation(
        "The pod's node does not answer; the pod may still be writing.",
        "Bring the node back. If it is lost, delete it or taint it `out-of-service`.",
    ),
    Reason.UNSCHEDULABLE: Explanation(
        "No node fits the pod; the message is the scheduler's.",
        "Add a node, tolerate the taint in the message, or request less in a new resource.",
    ),
    Reason.QUOTA_EXCEEDED: Explanation(
        "A ResourceQuota of the namespace refuses the Job or its pod.",
        "Free some of the quota, or raise it.",
    ),
    Reason.IMAGE_PULL_BACK_OFF: Explanation(
        "The trainer's image cannot be pulled.",
        "Push the image or create the pull secret. Where the chart's values are wrong, correct them and create a new "
        "resource.",
    ),
    Reason.INVALID_IMAGE: Explanation(
        "The name of the trainer's image is invalid.",
        "Correct the chart's values and create a new resource.",
    ),
    Reason.SECRET_NOT_FOUND: Explanation(
        "A Secret, or a key in it, does not exist.",
        "Create it. The run then starts.",
    ),
    Reason.CONFIG_MAP_NOT_FOUND: Explanation(
        "A ConfigMap, or a key in it, does not exist.",
        "Create it. The run then starts.",
    ),
    Reason.VOLUME_NOT_READY: Explanation(
        "A PVC is missing or unbound, or its volume cannot be mounted.",
        "Create or repair the PVC. The run then starts.",
    ),
    Reason.CONTAINER_NOT_STARTED: Explanation(
        "The node cannot start the container for another reason.",
        "Show the message to the administrator.",
    ),
    Reason.ADMISSION_DENIED: Explanation(
        "A webhook, a policy or the API server refuses the Job or its pod.",
        "Correct what the message names. The operator tries again.",
    ),
    Reason.FORBIDDEN: Explanation(
        "The operator lacks a permission.",
        "Install the chart again, or grant the permission in the message.",
    ),
    Reason.POD_SECURITY_VIOLATION: Explanation(
        "The pod security standard, or OpenShift's constraint, refuses the pod.",
        "The pod meets `restricted`. Check what the chart's values add.",
    ),
    Reason.NAME_CONFLICT: Explanation(
        "Another object has the name of the run's Job or Service.",
        "Delete or rename it, or create the run under another name.",
    ),
    Reason.JOB_RECREATED: Explanation(
        "Somebody deleted the Job; the operator created a new one.",
        "To pause a run, use `spec.suspend`. To end it, delete the resource.",
    ),
    Reason.STARTING: Explanation(
        "The trainer starts.",
        "Nothing.",
    ),
    Reason.LOADING_MODEL: Explanation(
        "The trainer loads the base model.",
        "Nothing.",
    ),
    Reason.TRAINING: Explanation(
        "The trainer trains; see `status.progress`.",
        "Nothing.",
    ),
    Reason.EVALUATING: Explanation(
        "The trainer measures the validation loss.",
        "Nothing.",
    ),
    Reason.PUBLISHING: Explanation(
        "The trainer verifies the result and publishes it.",
        "Nothing.",
    ),
    Reason.CHECKPOINTING: Explanation(
        "The trainer saves a checkpoint.",
        "Nothing.",
    ),
    Reason.CHECKPOINT_SAVED: Explanation(
        "A valid checkpoint exists; the condition names it.",
        "Nothing.",
    ),
    Reason.NO_CHECKPOINT_CLAIM: Explanation(
        "The run has no PVC for checkpoints, so an interruption loses its work.",
        "Set `checkpoint.volumeClaimName` in a new resource, or accept it.",
    ),
    Reason.PREPARING: Explanation(
        "The trainer downloads model and data and reads the first rows.",
        "Nothing.",
    ),
    Reason.PREFLIGHT: Explanation(
        "The preflight checks model, data, output and memory on a CPU.",
        "Nothing.",
    ),
    Reason.PREFLIGHT_PASSED: Explanation(
        "The preflight found nothing that would fail the run.",
        "Nothing.",
    ),
    Reason.OUTPUT_LOCKED: Explanation(
        "Another pod of this run still writes its checkpoints.",
        "Nothing. If it lasts, look for a pod on an unreachable node.",
    ),
    Reason.STALLED: Explanation(
        "Training made no step for `stallTimeoutSeconds`.",
        "Nothing. If it repeats, check the node, its GPU and its network.",
    ),
    Reason.PEER_FAILED: Explanation(
        "Another process or node of the run failed.",
        "See the failure that is reported for it.",
    ),
    Reason.POD_RUNNING: Explanation(
        "All pods of the run are running.",
        "Nothing.",
    ),
    Reason.RESTARTING: Explanation(
        "A pod failed or was deleted, and another one follows.",
        "Nothing. If it repeats, fix what the message names.",
    ),
    Reason.SUCCEEDED: Explanation(
        "The adapter is verified and published.",
        "Use it: `status.artifact.uri`.",
    ),
    Reason.CONFIG_INVALID: Explanation(
        "The spec breaks the rules in the message.",
        "Create a new resource with a corrected spec.",
    ),
    Reason.DOES_NOT_FIT: Explanation(
        "By its plan the run needs more memory than its GPU has.",
        "Make one of the changes in the message in a new resource.",
    ),
    Reason.DATASET_INVALID: Explanation(
        "The dataset has a bad line, lacks columns or has nothing to learn.",
        "Correct what the message names.",
    ),
    Reason.DATASET_NOT_FOUND: Explanation(
        "The dataset does not exist at `dataset.uri`.",
        "Correct the address, or put the data there.",
    ),
    Reason.DATASET_ACCESS_DENIED: Explanation(
        "The Hub or the bucket denies access to the dataset.",
        "Check its Secret, and accept its terms on the Hub.",
    ),
    Reason.MODEL_NOT_FOUND: Explanation(
        "The base model does not exist at `model.uri`.",
        "Correct the address or the revision.",
    ),
    Reason.MODEL_ACCESS_DENIED: Explanation(
        "The Hub or the bucket denies access to the base model.",
        "Check its Secret, and accept its terms on the Hub.",
    ),
    Reason.OUTPUT_ACCESS_DENIED: Explanation(
        "The credentials cannot write to the output.",
        "Check its Secret. The result waits on the checkpoint PVC, and is lost without one.",
    ),
    Reason.NON_FINITE_LOSS: Explanation(
        "The loss became infinite or not a number.",
        "Lower the learning rate. Check the data near that step.",
    ),
    Reason.LOSS_DIVERGED: Explanation(
        "The loss rose far above its minimum and stayed there.",
        "Lower the learning rate or `lora.alpha`, or resume from an earlier checkpoint.",
    ),
    Reason.CUDA_OUT_OF_MEMORY: Explanation(
        "The GPU's memory is too small even for one example at a time.",
        "Lower `maxSequenceLength`, or set `quantization: NF4`.",
    ),
    Reason.OOM_KILLED: Explanation(
        "The pod exceeded its limit of main memory.",
        "Raise `resources.memory` in a new resource.",
    ),
    Reason.STORAGE_FULL: Explanation(
        "A volume is full or cannot be written.",
        "Free space, or use another PVC.",
    ),
    Reason.STORAGE_ERROR: Explanation(
        "A volume failed during reading or writing.",
        "Check the PVC and its storage.",
    ),
    Reason.UPLOAD_FAILED: Explanation(
        "The result could not be published after several tries.",
        "See the message. With a checkpoint PVC a retry publishes without training again.",
    ),
    Reason.CHECKPOINT_INVALID: Explanation(
        "No valid checkpoint is left to resume from.",
        "Restore one from a backup, or create a new resource to start over.",
    ),
    Reason.RESUME_MISMATCH: Explanation(
        "The checkpoint belongs to another configuration, model or dataset.",
        "Use the same settings, or start without `resumeFrom`.",
    ),
    Reason.VERIFICATION_FAILED: Explanation(
        "The written result differs from what was trained.",
        "Keep the folder and report it: it is a bug, or broken storage.",
    ),
    Reason.GPU_FAULT: Explanation(
        "The GPU is missing, failed, in use by another process, or too old for the image.",
        "Follow the message. Check the node, its driver and its device plugin.",
    ),
    Reason.NODE_LOST: Explanation(
        "The pod's node disappeared, or lost the container in a restart.",
        "Check the node. Create a new resource if no retry is left.",
    ),
    Reason.DEADLINE_EXCEEDED: Explanation(
        "The run was active for longer than `activeDeadlineSeconds`.",
        "Create a new resource with a later deadline.",
    ),
    Reason.PENDING_TIMEOUT: Explanation(
        "The run waited longer than `pendingTimeoutSeconds` for its pods.",
        "Fix the cause in the message and create a new resource.",
    ),
    Reason.BACKOFF_LIMIT_EXCEEDED: Explanation(
        "More pods failed, or Jobs were deleted, than `maxRetries` allows.",
        "Fix the last error in the message and create a new resource.",
    ),
    Reason.RESULT_UNKNOWN: Explanation(
        "The run ended without a report, so nothing proves an adapter.",
        "Check the pod's log and the output. Run again.",
    ),
    Reason.MULTI_CLUSTER_QUEUE: Explanation(
        "The queue sends the Job to another cluster, where the operator cannot see it.",
        "Use a queue with quota in this cluster.",
    ),
    Reason.INTERNAL_ERROR: Explanation(
        "The trainer failed in an unknown way.",
        "Check the pod's log, and report it.",
    ),
}
"""Every reason, in the order of the vocabulary."""
