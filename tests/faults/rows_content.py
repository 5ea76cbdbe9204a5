"""Rows C: what a run consists of."""

from tests.faults.promises import Kept, Row, Sees, Shown

from lora_trainer.contract.reasons import Reason

_WEIGHTS = Shown(key="weights", says="The trained weights, on the claim for checkpoints", by="by the trainer")
_NO_RETRY = Shown(key="no-retry", says="No retry is spent on it: there is no second pod")


def _ends(key: str, reason: Reason, when: str = "", *, saved: bool = True) -> Sees:
    """A verdict with the trainer's own sentence, in every condition that speaks of the end; `saved` where a checkpoint
    is left."""
    conditions = {"Failed": ("True", reason), "Complete": ("False", reason), "ArtifactPublished": ("False", reason)}
    return Sees(
        key=key,
        when=when,
        conditions={**conditions, "CheckpointSaved": ("True", None) if saved else ("False", reason)},
        says=("{sentence}",),
        event=("Warning", reason),
    )


def _again(key: str) -> Sees:
    """A retry in the same Job, with the trainer's own sentence."""
    return Sees(
        key=key,
        when="with a retry left",
        state=Reason.RESTARTING,
        says=("{sentence}", "retry 1 of 3 follows"),
        event=("Warning", Reason.RESTARTING),
        retries={"error": 1},
    )


