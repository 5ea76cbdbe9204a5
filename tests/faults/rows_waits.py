"""Rows B11 to B22: pods that wait, and runs that are held up, stopped or changed."""

from tests.faults.promises import Kept, Row, Sees, Shown

from lora_trainer.contract.reasons import Reason

ROWS = (
    Row(
        id="B11",
        fault="The trainer's image cannot be pulled, or its name is none",
        sees=(
            Sees(
                key="pull",
                conditions={"PodsReady": ("False", Reason.IMAGE_PULL_BACK_OFF)},
                says=("{image}", "check the name, the registry and the pull secrets"),
                event=("Warning", Reason.IMAGE_PULL_BACK_OFF),
            ),
            Sees(
                key="secret",
                when="the pull secret does not exist",
                conditions={"PodsReady": ("False", Reason.IMAGE_PULL_BACK_OFF)},
                says=("create Secret {secret} in this namespace", "{registry_answer}"),
            ),
            Sees(
                key="name",
                when="the name is none",
                conditions={"Failed": ("True", Reason.INVALID_IMAGE), "Complete": ("False", Reason.INVALID_IMAGE)},
                says=("{image}", "the trainer's image in the operator's configuration"),
                event=("Warning", Reason.INVALID_IMAGE),
            ),
        ),
        keeps=(Kept.BEGINS, Kept.VERDICT, Shown(key="stopped", says="A Job that would wait for ever is stopped")),
    ),
    Row(
        id="B12",
        fault="No node has room",
        sees=(
            Sees(
                key="unschedulable",
                conditions={"PodsReady": ("False", Reason.UNSCHEDULABLE)},
                says=("nodes are available", "add a node that fits"),
                event=("Warning", Reason.UNSCHEDULABLE),
            ),
            Sees(
                key="gpus",
                when="a node with too few GPUs",
                conditions={"PodsReady": ("False", Reason.UNSCHEDULABLE)},
                says=("Insufficient nvidia.com/gpu",),
            ),
        ),
        keeps=(Kept.BEGINS, Shown(key="node", says="The same", by="on a node, with the real trainer")),
    ),
    Row(
        id="B13",
        fault="A quota refuses the pod",
        sees=(
            Sees(
                key="quota",
                conditions={"PodsReady": ("False", Reason.QUOTA_EXCEEDED), "Accepted": ("True", None)},
                says=("exceeded quota: {quota}", "requests.nvidia.com/gpu=1", "have it raised"),
                event=("Warning", Reason.QUOTA_EXCEEDED),
            ),
        ),
        keeps=(Kept.BEGINS,),
    ),
    Row(
        id="B14",
        fault="A limit range or the pod security standard refuses the pod",
        sees=(
            Sees(
                key="limit",
                conditions={"PodsReady": ("False", Reason.ADMISSION_DENIED)},
                says=("maximum memory usage per Container is 4Gi, but limit is 16Gi", "spec.resources", "LimitRange"),
                event=("Warning", Reason.ADMISSION_DENIED),
            ),
            Sees(
                key="standard",
                when="the namespace enforces `restricted`, and somebody has put more into the pod template",
                conditions={"PodsReady": ("False", Reason.POD_SECURITY_VIOLATION)},
                says=('violates PodSecurity "restricted:latest"', "{rule}", "must allow what the message names"),
                event=("Warning", Reason.POD_SECURITY_VIOLATION),
            ),
        ),
        keeps=(
            Kept.BEGINS,
            Shown(key="restricted", says="A namespace that enforces `restricted` takes a run's pods as they are"),
        ),
    ),
    Row(
        id="B15",
        fault="A Secret or a ConfigMap that the pod needs does not exist",
        sees=(
            Sees(
                key="secret",
                conditions={"PodsReady": ("False", Reason.SECRET_NOT_FOUND)},
                says=("Secret {secret}, which does not exist in this namespace", "create it, and the run continues"),
                event=("Warning", Reason.SECRET_NOT_FOUND),
            ),
            Sees(
                key="key",
                when="a key of it",
                conditions={"PodsReady": ("False", Reason.SECRET_NOT_FOUND)},
                says=("key {key} in Secret {secret}, which does not have it",),
                event=("Warning", Reason.SECRET_NOT_FOUND),
            ),
            Sees(
                key="config-map",
                conditions={"PodsReady": ("False", Reason.CONFIG_MAP_NOT_FOUND)},
                says=("ConfigMap {config_map}, which does not exist in this namespace", "create it"),
                event=("Warning", Reason.CONFIG_MAP_NOT_FOUND),
            ),
        ),
        keeps=(Kept.BEGINS, Shown(key="node", says="The run ends well then", by="on a node, with the real trainer")),
    ),
    Row(
        id="B16",
        fault="A claim is missing or not bound, or its volume cannot be attached or mounted",
        sees=(
            Sees(
                key="unbound",
                conditions={"PodsReady": ("False", Reason.VOLUME_NOT_READY)},
                says=("unbound", "{claim}", "kubectl describe pvc"),
                event=("Warning", Reason.VOLUME_NOT_READY),
            ),
            Sees(
                key="mount",
                when="on its node",
                conditions={"PodsReady": ("False", Reason.VOLUME_NOT_READY)},
                says=("{sentence}", "{remedy}"),
                event=("Warning", Reason.VOLUME_NOT_READY),
            ),
        ),
        keeps=(
            Kept.CLAIMS,
            Kept.BEGINS,
            Shown(
                key="node", says="With a claim that is made later it ends well", by="on a node, with the real trainer"
            ),
        ),
    ),
    Row(
        id="B17",
        fault="The deadline passes, or every retry is used up",
        sees=(
            Sees(
                key="deadline",
                conditions={"Failed": ("True", Reason.DEADLINE_EXCEEDED), "ArtifactPublished": ("False", None)},
                says=("spec.activeDeadlineSeconds ({seconds} s)",),
                event=("Warning", Reason.DEADLINE_EXCEEDED),
                status=("completionTime",),
            ),
            Sees(
                key="retries",
                conditions={"Failed": ("True", Reason.BACKOFF_LIMIT_EXCEEDED)},
                says=("{error}", "the last of 2 failures"),
                event=("Warning", Reason.BACKOFF_LIMIT_EXCEEDED),
                retries={"error": 2},
            ),
        ),
        keeps=(
            Shown(key="grace", says="A pod that is stopped for it has its grace period to save in"),
            Shown(key="over-jobs", says="The count of retries, over a Job that was deleted"),
        ),
    ),
    Row(
        id="B18",
        fault="A run is suspended and resumed again and again under a deadline",
        sees=(
            Sees(
                key="deadline",
                conditions={"Failed": ("True", Reason.DEADLINE_EXCEEDED)},
                says=("spec.activeDeadlineSeconds ({seconds} s)",),
                status=("runSeconds",),
            ),
        ),
        keeps=(Shown(key="sum", says="The deadline holds over all active times together, `status.runSeconds`"),),
    ),
    Row(
        id="B19",
        fault="The Job vanishes before the operator has read its result",
        sees=(
            Shown(
                key="unconfirmed",
                says="With a pod that is left, whose success nobody has seen its Job count: another attempt",
            ),
            Sees(
                key="beside",
                when="a pod that the Job has not counted says that it succeeded, and the one that it counted says "
                "nothing",
                conditions={"Failed": ("True", Reason.RESULT_UNKNOWN), "Complete": ("False", Reason.RESULT_UNKNOWN)},
            ),
            Sees(
                key="again",
                when="no pod is left",
                event=("Warning", Reason.JOB_RECREATED),
                says=("{job}",),
            ),
        ),
        keeps=(
            Kept.ONE_JOB,
            Kept.ENDS_WELL,
            Shown(
                key="published",
                says="What was published: the next attempt finds and verifies it, and does not train again",
                by="by the trainer",
            ),
        ),
    ),
    Row(
        id="B20",
        fault="Another container of the run still writes to its folder, as that of a pod deleted by force may",
        sees=(
            Sees(
                key="again",
                state=Reason.RESTARTING,
                says=("OutputLocked", "{sentence}"),
                event=("Warning", Reason.RESTARTING),
                retries={"error": 1},
            ),
            Sees(
                key="last",
                when="without a retry left",
                conditions={"Failed": ("True", Reason.OUTPUT_LOCKED), "Complete": ("False", Reason.OUTPUT_LOCKED)},
                says=("{sentence}",),
                event=("Warning", Reason.OUTPUT_LOCKED),
            ),
        ),
        keeps=(
            Kept.ONE_JOB,
            Kept.ENDS_WELL,
            Shown(
                key="lock",
                says="One writer of an output at a time: the second trainer waits, or ends with 75",
                by="by the trainer",
            ),
            Shown(
                key="kubelet",
                says="The same with two containers on one claim, and a good end when the first one has let go",
                by="on a node",
            ),
            Shown(
                key="node", says="At most the steps since the last checkpoint", by="on a node, with the real trainer"
            ),
        ),
    ),
    Row(
        id="B21",
        fault="Of several nodes the pod of one does not come up",
        sees=(
            Sees(
                key="waits",
                conditions={"PodsReady": ("False", Reason.VOLUME_NOT_READY)},
                says=("3 of 4 pods run", "{pod}"),
            ),
            Sees(
                key="timeout",
                when="after `pendingTimeoutSeconds`",
                conditions={"Failed": ("True", Reason.PENDING_TIMEOUT)},
                says=("3 of 4 pods run",),
                event=("Warning", Reason.PENDING_TIMEOUT),
            ),
        ),
        keeps=(
            Shown(key="freed", says="No GPU is held idle afterwards: the Job is gone, and its pods are ended"),
            Kept.VERDICT,
        ),
    ),
    Row(
        id="B22",
        fault="Somebody else changes the Job: labels, suspension, pod template",
        sees=(
            Sees(
                key="suspended",
                when="suspended by nobody known",
                conditions={"Suspended": ("True", Reason.SUSPENDED_EXTERNALLY)},
                says=("{job}",),
            ),
            Sees(
                key="resumed",
                when="resumed though `spec.suspend` is true",
                conditions={"Suspended": ("False", None)},
                says=("another controller resumed the Job", "set spec.suspend to false and then to true"),
            ),
            Sees(key="relabelled", when="the Job's labels are taken off, up to three times", nothing=True),
            Sees(key="advice", when="a fourth time", advice="LabelsRemoved"),
        ),
        keeps=(
            Kept.NO_WRITES,
            Kept.OTHERS_MARKS,
            Kept.JOBS,
            Kept.ONE_JOB,
            Kept.ENDS_WELL,
            Shown(key="put-back", says="Its labels: three times they are put back"),
            Shown(
                key="labels",
                says="The Job and its pods are the run's without their labels, or with changed ones, too: "
                "by owner reference, name and uid",
            ),
        ),
    ),
    Row(
        id="B23",
        fault="A node that is short of disk or memory evicts the pods of a run, more often than `maxRetries`",
        sees=(
            Sees(
                key="pressure",
                conditions={"Failed": ("True", Reason.BACKOFF_LIMIT_EXCEEDED)},
                says=("{cause}",),
                advice="NodePressure",
            ),
        ),
        keeps=(
            Shown(key="stopped", says="No GPU is held afterwards: the Job is gone, and no other is made"),
            Kept.VERDICT,
        ),
    ),
)
