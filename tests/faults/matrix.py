"""Every fault that the operator is made for: what goes wrong, what the user sees of it, and what is never lost.

Tests name the rows that they prove with `@pytest.mark.fault("A3")`; docs/faults.md is made from both.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fault. `seen` uses the conditions' own words; `untested` says why no test here can prove the row."""

    id: str
    fault: str
    seen: str
    kept: str
    untested: str = ""


SECTIONS = {
    "A": "The control plane and the operator itself",
    "B": "Jobs, pods and nodes",
    "C": "What a run consists of",
}

ROWS = (
    Row(
        id="A1",
        fault="The operator is killed, at any moment, before or after any of its writes",
        seen="Nothing; the status moves on when the next operator is there",
        kept="The running pod, the verdict, and that each attempt has one Job",
    ),
    Row(
        id="A2",
        fault="The API server dies, or is away for a minute",
        seen='Nothing; `lora_operator_reconcile_total{result="retry"}` counts',
        kept="Everything",
    ),
    Row(
        id="A3",
        fault="Somebody else writes the same object all the time (409 on a status write)",
        seen="Nothing",
        kept="Labels, annotations and conditions of the other writer, and our own",
    ),
    Row(
        id="A4",
        fault="An object of somebody else has the name of our Job",
        seen="`Accepted=False NameConflict` with the object's name, and a Warning; the run begins once it is gone",
        kept="The other's object, untouched",
    ),
    Row(
        id="A5",
        fault="A watch is told 410 Gone, or etcd was compacted, while a Job is deleted",
        seen="Nothing: the list with which a watch begins anew shows what is gone, and else the resync does",
        kept="No Job that is gone is believed to be there",
    ),
    Row(
        id="A6",
        fault="A watch breaks: errors 403, 429 and 500 in the stream, a cut, half a document",
        seen="At worst a restart of the operator, counted by the cluster",
        kept="No run is unattended for longer than the watchdog allows",
    ),
    Row(
        id="A7",
        fault="A watch freezes: the connection stays and no byte comes",
        seen="`lora_operator_watch_last_event_timestamp_seconds` stands still until the watch is begun anew",
        kept="What happened meanwhile is made up for",
    ),
    Row(
        id="A8",
        fault="An API server answers from the past: lists and reads of a minute ago",
        seen="Nothing",
        kept="One Job for each attempt; nothing is deleted on a stale view",
    ),
    Row(
        id="A9",
        fault="A watch loses events and nobody notices",
        seen="A delay up to the resync",
        kept="The verdict, and everything else of the end state",
    ),
    Row(
        id="A10",
        fault="Two operators run at once",
        seen="Nothing; one of them is the leader, and the other takes over within 20 s of its end",
        kept="One Job for each attempt, with and without leader election",
    ),
    Row(
        id="A11",
        fault="The leader cannot renew its Lease",
        seen="A restart of that operator; another one leads",
        kept="One Job for each attempt",
    ),
    Row(
        id="A12",
        fault="The API server is overloaded and answers 429 with Retry-After to every third request",
        seen="Everything takes longer; `lora_operator_api_requests_total` shows the code",
        kept="Progress: every run ends as it would have",
    ),
    Row(
        id="A13",
        fault="A right is missing",
        seen=(
            "The operator names it at start, and ends if it is missing everywhere; "
            "a run that needs it is `Accepted=False Forbidden` with verb and kind, and other namespaces go on"
        ),
        kept="The run begins once the right is there",
    ),
    Row(
        id="A14",
        fault="An admission policy or a quota refuses the Job",
        seen="`Accepted=False AdmissionDenied` or `QuotaExceeded` with the server's sentence, and a Warning",
        kept="The resource; the run begins once it may",
    ),
    Row(
        id="A15",
        fault="The definition is upgraded, and rolled back, while runs go on",
        seen="Nothing; fields that the older one lacks are not stored, which the operator's log says once",
        kept="The running pods; statuses can still be written",
    ),
    Row(
        id="A16",
        fault="The definition is deleted, and installed again",
        seen="The resources and their Jobs are gone, as Kubernetes has it; the operator ends once with the reason, "
        "waits for the definition, unready with the remedy, and works afterwards",
        kept="What lies on volumes and in buckets",
    ),
    Row(
        id="A17",
        fault="The operator is replaced by the release before or after it while runs go on",
        seen="Nothing",
        kept="The running pods and the attempts",
    ),
    Row(
        id="A18",
        fault="The operator's clock is two hours wrong",
        seen="No negative ages",
        kept="Deadlines are not taken for over",
    ),
    Row(
        id="A19",
        fault="Events cannot be written or read",
        seen="Fewer lines in `kubectl describe`; the conditions are right",
        kept="Every wait has its reason in a condition",
    ),
    Row(
        id="A20",
        fault="The namespace ends, with the operator there or not",
        seen="Nothing",
        kept="The namespace ends within its time: nothing of ours holds it up, and nothing new is made in it",
    ),
    Row(
        id="B1",
        fault="A Job is deleted by hand",
        seen="A new attempt that goes on from the checkpoint, Warning `JobRecreated`; after the end nothing happens",
        kept="The output, the verdict, and the count of attempts",
    ),
    Row(
        id="B2",
        fault="A pod is deleted, or evicted by a drain",
        seen="`PodsReady=False Evicted`, then a new pod; `status.retries.preempted` counts",
        kept="The checkpoint; `maxRetries` is not used up",
    ),
    Row(
        id="B3",
        fault="The scheduler or Kueue takes the node away for a more important workload",
        seen="`Suspended=True Preempted` with the queue's message, then the run goes on",
        kept="The progress up to the last checkpoint",
    ),
    Row(
        id="B4",
        fault="The trainer is told to stop and ends with exit code 0, without a result",
        seen="Never `Complete`; `Failed ResultUnknown`",
        kept="A run is complete with a verified adapter or not at all",
    ),
    Row(
        id="B5",
        fault="The kernel kills the trainer for want of memory (exit code 137)",
        seen="State `Restarting` with `OOMKilled`, the container's limit and the field that raises it; "
        "`Failed OOMKilled` without a retry left",
        kept="The checkpoint",
    ),
    Row(
        id="B6",
        fault="The GPU has too little memory (exit code 71)",
        seen="`Failed CUDAOutOfMemory` with the peak and what to change; no retry",
        kept="The last checkpoint",
    ),
    Row(
        id="B7",
        fault="A node is lost",
        seen="`PodsReady=False NodeUnreachable` with the node's name; after some minutes the remedy in `status.advice`",
        kept="One writer at a time: no second pod before the first is surely gone",
    ),
    Row(
        id="B8",
        fault="A kubelet restarts",
        seen="Nothing",
        kept="The running pod",
    ),
    Row(
        id="B9",
        fault="A GPU fails (exit code 72)",
        seen="State `Restarting` with `GPUFault` and the device's word; `Failed GPUFault` without a retry left",
        kept="The checkpoint",
    ),
    Row(
        id="B10",
        fault="The trainer stands still without a word",
        seen="State `Stalled`; the trainer ends itself and the run is tried again",
        kept="The checkpoint",
    ),
    Row(
        id="B11",
        fault="The trainer's image cannot be pulled, or its name is none",
        seen="`PodsReady=False ImagePullBackOff` with the image, and the pull secret where that is missing; "
        "`Failed InvalidImage` for a name that is none",
        kept="The run begins once the image is there",
    ),
    Row(
        id="B12",
        fault="No node has room",
        seen="`PodsReady=False Unschedulable` with the scheduler's sentence",
        kept="The run begins once a node has room",
    ),
    Row(
        id="B13",
        fault="A quota refuses the pod",
        seen="`PodsReady=False QuotaExceeded` with the quota's name",
        kept="The run begins once it may",
    ),
    Row(
        id="B14",
        fault="A limit range or the pod security standard refuses the pod",
        seen="`PodsReady=False PodSecurityViolation` or `AdmissionDenied` with the rule",
        kept="The run begins once it may",
    ),
    Row(
        id="B15",
        fault="A Secret or a ConfigMap that the pod needs is missing",
        seen="`PodsReady=False SecretNotFound` or `ConfigMapNotFound` with its name",
        kept="The run begins once it exists",
    ),
    Row(
        id="B16",
        fault="A volume is not bound, or cannot be attached or mounted",
        seen="`PodsReady=False VolumeNotReady` with the claim and the reason",
        kept="The data; the run begins once the volume is there",
    ),
    Row(
        id="B17",
        fault="The deadline passes, or every retry is used up",
        seen="`Failed DeadlineExceeded` or `BackoffLimitExceeded` with the last error",
        kept="The checkpoint, and what was reached",
    ),
    Row(
        id="B18",
        fault="A run is suspended and resumed again and again under a deadline",
        seen="`status.runSeconds` counts what all its active times took together",
        kept="The deadline holds over all of them",
    ),
    Row(
        id="B19",
        fault="The Job vanishes before the operator has read its result",
        seen="The verdict from a pod that is left; with none left another attempt, Warning `JobRecreated`, which finds "
        "and verifies what was published; never a wait without an end",
        kept="The verdict",
    ),
    Row(
        id="B20",
        fault="A pod is deleted by force and its container lives on",
        seen="State `Restarting` with `OutputLocked`: the second trainer waits, or ends with 75 and is tried again",
        kept="One writer of an output at a time",
    ),
    Row(
        id="B21",
        fault="Of several nodes one gets no pod",
        seen="`PodsReady=False` with how many of how many run and what the others wait for",
        kept="No GPU is held idle for longer than `pendingTimeoutSeconds`",
    ),
    Row(
        id="B22",
        fault="Somebody else changes the Job: labels, suspension, pod template",
        seen="`Suspended=True SuspendedExternally` where the cause is unknown; nothing otherwise",
        kept="No fight: the operator writes nothing against it",
    ),
    Row(
        id="C1",
        fault="What defines a run is changed while it runs",
        seen="`kubectl apply` is refused with the field's name and what to do instead",
        kept="The running Job",
    ),
    Row(
        id="C2",
        fault="The resource is deleted while its run goes on",
        seen="It is gone, and its pod within the grace period",
        kept="Checkpoints and adapters",
    ),
    Row(
        id="C3",
        fault="The resource is deleted and made again under the same name",
        seen="A fresh run with an output folder of its own",
        kept="The adapter of the old one",
    ),
    Row(
        id="C4",
        fault="A run is suspended and resumed many times in a few seconds",
        seen="`Suspended` follows; the last wish wins",
        kept="One writer at a time",
    ),
    Row(
        id="C5",
        fault="The data set is missing, empty, broken or in a form that was not promised",
        seen="`Failed DatasetInvalid` with the file, the line and what is wrong with it, before a GPU is used",
        kept="No retry is spent on it",
    ),
    Row(
        id="C6",
        fault="The model is not there, may not be read, or is of a kind that cannot be trained",
        seen="`Failed ModelNotFound`, `ModelAccessDenied` or `ConfigInvalid` with the model's name",
        kept="No retry is spent on it",
    ),
    Row(
        id="C7",
        fault="The Hub or the object store is away for a while",
        seen="The trainer asks again; then state `Restarting` with its sentence, and the Job tries again",
        kept="The checkpoint, and what was downloaded",
    ),
    Row(
        id="C8",
        fault="The loss is no number, or goes up for good",
        seen="`Failed NonFiniteLoss` with the step",
        kept="The last good checkpoint",
    ),
    Row(
        id="C9",
        fault="The volume fills up during a checkpoint",
        seen="`StorageFull` with the volume and how much is missing",
        kept="The last valid checkpoint",
    ),
    Row(
        id="C10",
        fault="A checkpoint is cut short or damaged",
        seen="The trainer goes on from the one before; with none left `Failed CheckpointInvalid`",
        kept="The older checkpoints",
    ),
    Row(
        id="C11",
        fault="The upload of the adapter fails half-way",
        seen="`ArtifactPublished=False UploadFailed`; publishing is tried again and the training is not",
        kept="The trained weights on the checkpoint volume",
    ),
    Row(
        id="C12",
        fault="A run is to go on from the checkpoint of other data or of another configuration",
        seen="`Failed ResumeMismatch` with the field and both values",
        kept="The checkpoint",
    ),
    Row(
        id="C13",
        fault="The token is revoked before the adapter is published",
        seen="`ArtifactPublished=False OutputAccessDenied`; publishing alone is to be done again",
        kept="The trained weights on the checkpoint volume",
    ),
    Row(
        id="C14",
        fault="A pod answers `/progress` slowly, hugely, wrongly, with lies or not at all",
        seen="No progress in the status; the verdict is what the pod ended with",
        kept="The operator's memory, its speed for other runs, and the verdicts",
    ),
    Row(
        id="C15",
        fault="A trainer floods its log and its metrics",
        seen="Nothing",
        kept="The operator's memory",
    ),
    Row(
        id="C16",
        fault="A result is to be made again",
        seen="`status.resolved` names the revisions, the data's fingerprint and every value that was used",
        kept="Where each adapter comes from",
    ),
    Row(
        id="C17",
        fault="A thousand runs fail at once",
        seen="`lorafinetune_finished_total` by reason; every verdict in its status",
        kept="The API server's speed for everybody else",
    ),
)
