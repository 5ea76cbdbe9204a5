"""Rows A: the control plane and the operator itself."""

from tests.faults.promises import Kept, Row, Sees, Shown

from lora_trainer.contract.reasons import Reason

TAKE_OVER_S = 20

ROWS = (
    Row(
        id="A1",
        fault="The operator is killed, at any moment, before or after any of its writes",
        sees=(
            Sees(key="nothing", nothing=True),
            Sees(
                key="ends",
                when="a run that has ended meanwhile, once the next operator is there",
                conditions={"Complete": ("True", Reason.SUCCEEDED)},
            ),
        ),
        keeps=(
            Kept.PODS,
            Kept.ONE_JOB,
            Kept.VERDICT,
            Shown(
                key="sweep",
                says="Status, children and all that was made are those of an undisturbed run, whichever write of it "
                "the operator is killed at, before and after the server's answer. Left out are statuses that three "
                "undisturbed runs do not share, `Pending` where it is not written again, and further Events of a "
                "reason; in `make test` also repeated writes, and all Events but one for each crash. Not compared are "
                "Events, of which a crash may lose one for good, times, `runSeconds`, `usage` and `observedGeneration`",
            ),
            Shown(key="node", says="Pod and verdict", by="on a node, with the real trainer"),
        ),
    ),
    Row(
        id="A2",
        fault="The API server dies, or is away for a minute",
        sees=(
            Sees(key="nothing", nothing=True),
            Sees(key="retry", metric='lora_operator_reconcile_total{{result="retry"}}'),
            Sees(
                key="ends",
                when="for longer than `renewDeadlineSeconds`: the operator ends, and starts again",
                log=("The Lease {lease} could not be renewed for 5 s",),
            ),
        ),
        keeps=(Kept.PODS, Kept.JOBS, Kept.VERDICT, Kept.ENDS_WELL, Kept.ONE_JOB),
    ),
    Row(
        id="A3",
        fault="Somebody else writes the same object all the time (409 on a status write)",
        sees=(
            Sees(
                key="no-error",
                nothing=True,
                metric='lora_operator_reconcile_total{{result="error"}}',
                metric_does="does not count",
            ),
        ),
        keeps=(Kept.OTHERS_MARKS, Kept.OTHERS_CONDITIONS, Kept.ONE_JOB, Kept.ENDS_WELL),
    ),
    Row(
        id="A4",
        fault="An object of somebody else has the name of our Job",
        sees=(
            Sees(
                key="conflict",
                conditions={"Accepted": ("False", Reason.NAME_CONFLICT)},
                says=("{object}",),
                event=("Warning", Reason.NAME_CONFLICT),
            ),
        ),
        keeps=(Kept.OTHERS_OBJECT, Kept.BEGINS),
    ),
    Row(
        id="A5",
        fault="A watch gets 410 Gone, or events are lost, while a Job is deleted",
        sees=(Sees(key="recreated", event=("Warning", Reason.JOB_RECREATED), says=("{job}",)),),
        keeps=(
            Shown(key="relist", says="The list with which a watch is restarted shows that the Job does not exist"),
            Shown(key="resync", says="Where no watch reports it, the resync shows it"),
            Kept.ONE_JOB,
        ),
    ),
    Row(
        id="A6",
        fault="A watch breaks: errors 403, 410, 429 and 500 in the stream, a cut, half a document",
        sees=(Shown(key="restart", says="Nothing: the operator watches again, and does not end"),),
        keeps=(
            Shown(key="served", says="A new run gets its Job and its verdict after each of them"),
            Shown(
                key="watchdog",
                says="A watch that brings neither event nor bookmark for `watchStaleSeconds`, and no list either, ends "
                "the process, with a sentence",
            ),
            Kept.ONE_JOB,
        ),
    ),
    Row(
        id="A7",
        fault="A watch freezes: the connection stays and no byte comes",
        sees=(
            Sees(
                key="stands-still",
                when="until the watch is restarted",
                metric='lora_operator_watch_last_event_timestamp_seconds{{resource="{resource}"}}',
                metric_does="stands still",
            ),
            Sees(
                key="moves",
                when="afterwards",
                metric='lora_operator_watch_last_event_timestamp_seconds{{resource="{resource}"}}',
                metric_does="goes on",
            ),
        ),
        keeps=(
            Shown(key="made-up", says="What happened meanwhile is made up for: creations, ends and deletions"),
            Kept.ONE_JOB,
        ),
    ),
    Row(
        id="A8",
        fault="An API server answers from the past: lists and reads of a minute ago",
        sees=(Sees(key="nothing", nothing=True),),
        keeps=(
            Kept.JOBS,
            Kept.VERDICT,
            Kept.ONE_JOB,
            Kept.ENDS_WELL,
            Shown(key="no-deletion", says="Nothing of a run that goes on is deleted on a stale view"),
        ),
    ),
    Row(
        id="A9",
        fault="A watch loses events and nobody notices",
        sees=(Shown(key="resync", says="Every change, by a resync"),),
        keeps=(Kept.ONE_JOB, Kept.ENDS_WELL),
    ),
    Row(
        id="A10",
        fault="Two operators run at once",
        sees=(
            Shown(
                key="standby", says="One of them leads, `lora_operator_leader`; the other is ready and writes nothing"
            ),
            Sees(
                key="take-over",
                when="the leader is killed, with the chart's own Lease settings",
                metric="lora_operator_leader",
                within_s=TAKE_OVER_S,
            ),
            Shown(
                key="hand-over",
                says="A leader that is stopped in good order finishes its write, and gives the Lease back last",
            ),
        ),
        keeps=(
            Kept.ONE_JOB,
            Shown(key="restart", says="A container that restarts in its pod leads again at once"),
        ),
    ),
    Row(
        id="A11",
        fault="The leader cannot renew its Lease, loses it, or is frozen for longer than it lasts",
        sees=(
            Sees(key="ends", when="its renewals hang", log=("The Lease {lease} could not be renewed for 5 s",)),
            Sees(key="taken", when="another stands in the Lease", log=("is held by {holder} now",)),
            Sees(key="frozen", when="it was frozen, and goes on", log=("The Lease {lease} ",)),
            Shown(key="exit", says="In each case that operator ends with exit code 1, and another one leads"),
        ),
        keeps=(Kept.JOBS, Kept.ONE_JOB, Kept.BEGINS),
    ),
    Row(
        id="A12",
        fault="The API server is overloaded and answers 429 with Retry-After to every third request",
        sees=(Sees(key="code", metric='lora_operator_api_requests_total{{code="429"'),),
        keeps=(
            Kept.ENDS_WELL,
            Kept.ONE_JOB,
            Shown(key="patience", says="No request comes again before the time that the server asks for, up to 300 s"),
        ),
    ),
    Row(
        id="A13",
        fault="A right is missing",
        sees=(
            Sees(
                key="everywhere",
                when="from the start, everywhere: the operator ends",
                log=("may not {rights} in namespace {namespace}", "rbac.create"),
            ),
            Sees(
                key="left-out",
                when="from the start, in one namespace of several, to list or watch runs, Jobs or pods",
                metric='lora_operator_left_out_namespace{{namespace="{namespace}"}}',
                log=("may not {right} in namespace {namespace}:",),
            ),
            Sees(
                key="named",
                when="any other, from the start, in one namespace of several",
                log=("may not {right} in namespace {namespace}:",),
            ),
            Sees(
                key="withdrawn",
                when="withdrawn later",
                conditions={"Accepted": ("False", Reason.FORBIDDEN)},
                says=('cannot create resource "jobs"', "ServiceAccount"),
                event=("Warning", Reason.FORBIDDEN),
            ),
            Shown(key="later", says="A listed namespace that does not exist yet is served once it does"),
        ),
        keeps=(
            Kept.BEGINS,
            Shown(key="others", says="Runs in other namespaces begin"),
            Shown(key="used", says="The operator uses each of its rights, and needs no other"),
            Shown(key="granted", says="The chart grants these rights and no other", by="chart"),
        ),
    ),
    Row(
        id="A14",
        fault="An admission policy, a webhook (played by a proxy) or a quota refuses the Job, or a policy its change",
        sees=(
            Sees(
                key="policy",
                conditions={
                    "Accepted": ("False", Reason.ADMISSION_DENIED),
                    "PodsReady": ("False", Reason.ADMISSION_DENIED),
                },
                says=("{rule}",),
                event=("Warning", Reason.ADMISSION_DENIED),
            ),
            Sees(
                key="quota",
                conditions={"Accepted": ("False", Reason.QUOTA_EXCEEDED)},
                says=("exceeded quota: {quota}", "count/jobs.batch=1, used: count/jobs.batch=0"),
                event=("Warning", Reason.QUOTA_EXCEEDED),
            ),
            Sees(
                key="change",
                when="a change of the Job",
                conditions={"Accepted": ("False", Reason.ADMISSION_DENIED), "PodsReady": ("True", None)},
                says=("{rule}",),
            ),
        ),
        keeps=(Kept.PODS, Kept.BEGINS),
    ),
    Row(
        id="A15",
        fault="The definition is upgraded, and rolled back, while runs go on",
        sees=(
            Sees(
                key="older",
                when="once, where fields are not stored",
                log=("The definition in the cluster is older than the operator",),
            ),
        ),
        keeps=(Kept.PODS, Kept.JOBS, Kept.NO_WRITES, Kept.ENDS_WELL),
    ),
    Row(
        id="A16",
        fault="The definition is deleted, and installed again",
        sees=(
            Sees(
                key="ends",
                when="the operator ends once",
                log=("The cluster does not know lorafinetunes.lora-operator.io in version v1alpha1: apply crds/",),
            ),
            Shown(key="waits", says="The next operator waits, unready with the remedy, and serves once there is one"),
            Shown(key="gone", says="The resources and their Jobs are gone, as Kubernetes has it"),
        ),
        keeps=(Kept.CLAIMS,),
    ),
    Row(
        id="A17",
        fault="The operator is replaced by the release before or after it while runs go on",
        sees=(Sees(key="nothing", when="to a newer one", nothing=True),),
        keeps=(
            Kept.PODS,
            Kept.JOBS,
            Kept.VERDICT,
            Kept.RETRIES,
            Kept.ONE_JOB,
            Kept.ENDS_WELL,
            Shown(
                key="back",
                says="All of it too where an operator of the release before takes over from this one, for specs that "
                "it knows: [a rollback](upgrade.md) ends others, such as those with `quantization: Auto`",
            ),
            Shown(
                key="recorded",
                says="Runs that an earlier release left behind are taken over: in training, on several nodes too, "
                "retried, recreated, suspended and done",
            ),
            Shown(
                key="node", says="Pod and verdict over two upgrades by the chart", by="on a node, with the real trainer"
            ),
        ),
    ),
    Row(
        id="A18",
        fault="The operator's clock is two hours wrong",
        sees=(Shown(key="times", says="The API server's times: no age is negative, and active seconds count"),),
        keeps=(
            Shown(key="deadlines", says="Deadline, patience and time to live of an hour are not over"),
            Kept.ONE_JOB,
            Kept.ENDS_WELL,
        ),
    ),
    Row(
        id="A19",
        fault="Events cannot be written or read",
        sees=(
            Sees(
                key="condition",
                when="a wait whose reason is in the pod",
                conditions={"PodsReady": ("False", Reason.IMAGE_PULL_BACK_OFF)},
                says=("Back-off pulling image",),
            ),
            Shown(key="no-events", says="No Event"),
        ),
        keeps=(Kept.ONE_JOB, Kept.ENDS_WELL),
    ),
    Row(
        id="A20",
        fault="The namespace ends, with the operator there or not",
        sees=(Shown(key="quiet", says="Nothing: at most a few refusals in the operator's metrics, and no exception"),),
        keeps=(
            Shown(key="ends", says="The namespace ends: nothing of ours holds it up"),
            Shown(key="again", says="A namespace of the same name starts afresh, and others go on"),
        ),
    ),
    Row(
        id="A21",
        fault="etcd is restored from a backup, under an operator that goes on",
        sees=(
            Sees(
                key="ends",
                when="the operator ends, once its lists are of a time before what was seen for `staleListSeconds`",
                log=("so etcd seems to have been restored: a restart reads everything again",),
            ),
        ),
        keeps=(
            Kept.PODS,
            Kept.JOBS,
            Kept.ONE_JOB,
            Kept.ENDS_WELL,
            Shown(key="undone", says="What the backup does not hold is not made again"),
        ),
    ),
)
