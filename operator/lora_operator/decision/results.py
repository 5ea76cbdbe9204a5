"""The blocks of the status that say what a run used and achieved: plan, resolved, dataset, results, artifact,
checkpoint."""

import dataclasses
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from lora_operator.decision.blocks import block_from
from lora_operator.decision.progress import whole
from lora_operator.views.request import Request
from lora_operator.views.wording import byte_size, decimal, integer_of, printable, sentence, text_of
from lora_trainer.contract.config import ActivationCheckpointing, Quantization, TrainConfig
from lora_trainer.contract.manifest import MAX_VALIDATION_ROWS, checkpoint_claim
from lora_trainer.contract.run_plan import RunPlan
from lora_trainer.contract.summary import (
    Artifact,
    DatasetStats,
    ResolvedRun,
    Results,
    SavedState,
    Summary,
    Verification,
    clip,
)

LARGEST_INT32 = 2**31 - 1
MOST_MODULES, MOST_KERNELS, MOST_ALTERNATIVES = 256, 16, 8
Block = dict[str, Any]


def resolved_by_request(request: Request, image: str) -> Block:
    """What the run and its pods get by the spec and the operator's defaults; empty where the spec breaks a rule."""
    return resolved_by_spec(request.train, image) | {"pod": _pod_block(request, request.train)} if request.train else {}


def resolved_by_spec(train: TrainConfig, image: str) -> Block:
    """Every value that the spec and its defaults fixed; a later change of a default leaves it."""
    lora, training = train.lora, train.training
    block: Block = {
        "rank": lora.rank,
        "alpha": lora.alpha,
        "dropout": _number(lora.dropout),
        "scaling": lora.scaling.value,
        "variant": lora.variant.value,
        "init": lora.init.value,
        "quantization": train.quantization.value,
        "learningRate": _number(training.learning_rate),
        "schedule": training.schedule.value,
        "warmupRatio": _number(training.warmup_ratio),
        "effectiveBatchSize": training.effective_batch_size,
        "maxSequenceLength": training.max_sequence_length,
        "lossOn": training.loss_on.value,
        "optimizer": training.optimizer.value,
        "weightDecay": _number(training.weight_decay),
        "maxGradNorm": _number(training.max_grad_norm),
        "precision": training.precision.value,
        "seed": training.seed,
        "validationFraction": _number(train.dataset.validation_fraction),
        "image": _text(image, 512),
    }
    optional = {
        "epochs": training.epochs and _number(training.epochs),
        "maxSteps": training.max_steps,
        "evalSteps": training.eval_steps,
        **_recomputed(train),
        "maxValidationRows": train.dataset.max_validation_rows,
    }
    return block | {key: value for key, value in optional.items() if value is not None}


def _recomputed(train: TrainConfig) -> dict[str, bool]:
    """Which activations are recomputed; empty where nothing has settled it."""
    manner = train.training.activation_checkpointing
    if manner is ActivationCheckpointing.AUTO:
        if train.planned is None:
            return {}
        manner = train.planned.manner
    return {
        "activationCheckpointing": manner.recomputes,
        "selectiveCheckpointing": manner is ActivationCheckpointing.SELECTIVE,
    }


def _pod_block(request: Request, train: TrainConfig) -> Block:
    """What each training pod asks for, and what else the operator's defaults decide; `Defaults` reads it back."""
    pod = request.pod
    block = {
        "gpuResourceName": pod.gpu_resource_name if pod.gpus else "",
        "cpu": pod.cpu,
        "memory": pod.memory,
        "nodeSelector": dict(pod.node_selector),
        "tolerations": [dict(toleration) for toleration in pod.tolerations],
        "affinity": dict(pod.affinity),
        "runtimeClassName": pod.runtime_class_name,
        "priorityClassName": pod.priority_class_name,
        # What the resource itself says of these may change.
        "queue": request.defaults.queue,
        "ttlSecondsAfterFinished": request.defaults.ttl_s,
        "environment": dict(pod.environment),
        "checkpointClaim": checkpoint_claim(train),
        "cacheClaim": pod.cache_claim,
    }
    kept = {key: value for key, value in block.items() if value not in (None, "", {}, [])}
    # An empty one too: without any, `defaults_for` takes the run for one of an earlier release.
    return kept | {"environment": block["environment"]}


