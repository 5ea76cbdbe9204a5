"""What a finished trainer writes as its termination message: JSON of at most 4096 bytes, the kubelet's limit."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field

from lora_trainer.spec import codec
from lora_trainer.spec.advice import Advice
from lora_trainer.spec.api import fact, names_of
from lora_trainer.spec.preflight import Preflight
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.run_plan import RunPlan

MAX_BYTES = 4096
VERSION = "lora-operator.io/summary/v1"
CAUSAL_CLASS = "AutoModelForCausalLM"
"""The class of Transformers that most base models are loaded with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRun:
    """What the run turned out to use, once the trainer knew. `sharded_over` is None where the base model is whole."""

    device: str = field(metadata=fact('What it ran on, "cpu" or the name of the GPU.'))
    compute_dtype: str = field(metadata=fact("Number format of the computation, bf16, fp16 or fp32."))
    model_type: str = field(metadata=fact("Architecture of the base model, as in its config.json."))
    model_revision: str = field(
        metadata=fact("Commit of the base model on the Hub, or the digest of its files on a volume.")
    )
    dataset_format: str = field(metadata=fact("Format of the rows, found or given."))
    dataset_fingerprint: str = field(metadata=fact("Digest of the training data; the same data give the same one."))
    target_modules: tuple[str, ...] = field(
        metadata=names_of("Names of the modules that got an adapter.", "A module's name.")
    )
    trainable_parameters: int = field(metadata=fact("Number of parameters that were trained, exactly."))
    total_parameters: int = field(metadata=fact("Number of parameters of base model and adapter together, exactly."))
    micro_batch_size: int = field(metadata=fact("Examples on the device at once."))
    gradient_accumulation_steps: int = field(metadata=fact("Micro-batches for each optimizer step."))
    quantization: str = field(default="None", metadata=fact("How the base weights were stored."))
    packing: bool = field(default=False, metadata=fact("Whether examples were packed without padding."))
    attention: str = field(
        default="sdpa",
        metadata=fact(
            "What computed attention: varlen (FlashAttention over packs), sdpa (rows one by one), or, for "
            "families whose rows are not packed, the model's own."
        ),
    )
    optimizer: str = field(default="AdamW", metadata=fact("The optimizer."))
    activation_checkpointing: bool = field(
        default=False, metadata=fact("Whether activations were recomputed in the backward pass.")
    )
    processes: int = field(default=1, metadata=fact("Training processes over all GPUs and nodes."))
    sharded: bool = field(default=False, metadata=fact("Whether each process held only a part of the base model."))
    sharded_over: int | None = field(
        default=None, metadata=fact("Over how many processes the base model was divided, those of one node or of all.")
    )
    model_class: str = field(
        default=CAUSAL_CLASS, metadata=fact("Class of Transformers that the base model is loaded with.")
    )
    kernels: tuple[str, ...] = field(
        default=(), metadata=names_of("Fast paths that were taken; empty where none was.", "A fast path's name.")
    )
    kernels_left_out: tuple[str, ...] = field(
        default=(),
        metadata=names_of(
            "Fast paths that did not pass the check on the GPU, and why; absent where none was left out.",
            "A fast path's name with the reason.",
        ),
    )
    kernels_unchecked: bool = field(
        default=False,
        metadata=fact("Whether the GPU's memory did not suffice to check the fast paths, which were taken even so."),
    )
    selective_checkpointing: bool = field(
        default=False, metadata=fact("Whether only those of MLPs were recomputed, and those of attention kept.")
    )
    micro_batch_tokens: int = field(
        metadata=fact("Most tokens on a device at once, as the run began; less where memory did not suffice.")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetStats:
    """Counts over the rows that were read; tokens are of the training split, after truncation.

    None is what a trainer says that does not count them.
    """

    train_samples: int = field(metadata=fact("Samples to learn from. A row is one, or several, see splitSamples."))
    validation_samples: int = field(metadata=fact("Samples of rows that were held out to measure the loss."))
    train_tokens: int = field(metadata=fact("Tokens of the rows to learn from, after cutting."))
    target_tokens: int = field(metadata=fact("Those of trainTokens that the loss is computed on."))
    longest_tokens: int = field(metadata=fact("Tokens of the longest row."))
    truncated_samples: int = field(metadata=fact("Rows that were cut off at training.maxSequenceLength."))
    truncated_tokens: int = field(default=0, metadata=fact("Tokens that this cut off."))
    skipped_samples: int = field(
        metadata=fact("Rows that were left out because they are empty or nothing in them can be learned.")
    )
    duplicate_samples: int = field(metadata=fact("Rows that repeat an earlier one."))
    split_samples: int | None = field(
        default=None,
        metadata=fact(
            "Rows that became several samples, since the chat template rewrites or does not end earlier answers."
        ),
    )
    learned_answers: int | None = field(default=None, metadata=fact("Answers that are learned, over both splits."))
    skipped_answers: int | None = field(
        default=None,
        metadata=fact(
            "Answers of these rows that are not, because they are empty or are beyond training.maxSequenceLength."
        ),
    )
    unended_answers: int | None = field(
        default=None,
        metadata=fact("Learned answers without a learned end-of-turn token, most often because they were cut."),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """A fresh process applied the written adapter to the pristine base: `difference` is |loss - final loss|.

    `noise` is None where a trainer does not measure it.
    """

    loss: float = field(metadata=fact("The loss it measured."))
    difference: float = field(metadata=fact("How far that is from the loss at the end of the training."))
    noise: float | None = field(
        default=None,
        metadata=fact(
            "How much a loss of the same weights changes where embeddings are rounded otherwise and rows come in "
            "other batches, on this base model and device. Nats per token."
        ),
    )
    tolerance: float = field(
        metadata=fact(
            "How far it may be: three times the noise, within limits that the type of computation and the "
            "measured improvement set."
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Losses are mean negative log-likelihoods per target token, in nats, over the held-out rows, or, where there are
    none, over training rows.

    Standard errors are None for a single row. What was estimated before the weights were read is comparable:
    `estimated_peak_memory_bytes` with `peak_memory_bytes`, without a GPU driver's own memory, and `estimated_seconds`
    with the training's, `trained_tokens` / `tokens_per_second`; None where there was no estimate.
    """

    steps: int = field(metadata=fact("Optimizer steps done."))
    trained_tokens: int = field(metadata=fact("Tokens that went through training, repeated ones included."))
    train_loss: float = field(
        metadata=fact("Mean training loss per learned token over the last tenth of the steps, at most 1000 of them.")
    )
    eval_loss_before: float = field(metadata=fact("Loss of the base model on the held-out rows."))
    eval_loss_after: float = field(metadata=fact("Loss with the adapter on the held-out rows."))
    eval_loss_before_standard_error: float | None = field(
        default=None, metadata=fact("Its standard error over the rows; absent for a single one.")
    )
    eval_loss_after_standard_error: float | None = field(
        default=None, metadata=fact("Its standard error over the rows; absent for a single one.")
    )
    improvement_standard_error: float | None = field(
        default=None,
        metadata=fact(
            "Standard error of the difference between before and after, paired by row; absent for a single one."
        ),
    )
    held_out: bool = field(
        metadata=fact(
            "Whether the evaluation used held-out rows; false where there were none, with a validationFraction of "
            '"0" or too few rows for it, and training rows were used instead.'
        )
    )
    duration_seconds: float = field(metadata=fact("Seconds that the trainer took."))
    tokens_per_second: float = field(metadata=fact("Mean training speed, in tokens per second."))
    peak_memory_bytes: int = field(metadata=fact("Highest memory used, of the GPU or, on a CPU, of the process."))
    best_step: int | None = field(
        default=None, metadata=fact("Optimizer step of the published adapter, where evaluations on the way chose it.")
    )
    stopped_early: bool = field(
        default=False, metadata=fact("Whether earlyStoppingPatience ended the training before its last step.")
    )
    resumed_step: int | None = field(
        default=None, metadata=fact("Optimizer step at which the last pod resumed from a checkpoint.")
    )
    micro_batch_fill: float | None = field(
        default=None,
        metadata=fact("Share of the room of all micro-batches that their tokens took, without padding, from 0 to 1."),
    )
    merged_loss: float | None = field(default=None, metadata=fact("Loss of the merged model over the same rows."))
    merged_expected_loss: float | None = field(
        default=None,
        metadata=fact(
            "Loss of the unquantized base model with the adapter beside it; the difference between both is the "
            "cost of rounding."
        ),
    )
    merge_failure: str | None = field(default=None, metadata=fact("Why there is no merged model beside the adapter."))
    estimated_peak_memory_bytes: int | None = field(
        default=None, metadata=fact("What the plan expected peakMemoryBytes to be.")
    )
    estimated_seconds: int | None = field(
        default=None, metadata=fact("What the plan expected the training to take, in seconds.")
    )
    verification: Verification = field(
        metadata=fact(
            "How the written adapter was checked: a fresh process applied it to the pristine base model and "
            "measured the held-out loss again."
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """The result where it lies. In a registry `digest` is that of the artefact's manifest there, by which it can be
    pulled.

    `format` is peft, merged or peft+merged. Where it is not `servable`, `serving` is the reason.
    """

    uri: str = field(metadata=fact("Where it is."))
    digest: str = field(metadata=fact("SHA-256 of its manifest, which lists the SHA-256 of every file."))
    size_bytes: int = field(metadata=fact("Size of its files together."))
    format: str = field(metadata=fact("Format of the files."))
    base_model: str = field(metadata=fact("The base model that it belongs to."))
    base_revision: str = field(metadata=fact("The base model's commit or digest."))
    rank: int = field(metadata=fact("Its rank."))
    servable: bool = field(metadata=fact("Whether servers such as vLLM load it as it is."))
    serving: str = field(
        default="",
        metadata=fact(
            "Flags with which vLLM serves it (a path among them is relative to the result), or the reason why it "
            "cannot."
        ),
    )
    serving_needs: str = field(
        default="",
        metadata=fact(
            "Oldest release that serves it correctly, where not every one does: older ones ignore patterns of "
            "rank and alpha."
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """The last valid checkpoint that a run left."""

    uri: str = field(metadata=fact("Where it is."))
    step: int = field(metadata=fact("Optimizer step after which it was saved."))


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The end of a run. `reason` is `Succeeded` only with a verified artifact; `message` is one sentence."""

    version: str = VERSION
    reason: Reason
    message: str
    resolved: ResolvedRun | None = None
    dataset: DatasetStats | None = None
    results: Results | None = None
    artifact: Artifact | None = None
    checkpoint: SavedState | None = None
    preflight: Preflight | None = None
    plan: RunPlan | None = None
    advice: tuple[Advice, ...] = ()

    @property
    def succeeded(self) -> bool:
        """Whether the run ended with a verified artifact."""
        return self.reason is Reason.SUCCEEDED and self.artifact is not None and self.results is not None

    def to_message(self) -> str:
        """JSON of at most `MAX_BYTES`. The message has at most 1024 characters; then, one after the other until it
        fits, these are left out:

        1. the first row (`preflight.dataset.first_row`),
        2. target modules beyond the first eight,
        3. the plan's alternatives,
        4. the plan of a run with `results`, which have its estimates,
        5. advice beyond the first four, then all of it,
        6. what the message has beyond 256 characters, and `resolved`,
        7. `dataset`,
        8. `preflight`,
        9. `results` and `artifact`, which the manifest has, too,
        10. what message, the plan's reason and its device's name have beyond 80 characters.

        Reason, message and the checkpoint are always there, and the plan's numbers where nothing was achieved.
        """
        shorter = dataclasses.replace(self, message=clip(self.message, 1024))
        text = _compact(shorter)
        for leave_out in _ORDER:
            if len(text.encode()) <= MAX_BYTES:
                break
            shorter = leave_out(shorter)
            text = _compact(shorter)
        return text

    @classmethod
    def from_message(cls, text: str) -> "Summary":
        """Read the text of `to_message`. Raises `codec.CodecError`, also for a log's tail."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise codec.CodecError("$ is not JSON: the trainer ended without writing its summary") from error
        version = document.get("version") if isinstance(document, dict) else None
        if version != VERSION:
            raise codec.CodecError(f"$.version is {version!r}: must be {VERSION}")
        return codec.decode(cls, document)


def clip(text: str, limit: int) -> str:
    """At most `limit` characters, with an ellipsis where something was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _compact(summary: Summary) -> str:
    text = json.dumps(codec.encode(summary), ensure_ascii=False, separators=(",", ":"))
    # A file name that is no UTF-8 reaches an error's text as lone surrogates, which cannot be written.
    return text.encode(errors="replace").decode()


def _without_first_row(summary: Summary) -> Summary:
    found = summary.preflight
    if found is None:
        return summary
    rows = dataclasses.replace(found.dataset, first_row="")
    return dataclasses.replace(summary, preflight=dataclasses.replace(found, dataset=rows))


def _few_targets(summary: Summary) -> Summary:
    found, resolved = summary.preflight, summary.resolved
    if found is not None:
        model = dataclasses.replace(found.model, target_modules=found.model.target_modules[:_FEW_TARGETS])
        found = dataclasses.replace(found, model=model)
    if resolved is not None:
        resolved = dataclasses.replace(resolved, target_modules=resolved.target_modules[:_FEW_TARGETS])
    return dataclasses.replace(summary, preflight=found, resolved=resolved)


def _without_alternatives(summary: Summary) -> Summary:
    plan = summary.plan
    return dataclasses.replace(summary, plan=plan and dataclasses.replace(plan, alternatives=()))


def _little_advice(summary: Summary) -> Summary:
    return dataclasses.replace(summary, advice=summary.advice[:_LITTLE_ADVICE])


def _short_texts(summary: Summary) -> Summary:
    plan = summary.plan
    if plan is not None:
        device = None if plan.device is None else clip(plan.device, _SHORT)
        plan = dataclasses.replace(plan, reason=clip(plan.reason, _SHORT), device=device)
    return dataclasses.replace(summary, message=clip(summary.message, _SHORT), plan=plan)


_FEW_TARGETS, _LITTLE_ADVICE, _SHORT = 8, 4, 80
_ORDER: tuple[Callable[[Summary], Summary], ...] = (
    _without_first_row,
    _few_targets,
    _without_alternatives,
    lambda summary: dataclasses.replace(summary, plan=None if summary.results else summary.plan),
    _little_advice,
    lambda summary: dataclasses.replace(summary, advice=()),
    lambda summary: dataclasses.replace(summary, message=clip(summary.message, 256), resolved=None),
    lambda summary: dataclasses.replace(summary, dataset=None),
    lambda summary: dataclasses.replace(summary, preflight=None),
    lambda summary: dataclasses.replace(summary, results=None, artifact=None),
    _short_texts,
)
