"""What a finished trainer writes as its termination message: JSON of at most 4096 bytes, the kubelet's limit."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass

from lora_trainer.contract import codec
from lora_trainer.contract.advice import Advice
from lora_trainer.contract.preflight import Preflight
from lora_trainer.contract.reasons import Reason
from lora_trainer.contract.run_plan import RunPlan

MAX_BYTES = 4096
VERSION = "lora-operator.io/summary/v1"
CAUSAL_CLASS = "AutoModelForCausalLM"
"""The class of Transformers that most base models are loaded with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRun:
    """What the run turned out to use, once the trainer knew. `device` is `cpu` or the GPU's name.

    `micro_batch_size` is in examples of the longest length; `attention` names the kernel's kind. With `sharded` each
    process holds a part of the base model, which is divided over `sharded_over` of them; None where it is whole.
    `model_class` is the class of Transformers that the base is loaded with.
    With `selective_checkpointing` activations of MLPs alone were recomputed. A micro-batch began with at most
    `micro_batch_tokens`. `kernels` are the fast paths that were taken; `kernels_left_out` has a sentence for each that
    did not pass the check on a GPU; `kernels_unchecked` where its memory did not suffice for that.
    """

    device: str
    compute_dtype: str
    model_type: str
    model_revision: str
    dataset_format: str
    dataset_fingerprint: str
    target_modules: tuple[str, ...]
    trainable_parameters: int
    total_parameters: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    quantization: str = "None"
    packing: bool = False
    attention: str = "sdpa"
    optimizer: str = "AdamW"
    activation_checkpointing: bool = False
    processes: int = 1
    sharded: bool = False
    sharded_over: int | None = None
    model_class: str = CAUSAL_CLASS
    kernels: tuple[str, ...] = ()
    kernels_left_out: tuple[str, ...] = ()
    kernels_unchecked: bool = False
    selective_checkpointing: bool = False
    micro_batch_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetStats:
    """Counts over the rows that were read; tokens are of the training split, after truncation.

    Samples are examples: `split_samples` rows became several, each of which learns some of their answers. Of the
    answers, over both splits, `skipped_answers` were cut off or are empty; `unended_answers` of the learned ones have
    no learned end-of-turn token. None is what a trainer says that does not count them.
    """

    train_samples: int
    validation_samples: int
    train_tokens: int
    target_tokens: int
    longest_tokens: int
    truncated_samples: int
    truncated_tokens: int = 0
    skipped_samples: int
    duplicate_samples: int
    split_samples: int | None = None
    learned_answers: int | None = None
    skipped_answers: int | None = None
    unended_answers: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """A fresh process applied the written adapter to the pristine base: `difference` is |loss - final loss|.

    `noise` is by how much a loss changes where the same rows are rounded otherwise, which sets the `tolerance`; None is
    what a trainer says that does not measure it.
    """

    loss: float
    difference: float
    noise: float | None = None
    tolerance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Losses are mean negative log-likelihoods per target token, in nats, over the held-out rows; `train_loss` is that
    of the training rows over the last tenth of the steps, at most 1000 of them.

    Standard errors are over rows: of each mean, and of the paired difference before - after; None for a single row.
    Without held-out rows the evaluation uses training rows and `held_out` is false. `merged_loss` is that of the merged
    model, `merged_expected_loss` that of the unquantized base model with the adapter beside it, over the same rows;
    `merge_failure` says why there is no merged model. What was estimated before the weights were read is comparable:
    `estimated_peak_memory_bytes` with `peak_memory_bytes`, without a GPU driver's own memory, and `estimated_seconds`
    with the training's, `trained_tokens` / `tokens_per_second`; None where there was no estimate. `micro_batch_fill` is
    the share of the room of all micro-batches that their tokens took, without padding; None where nothing counted it.
    """

    steps: int
    trained_tokens: int
    train_loss: float
    eval_loss_before: float
    eval_loss_after: float
    eval_loss_before_standard_error: float | None = None
    eval_loss_after_standard_error: float | None = None
    improvement_standard_error: float | None = None
    held_out: bool
    duration_seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    best_step: int | None = None
    stopped_early: bool = False
    resumed_step: int | None = None
    micro_batch_fill: float | None = None
    merged_loss: float | None = None
    merged_expected_loss: float | None = None
    merge_failure: str | None = None
    estimated_peak_memory_bytes: int | None = None
    estimated_seconds: int | None = None
    verification: Verification


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """The result where it lies. `digest` is `sha256:` of the manifest, which holds the sha256 of every file; in a
    registry it is the digest of the artefact's manifest there, by which it can be pulled.

    `format` is peft, merged or peft+merged; `rank` that of the written adapter. `serving` are the flags with which vLLM
    serves it, with paths relative to the result, or where `servable` is false the reason why it cannot; `serving_needs`
    is the oldest release that serves it rightly, where not any does.
    """

    uri: str
    digest: str
    size_bytes: int
    format: str
    base_model: str
    base_revision: str
    rank: int
    servable: bool
    serving: str = ""
    serving_needs: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """The last valid checkpoint that a run left: where, and after which optimizer step."""

    uri: str
    step: int


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
