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

    device: str = field(metadata=fact('Device of the run: "cpu" or the name of the GPU.'))
    compute_dtype: str = field(metadata=fact("Compute type: bf16, fp16 or fp32."))
    model_type: str = field(metadata=fact("Architecture of the base model, as in config.json."))
    model_revision: str = field(metadata=fact("Commit of the base model on the Hub, or the digest of its files."))
    dataset_format: str = field(metadata=fact("Format of the rows, detected or given."))
    dataset_fingerprint: str = field(metadata=fact("Digest of the training data; equal data have equal digests."))
    target_modules: tuple[str, ...] = field(
        metadata=names_of("Names of the modules that got an adapter.", "A module's name.")
    )
    trainable_parameters: int = field(metadata=fact("Exact number of trained parameters."))
    total_parameters: int = field(metadata=fact("Exact number of parameters of base model and adapter together."))
    micro_batch_size: int = field(metadata=fact("Examples on a device at once."))
    gradient_accumulation_steps: int = field(metadata=fact("Micro-batches per optimizer step."))
    quantization: str = field(default="None", metadata=fact("How the base weights were stored."))
    packing: bool = field(default=False, metadata=fact("Whether examples were packed without padding."))
    attention: str = field(
        default="sdpa",
        metadata=fact(
            "Attention implementation: varlen (FlashAttention over packs), sdpa (rows one by one), or the model's "
            "own for families whose rows are not packed."
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
        default=(), metadata=names_of("Fast kernels that were used.", "A fast path's name.")
    )
    kernels_left_out: tuple[str, ...] = field(
        default=(),
        metadata=names_of(
            "Fast kernels that failed the check on the GPU, and why.",
            "A fast path's name with the reason.",
        ),
    )
    kernels_unchecked: bool = field(
        default=False,
        metadata=fact(
            "Whether the fast kernels were used unchecked, because the GPU's memory did not suffice for the check."
        ),
    )
    selective_checkpointing: bool = field(
        default=False, metadata=fact("Whether only those of MLPs were recomputed, and those of attention kept.")
    )
    micro_batch_tokens: int = field(
        metadata=fact("Maximum tokens on a device at once at the start; fewer if memory did not suffice.")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetStats:
    """Counts over the rows that were read; tokens are of the training split, after truncation.

    None is what a trainer says that does not count them.
    """

    train_samples: int = field(
        metadata=fact("Samples to train on. A row gives one sample, or several, see splitSamples.")
    )
    validation_samples: int = field(metadata=fact("Samples of the validation set."))
    train_tokens: int = field(metadata=fact("Tokens of the training samples, after truncation."))
    target_tokens: int = field(metadata=fact("Loss tokens among trainTokens."))
    longest_tokens: int = field(metadata=fact("Tokens of the longest row."))
    truncated_samples: int = field(metadata=fact("Rows that were truncated to training.maxSequenceLength."))
    truncated_tokens: int = field(default=0, metadata=fact("Tokens that were cut off."))
    skipped_samples: int = field(metadata=fact("Rows without loss tokens, which were left out."))
    duplicate_samples: int = field(metadata=fact("Rows that repeat an earlier one."))
    split_samples: int | None = field(
        default=None,
        metadata=fact(
            "Rows that became several samples, because the chat template rewrites earlier answers or does not end them."
        ),
    )
    learned_answers: int | None = field(default=None, metadata=fact("Answers that are learned, over both splits."))
    skipped_answers: int | None = field(
        default=None,
        metadata=fact("Answers that are not learned, because they are empty or beyond training.maxSequenceLength."),
    )
    unended_answers: int | None = field(
        default=None,
        metadata=fact("Learned answers without a learned end-of-turn token, usually because they were truncated."),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """A fresh process applied the written adapter to the pristine base: `difference` is |loss - final loss|.

    `noise` is None where a trainer does not measure it.
    """

    loss: float = field(metadata=fact("Loss in the verification."))
    difference: float = field(metadata=fact("Difference to the loss at the end of the training."))
    noise: float | None = field(
        default=None,
        metadata=fact(
            "Change of a loss of the same weights if embeddings are rounded differently and rows come in other "
            "batches, in nats per token."
        ),
    )
    tolerance: float = field(
        metadata=fact(
            "Largest allowed difference: three times the noise, within limits of the compute type and the measured "
            "improvement."
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
    trained_tokens: int = field(metadata=fact("Tokens trained on, repetitions included."))
    train_loss: float = field(
        metadata=fact("Mean training loss per loss token over the last tenth of the steps, at most 1000 of them.")
    )
    eval_loss_before: float = field(metadata=fact("Validation loss of the base model."))
    eval_loss_after: float = field(metadata=fact("Validation loss with the adapter."))
    eval_loss_before_standard_error: float | None = field(
        default=None, metadata=fact("Its standard error over the rows; absent for a single row.")
    )
    eval_loss_after_standard_error: float | None = field(
        default=None, metadata=fact("Its standard error over the rows; absent for a single row.")
    )
    improvement_standard_error: float | None = field(
        default=None,
        metadata=fact(
            "Standard error of the difference between before and after, paired by row; absent for a single row."
        ),
    )
    held_out: bool = field(
        metadata=fact(
            "Whether the evaluation used a validation set; false if there was none and training rows were used."
        )
    )
    duration_seconds: float = field(metadata=fact("Seconds that the trainer took."))
    tokens_per_second: float = field(metadata=fact("Mean training speed, in tokens per second."))
    peak_memory_bytes: int = field(metadata=fact("Peak memory of the GPU or, on a CPU, of the process."))
    best_step: int | None = field(
        default=None, metadata=fact("Optimizer step of the published adapter, if early stopping chose it.")
    )
    stopped_early: bool = field(
        default=False, metadata=fact("Whether earlyStoppingPatience ended the training before its last step.")
    )
    resumed_step: int | None = field(default=None, metadata=fact("Optimizer step at which the last pod resumed."))
    micro_batch_fill: float | None = field(
        default=None,
        metadata=fact("Share of the micro-batches' capacity that tokens filled, from 0 to 1."),
    )
    merged_loss: float | None = field(default=None, metadata=fact("Validation loss of the merged model."))
    merged_expected_loss: float | None = field(
        default=None,
        metadata=fact(
            "Validation loss of the unquantized base model with the adapter beside it; the difference is the cost of "
            "rounding."
        ),
    )
    merge_failure: str | None = field(default=None, metadata=fact("Why there is no merged model beside the adapter."))
    estimated_peak_memory_bytes: int | None = field(
        default=None, metadata=fact("peakMemoryBytes as the plan expected it.")
    )
    estimated_seconds: int | None = field(
        default=None, metadata=fact("Length of the training in seconds, as the plan expected it.")
    )
    verification: Verification = field(
        metadata=fact(
            "How the written adapter was verified: a fresh process applied it to the original base model and "
            "measured the validation loss again."
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """The result where it lies. In a registry `digest` is that of the artefact's manifest there, by which it can be
    pulled.

    `format` is peft, merged or peft+merged. Where it is not `servable`, `serving` is the reason.
    """

    uri: str = field(metadata=fact("Address of the result."))
    digest: str = field(metadata=fact("SHA-256 of the manifest, which lists the SHA-256 of every file."))
    size_bytes: int = field(metadata=fact("Total size of the files, in bytes."))
    format: str = field(metadata=fact("Format of the result: peft, merged or peft+merged."))
    base_model: str = field(metadata=fact("Base model of the adapter."))
    base_revision: str = field(metadata=fact("The base model's commit or digest."))
    rank: int = field(metadata=fact("Rank of the adapter."))
    servable: bool = field(metadata=fact("Whether servers such as vLLM load it as it is."))
    serving: str = field(
        default="",
        metadata=fact("vLLM flags for it (paths are relative to the result), or the reason why vLLM cannot serve it."),
    )
    serving_needs: str = field(
        default="",
        metadata=fact("Oldest vLLM release that serves it correctly; absent if every release does."),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """The last valid checkpoint that a run left."""

    uri: str = field(metadata=fact("Address of the checkpoint."))
    step: int = field(metadata=fact("Optimizer step of the checkpoint."))


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