ROWS = (
    Row(
        id="C1",
        fault="What defines a run is changed while it runs",
        sees=(Sees(key="refused", refusal=("{field}", "create a new LoRAFineTune")),),
        keeps=(Shown(key="spec", says="Every field but those that may change: changed, added or taken away"),),
    ),
    Row(
        id="C2",
        fault="The resource is deleted while its run goes on",
        sees=(Shown(key="gone", says="It is gone, and its pod is stopped, with its grace period of 120 s"),),
        keeps=(
            Kept.CLAIMS,
            Shown(
                key="node",
                says="The pod is gone within 60 s of its end, and the claim stays",
                by="on a node, with the real trainer",
            ),
        ),
    ),
    Row(
        id="C3",
        fault="The resource is deleted and made again under the same name",
        sees=(Shown(key="fresh", says="A run in its first attempt, with one Job and one pod of its own"),),
        keeps=(
            Kept.ONE_JOB,
            Shown(
                key="folder",
                says="The adapter of the old one: the new one has a folder of its own",
                by="by the trainer",
            ),
            Shown(key="node", says="Both adapters, in two folders", by="on a node, with the real trainer"),
        ),
    ),
    Row(
        id="C4",
        fault="A run is suspended and resumed many times in a few seconds",
        sees=(
            Sees(
                key="held",
                when="the last wish was to hold it",
                conditions={"Suspended": ("True", Reason.SUSPENDED_BY_USER)},
            ),
            Sees(
                key="runs",
                when="the last wish was to let it run",
                conditions={"Suspended": ("False", Reason.NOT_SUSPENDED)},
            ),
        ),
        keeps=(Kept.ONE_WRITER, Kept.ONE_JOB, Kept.RETRIES),
    ),
    Row(
        id="C5",
        fault="The data set is missing, empty, broken or in a form that was not promised",
        sees=(
            _ends("invalid", Reason.DATASET_INVALID, saved=False),
            _ends("missing", Reason.DATASET_NOT_FOUND, "it does not exist", saved=False),
            _ends("denied", Reason.DATASET_ACCESS_DENIED, "it may not be read", saved=False),
            Shown(
                key="sentence",
                says="The sentence names the file, the line where it is about one, and what is wrong",
                by="by the trainer",
            ),
            Shown(key="node", says="The same from a broken row", by="on a node, with the real trainer"),
        ),
        keeps=(
            _NO_RETRY,
            Shown(
                key="before",
                says="The data is read before a model is loaded: a GPU is tried, and computes nothing else",
                by="by the trainer",
            ),
        ),
    ),
    Row(
        id="C6",
        fault="The model is not there, may not be read, or is of a kind that cannot be trained",
        sees=(
            _ends("missing", Reason.MODEL_NOT_FOUND, saved=False),
            _ends("denied", Reason.MODEL_ACCESS_DENIED, "it may not be read", saved=False),
            _ends("kind", Reason.CONFIG_INVALID, "it cannot be trained", saved=False),
            Shown(key="sentence", says="The sentence names the model", by="by the trainer"),
            Shown(
                key="node",
                says="The same from a missing model, before a pod that trains exists where the model is fetched first",
                by="on a node, with the real trainer",
            ),
        ),
        keeps=(_NO_RETRY,),
    ),
    Row(
        id="C7",
        fault="The Hub or the object store is away for a while",
        sees=(
            _again("again"),
            Shown(
                key="asks",
                says="The trainer asks again, and ends with 75 where that does not help",
                by="by the trainer",
            ),
        ),
        keeps=(
            Kept.ONE_JOB,
            Kept.ENDS_WELL,
            Shown(key="downloaded", says="What was downloaded", by="by the trainer"),
        ),
    ),
    Row(
        id="C8",
        fault="The loss is no number, or goes up for good",
        sees=(
            _ends("non-finite", Reason.NON_FINITE_LOSS, "after a checkpoint"),
            _ends("diverged", Reason.LOSS_DIVERGED, "it goes up for good, after a checkpoint"),
            Shown(key="sentence", says="The sentence names the step at which it ended the run", by="by the trainer"),
        ),
        keeps=(_NO_RETRY, Shown(key="checkpoint", says="The last good checkpoint", by="by the trainer")),
    ),
    Row(
        id="C9",
        fault="The volume fills up during a checkpoint",
        sees=(_again("again"), _ends("last", Reason.STORAGE_FULL, "without a retry left, after a checkpoint")),
        keeps=(
            Kept.ENDS_WELL,
            Shown(key="checkpoint", says="The last valid checkpoint", by="by the trainer"),
        ),
    ),
    Row(
        id="C10",
        fault="A checkpoint is cut short or damaged",
        sees=(
            _ends("invalid", Reason.CHECKPOINT_INVALID, "none is whole", saved=False),
            Shown(key="falls-back", says="The trainer goes on from the one before", by="by the trainer"),
        ),
        keeps=(
            _NO_RETRY,
            Shown(key="checkpoints", says="The older checkpoints, and the adapter that results", by="by the trainer"),
        ),
    ),
    Row(
        id="C11",
        fault="The upload of the adapter fails half-way",
        sees=(_again("again"), _ends("last", Reason.UPLOAD_FAILED, "without a retry left, after a checkpoint")),
        keeps=(
            Kept.ENDS_WELL,
            Shown(
                key="published",
                says="Publication is tried again and the training is not, with a claim for checkpoints; what is left "
                "half has no manifest, and no upload stays unfinished",
                by="by the trainer",
            ),
        ),
    ),
    Row(
        id="C12",
        fault="A run is to go on from the checkpoint of other data or of another configuration",
        sees=(
            _ends("mismatch", Reason.RESUME_MISMATCH, saved=False),
            Shown(key="sentence", says="The sentence names the field and both values", by="by the trainer"),
        ),
        keeps=(_NO_RETRY,),
    ),
    Row(
        id="C13",
        fault="The token is revoked before the adapter is published",
        sees=(
            _ends("denied", Reason.OUTPUT_ACCESS_DENIED, "after a checkpoint"),
            Shown(key="token", says="A token that is revoked before the end is named as denied", by="by the trainer"),
        ),
        keeps=(_NO_RETRY, _WEIGHTS),
    ),
    Row(
        id="C14",
        fault="A pod answers `/progress` slowly, hugely, wrongly, with lies or not at all",
        sees=(
            Shown(key="no-progress", says="No progress in the status, and of lies none that is absurd"),
            Sees(
                key="ends",
                when="at its end what it ended with",
                conditions={"Failed": ("True", None)},
                says=("{sentence}",),
            ),
            Sees(key="completes", when="at its good end", conditions={"Complete": ("True", Reason.SUCCEEDED)}),
        ),
        keeps=(
            Kept.MEMORY,
            Shown(
                key="others", says="Other runs: one that begins meanwhile has its Job, progress that moves, and its end"
            ),
            Shown(key="elsewhere", says="No redirect is followed, and no link-local address is asked"),
        ),
    ),
    Row(
        id="C15",
        fault="A trainer floods its log, its metrics and its termination message",
        sees=(
            Sees(key="message", conditions={"Failed": ("True", None)}, says=("look at its pod's log",)),
            Shown(
                key="bounded",
                says="One bounded sentence in conditions and Event, and bounded lines in the operator's log",
            ),
        ),
        keeps=(
            Kept.MEMORY,
            Shown(key="unread", says="Nothing but `/progress` is asked of a pod: neither log nor metrics"),
        ),
    ),
    Row(
        id="C16",
        fault="A result is to be made again",
        sees=(
            Sees(
                key="resolved",
                conditions={"Complete": ("True", Reason.SUCCEEDED)},
                status=(
                    "resolved.modelRevision",
                    "resolved.datasetFingerprint",
                    "resolved.seed",
                    "resolved.image",
                    "artifact.digest",
                ),
            ),
        ),
        keeps=(
            Shown(key="equal", says="Equal specs give equal values in all that the spec and its defaults fix"),
            Shown(
                key="manifest",
                says="The adapter's manifest names the model's revision, the data's fingerprint and the configuration",
                by="by the trainer",
            ),
            Shown(key="node", says="The values are those that were used", by="on a node, with the real trainer"),
        ),
    ),
    Row(
        id="C17",
        fault="A hundred runs fail at once, while no operator runs",
        sees=(
            Shown(key="verdicts", says="Every verdict in its status, with its own reason and sentence"),
            Sees(key="counted", metric='lorafinetune_finished_total{{result="failed"}}'),
        ),
        keeps=(
            Shown(key="writes", says="At most twelve writes and five Events for a run"),
            Shown(
                key="others",
                says="Others: a run that somebody creates in another namespace has its Job before half of them have "
                "their verdict",
            ),
        ),
    ),
)