def plan_block(plan: RunPlan) -> Block:
    """All of the plan, and ready strings for people."""
    block = block_from(dataclasses.replace(plan, alternatives=plan.alternatives[:MOST_ALTERNATIVES]))
    shown = {"peakMemory": "peakBytes", "deviceMemory": "deviceBytes", "podMemory": "podMemoryBytes"}
    return block | {key: byte_size(block[source]) for key, source in shown.items() if source in block}


def found_by(report: Summary) -> dict[str, Block]:
    """The blocks of what a preflight found out."""
    return {
        "preflight": block_from(report.preflight) if report.preflight else {},
        "plan": plan_block(report.plan) if report.plan else {},
    }


def kept_max_validation_rows(resolved: Mapping[str, Any]) -> int | None:
    """How many rows a run holds out at most whose spec names no number; None where it began without a limit.

    What anybody wrote there that is no such number reads as absent.
    """
    if not resolved:
        return MAX_VALIDATION_ROWS
    kept = integer_of(resolved.get("maxValidationRows"))
    return kept if kept is not None and kept >= 1 else None


def kept_quantization(resolved: Mapping[str, Any]) -> Quantization | None:
    """What a run's `Auto` has become, in a former attempt or before somebody replaced None by it; None before that."""
    settled = {kind.value: kind for kind in Quantization if kind is not Quantization.AUTO}
    return settled.get(text_of(resolved.get("quantization")))


def resolved_by_run(run: ResolvedRun) -> Block:
    """What only the trainer could find out."""
    optional = {
        "kernels": None if run.kernels is None else [_text(name, 64) for name in run.kernels[:MOST_KERNELS]],
        "kernelsLeftOut": [sentence(why, 512) for why in run.kernels_left_out[:MOST_KERNELS]] or None,
        "microBatchTokens": None if run.micro_batch_tokens is None else whole(run.micro_batch_tokens),
        "kernelsChangedStep": None if run.kernels_changed_step is None else whole(run.kernels_changed_step),
    }
    return {
        **{key: value for key, value in optional.items() if value is not None},
        "device": _text(run.device, 128),
        "computeDtype": _text(run.compute_dtype, 32),
        "modelType": _text(run.model_type, 128),
        "modelRevision": _text(run.model_revision, 256),
        "datasetFormat": _text(run.dataset_format, 64),
        "datasetFingerprint": _text(run.dataset_fingerprint, 256),
        "targetModules": [_text(name, 253) for name in run.target_modules[:MOST_MODULES]],
        "trainableParameters": whole(run.trainable_parameters),
        "totalParameters": whole(run.total_parameters),
        "microBatchSize": whole(run.micro_batch_size, LARGEST_INT32),
        "gradientAccumulationSteps": whole(run.gradient_accumulation_steps, LARGEST_INT32),
        "quantization": _text(run.quantization, 32),
        "packing": run.packing,
        "attention": _text(run.attention, 64),
        "optimizer": _text(run.optimizer, 64),
        "activationCheckpointing": run.activation_checkpointing,
        "selectiveCheckpointing": run.selective_checkpointing,
        "processes": whole(run.processes, LARGEST_INT32),
        "sharded": run.sharded,
        **({} if run.sharded_over is None else {"shardedOver": whole(run.sharded_over, LARGEST_INT32)}),
        "modelClass": _text(run.model_class, 128),
    }


def dataset_block(stats: DatasetStats) -> Block:
    """What was found in the data set."""
    optional = {
        "splitSamples": stats.split_samples,
        "learnedAnswers": stats.learned_answers,
        "skippedAnswers": stats.skipped_answers,
        "unendedAnswers": stats.unended_answers,
    }
    return {
        **{key: whole(count) for key, count in optional.items() if count is not None},
        "trainSamples": whole(stats.train_samples),
        "validationSamples": whole(stats.validation_samples),
        "trainTokens": whole(stats.train_tokens),
        "targetTokens": whole(stats.target_tokens),
        "longestTokens": whole(stats.longest_tokens),
        "truncatedSamples": whole(stats.truncated_samples),
        "truncatedTokens": whole(stats.truncated_tokens),
        "skippedSamples": whole(stats.skipped_samples),
        "duplicateSamples": whole(stats.duplicate_samples),
    }


