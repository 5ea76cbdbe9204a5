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
        "The run waits for its pod to be created, placed, or started.",
        "Nothing; if it lasts, `kubectl describe` shows more.",
    ),
    Reason.ACCEPTED: Explanation(
        "The spec is valid and a Job runs it.",
        "Nothing.",
    ),
    Reason.QUEUED: Explanation(
        "The run waits in its queue for quota; the message is the queue's.",
        "Nothing; to be sooner, raise its priority class or the quota of its queue.",
    ),
    Reason.PREEMPTED: Explanation(
        "The queue took the run's quota for another run, after a checkpoint where there is a claim for one.",
        "Nothing; it resumes from its last checkpoint when the queue admits it again.",
    ),
    Reason.QUOTA_RESERVED: Explanation(
        "The queue has reserved the quota that the run needs.",
        "Nothing.",
    ),
    Reason.SUSPENDED_BY_USER: Explanation(
        "`spec.suspend` is true, or the Job is yet to be resumed: no pod runs and no GPU is held.",
        "Set `spec.suspend` to false to resume. Where it is false, see the condition `Accepted`.",
    ),
    Reason.SUSPENDED_EXTERNALLY: Explanation(
        "The Job is suspended, though not by `spec.suspend`: a queue holds it, or a person.",
        "Wait for the queue, or lift the Job's suspension where it was set.",
    ),
    Reason.NOT_SUSPENDED: Explanation(
        "Nothing holds the run.",
        "Nothing.",
    ),
    Reason.EVICTED: Explanation(
        "The cluster took the pod away: a drain, a preemption, a node short of memory or disk.",
        "Nothing while the run continues: a new pod follows, and counts as a retry only where the node was short.",
    ),
    Reason.NODE_UNREACHABLE: Explanation(
        "The pod's node does not answer, so the pod may still be writing.",
        "Bring the node back; if it is gone for good, delete it or taint it `out-of-service`.",
    ),
    Reason.UNSCHEDULABLE: Explanation(
        "No node can run the pod; the message is the scheduler's.",
        "Add a node that fits, or ask for less in a new resource; a taint is tolerated with `scheduling.tolerations`, "
        "which the message spells, or by the chart's `defaults.tolerations`.",
    ),
    Reason.QUOTA_EXCEEDED: Explanation(
        "A ResourceQuota of the namespace does not allow the Job or its pod; the message says which.",
        "Free some of the quota or have it raised.",
    ),
    Reason.IMAGE_PULL_BACK_OFF: Explanation(
        "The trainer's image cannot be pulled.",
        "Push the image, or create the pull secret in the namespace: the run starts. If the chart's values are wrong, "
        "correct them and create a new resource.",
    ),
    Reason.INVALID_IMAGE: Explanation(
        "The trainer's image has an impossible name.",
        "Correct it in the chart's values, and create a new resource.",
    ),
    Reason.SECRET_NOT_FOUND: Explanation(
        "A Secret of a `secretRef`, or a key that its use needs, does not exist.",
        "Create it; the run then starts.",
    ),
    Reason.CONFIG_MAP_NOT_FOUND: Explanation(
        "A ConfigMap of the data set or of the CA bundle, or its key, does not exist.",
        "Create it; the run then starts.",
    ),
    Reason.VOLUME_NOT_READY: Explanation(
        "A claim does not exist, is not bound, or its volume cannot be attached or mounted.",
        "Create or repair the claim; the run then starts.",
    ),
    Reason.CONTAINER_NOT_STARTED: Explanation(
        "The node cannot set up the pod or its container for another reason.",
        "Show the message to the cluster's administrator.",
    ),
    Reason.ADMISSION_DENIED: Explanation(
        "A webhook, a policy or the API server's validation refuses the Job or its pod.",
        "Correct what the message names; the operator tries again.",
    ),
    Reason.FORBIDDEN: Explanation(
        "The operator lacks a right.",
        "Install the chart again, or grant the right that the message names.",
    ),
    Reason.POD_SECURITY_VIOLATION: Explanation(
        "The namespace's pod security standard, or a security context constraint of OpenShift, refuses the pod.",
        "The pod meets `restricted`; look at what the chart's values add, or grant the constraint in the message.",
    ),
    Reason.NAME_CONFLICT: Explanation(
        "Another object has the name that this run's Job or Service must have.",
        "Delete or rename it, or create the resource under another name.",
    ),
    Reason.JOB_RECREATED: Explanation(
        "The Job was deleted before it was done, and a new one takes its place.",
        "To pause a run, use `spec.suspend`; to end it, delete the resource.",
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
        "The trainer trains; steps, loss and time to go are in `status.progress`.",
        "Nothing.",
    ),
    Reason.EVALUATING: Explanation(
        "The trainer measures the loss on the held-out rows.",
        "Nothing.",
    ),
    Reason.PUBLISHING: Explanation(
        "The trainer writes the result, verifies it in a fresh process and publishes it.",
        "Nothing.",
    ),
    Reason.CHECKPOINTING: Explanation(
        "The trainer saves a checkpoint.",
        "Nothing.",
    ),
    Reason.CHECKPOINT_SAVED: Explanation(
        "A valid checkpoint exists, and the condition of that name names it.",
        "Nothing.",
    ),
    Reason.NO_CHECKPOINT_CLAIM: Explanation(
        "The result goes to no claim and none is named for checkpoints, so what takes the pod away loses its work.",
        "Name one in `checkpoint.volumeClaimName` of a new resource, or accept it.",
    ),
    Reason.PREPARING: Explanation(
        "The trainer fetches model and data, and reads the first rows.",
        "Nothing.",
    ),
    Reason.PREFLIGHT: Explanation(
        "Model, data, output and memory are checked before a GPU is requested. "
        "Where there is a cache claim, model and data are fetched into it.",
        "Nothing.",
    ),
    Reason.PREFLIGHT_PASSED: Explanation(
        "Model, data and output are as the run needs them; `status.preflight` and `status.plan` say what was found.",
        "Nothing.",
    ),
    Reason.OUTPUT_LOCKED: Explanation(
        "Another pod of this run still writes its checkpoints, so this one is tried again while there are retries.",
        "Nothing; if it lasts or ends the run, look for a pod on a node that does not answer.",
    ),
    Reason.STALLED: Explanation(
        "The training took no step for `stallTimeoutSeconds`; it is tried again from the last checkpoint while there "
        "are retries.",
        "Nothing, unless it repeats or ends the run: then look at the node, its GPU and its network.",
    ),
    Reason.PEER_FAILED: Explanation(
        "Another process or node of the run failed, and this one ended with it.",
        "Look at the failure that is reported of the other one.",
    ),
    Reason.POD_RUNNING: Explanation(
        "The pod runs, and the condition `PodsReady` says where.",
        "Nothing.",
    ),
    Reason.RESTARTING: Explanation(
        "A pod failed or was deleted, and another follows while there are retries; the message has the failure.",
        "Nothing, unless it repeats or ends the run: then fix what the message names.",
    ),
    Reason.SUCCEEDED: Explanation(
        "The adapter is published and verified.",
        "Use it: `status.artifact.uri`.",
    ),
    Reason.CONFIG_INVALID: Explanation(
        "The spec breaks the rules that the message lists.",
        "Create a new resource with a corrected spec.",
    ),
    Reason.DOES_NOT_FIT: Explanation(
        "By its plan the run needs more memory than its GPU has. Preflight reports it before one is requested, or the "
        "training before it reads weights.",
        "Make one of the changes that the message names in a new resource, each with its bytes; see `status.plan`.",
    ),
    Reason.DATASET_INVALID: Explanation(
        "The data set cannot be used: a bad line, missing columns, nothing to learn.",
        "Correct what the message names.",
    ),
    Reason.DATASET_NOT_FOUND: Explanation(
        "The data set does not exist where `dataset.uri` says.",
        "Correct the address or put the data there.",
    ),
    Reason.DATASET_ACCESS_DENIED: Explanation(
        "The Hub or the object store refused access to the data set.",
        "Check the Secret of `dataset.secretRef`, or of `model.secretRef` without one, and the data set's terms on the "
        "Hub.",
    ),
    Reason.MODEL_NOT_FOUND: Explanation(
        "The base model does not exist where `model.uri` says.",
        "Correct the address or the revision.",
    ),
    Reason.MODEL_ACCESS_DENIED: Explanation(
        "The Hub or the object store refused access to the base model.",
        "Check the Secret of `model.secretRef`, and accept the model's terms on the Hub.",
    ),
    Reason.OUTPUT_ACCESS_DENIED: Explanation(
        "The output refused to be written with the credentials given.",
        "Check the Secret of `output.secretRef`; the result waits on the checkpoint claim, and is lost without one.",
    ),
    Reason.NON_FINITE_LOSS: Explanation(
        "The loss became infinite or not a number.",
        "Lower the learning rate; look at the data around that step.",
    ),
    Reason.LOSS_DIVERGED: Explanation(
        "The loss rose far above where it began and stayed there.",
        "Lower the learning rate, set `lora.alpha` to `lora.rank` where it is larger, or start from an earlier "
        "checkpoint with `resumeFrom`.",
    ),
    Reason.CUDA_OUT_OF_MEMORY: Explanation(
        "The GPU's memory is too small even for one example at a time.",
        "Lower `maxSequenceLength`, or set `quantization: NF4`.",
    ),
    Reason.OOM_KILLED: Explanation(
        "The pod needed more main memory than its limit.",
        "Raise `resources.memory` in a new resource.",
    ),
    Reason.STORAGE_FULL: Explanation(
        "A volume has no space left, or cannot be written.",
        "Free space, or use another claim.",
    ),
    Reason.STORAGE_ERROR: Explanation(
        "A volume failed while it was read or written.",
        "Look at the claim and its storage.",
    ),
    Reason.UPLOAD_FAILED: Explanation(
        "The result could not be published, although it was tried several times.",
        "Look at the message; a retry publishes it without training again where there is a checkpoint claim, and "
        "trains from the start without one.",
    ),
    Reason.CHECKPOINT_INVALID: Explanation(
        "No checkpoint is left that can be resumed from.",
        "Create a new resource to start over.",
    ),
    Reason.RESUME_MISMATCH: Explanation(
        "The checkpoint belongs to another configuration, model or data set; the message names what differs.",
        "Use the same in what defines the run, or start without `resumeFrom`.",
    ),
    Reason.VERIFICATION_FAILED: Explanation(
        "The written adapter or merged model is not what was trained; the message says by how much and where it is.",
        "Keep the folder and report it: this is a bug, or broken storage. `lora-trainer publish` publishes a verified "
        "adapter whose merge failed.",
    ),
    Reason.GPU_FAULT: Explanation(
        "The GPU failed, there was none where one was asked for, another process holds it, or it or its driver is too "
        "old for the trainer's image, which is not tried again.",
        "Do what the message says; check the node, its driver and its device plugin.",
    ),
    Reason.NODE_LOST: Explanation(
        "The pod's node disappeared, or lost the pod's container in a restart.",
        "Look at the node; create a new resource if no retry is left.",
    ),
    Reason.DEADLINE_EXCEEDED: Explanation(
        "The run took longer than `activeDeadlineSeconds`.",
        "Create a new resource with a later deadline.",
    ),
    Reason.PENDING_TIMEOUT: Explanation(
        "The run waited longer than `pendingTimeoutSeconds` without all its pods running; the message says for what.",
        "Fix that and create a new resource.",
    ),
    Reason.BACKOFF_LIMIT_EXCEEDED: Explanation(
        "More pods failed, or more Jobs were deleted, than `maxRetries` allows; the message has the last error.",
        "Fix its cause and create a new resource.",
    ),
    Reason.RESULT_UNKNOWN: Explanation(
        "The run ended without saying how, so nothing proves an adapter.",
        "Look at the pod's log and at the output folder; run again.",
    ),
    Reason.MULTI_CLUSTER_QUEUE: Explanation(
        "The queue gives the Job to another cluster, as MultiKueue does, where its pod and result cannot be seen.",
        "Create a new resource with the label of a queue whose quota is in this cluster.",
    ),
    Reason.INTERNAL_ERROR: Explanation(
        "The trainer failed in a way that it does not know.",
        "Look at the pod's log, and report it.",
    ),
}
"""Every reason, in the order of the vocabulary."""