def results_block(results: Results) -> Block:
    """What the run achieved; losses in nats per target token."""
    optional = {
        "bestStep": results.best_step,
        "resumedStep": results.resumed_step,
        "estimatedPeakMemoryBytes": results.estimated_peak_memory_bytes,
        "estimatedSeconds": results.estimated_seconds,
    }
    # 0 stands for none, as of a single row.
    errors = {
        "evalLossBeforeStandardError": results.eval_loss_before_standard_error,
        "evalLossAfterStandardError": results.eval_loss_after_standard_error,
        "improvementStandardError": results.improvement_standard_error,
    }
    merged = {"mergedLoss": results.merged_loss, "mergedExpectedLoss": results.merged_expected_loss}
    fill = {} if results.micro_batch_fill is None else {"microBatchFill": decimal(results.micro_batch_fill, ".3f")}
    return {
        **{key: whole(count) for key, count in optional.items() if count is not None},
        **{key: decimal(loss, ".4f") for key, loss in merged.items() if loss is not None},
        **{key: decimal(error, ".4f") for key, error in errors.items() if error},
        **fill,
        **({"mergeFailure": sentence(results.merge_failure, 1024)} if results.merge_failure else {}),
        "stoppedEarly": results.stopped_early,
        "steps": whole(results.steps),
        "trainedTokens": whole(results.trained_tokens),
        "trainLoss": decimal(results.train_loss, ".4f"),
        "evalLossBefore": decimal(results.eval_loss_before, ".4f"),
        "evalLossAfter": decimal(results.eval_loss_after, ".4f"),
        "heldOut": results.held_out,
        "durationSeconds": _seconds(results.duration_seconds),
        "tokensPerSecond": decimal(results.tokens_per_second, ".1f"),
        "peakMemoryBytes": whole(results.peak_memory_bytes),
        "verification": _verification_block(results.verification),
    }


def _verification_block(verification: Verification) -> Block:
    noise = {} if verification.noise is None else {"noise": decimal(verification.noise, ".3g")}
    return {
        "loss": decimal(verification.loss, ".4f"),
        "difference": decimal(verification.difference, ".3g"),
        **noise,
        "tolerance": decimal(verification.tolerance, ".3g"),
    }


def artifact_block(artifact: Artifact) -> Block:
    """The verified adapter."""
    return {
        "uri": _text(artifact.uri, 1024),
        "digest": _text(artifact.digest, 256),
        "sizeBytes": whole(artifact.size_bytes),
        "format": _text(artifact.format, 64),
        "baseModel": _text(artifact.base_model, 512),
        "baseRevision": _text(artifact.base_revision, 256),
        "rank": whole(artifact.rank, LARGEST_INT32),
        "servable": artifact.servable,
        **({"serving": _text(artifact.serving, 1024)} if artifact.serving else {}),
        **({"servingNeeds": _text(artifact.serving_needs, 64)} if artifact.serving_needs else {}),
    }


def checkpoint_block(saved: SavedState) -> Block:
    """The last valid checkpoint that a run left."""
    return {"uri": _text(saved.uri, 1024), "step": whole(saved.step)}


def _number(value: float) -> str:
    """Plain notation, as one writes it in the spec: 0.0002, 1, 0.5; an exponent only where it would be very long."""
    plain = format(Decimal(repr(value)).normalize(), "f")
    return plain if len(plain) <= 32 else repr(value)


def _seconds(value: float) -> int:
    return whole(round(value)) if 0 <= value < 2**62 else 0


def _text(value: str, limit: int) -> str:
    # Not masked: `oci://registry/token:v1` and a server's flags would no longer mean what they do.
    return clip(printable(value), limit)
