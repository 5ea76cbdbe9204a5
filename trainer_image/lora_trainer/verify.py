"""A written adapter against the claim that it makes: digests, base model, and the loss, computed without PEFT."""

import dataclasses
import logging
import math
from pathlib import Path

from lora_trainer.apply import apply_adapter
from lora_trainer.artifact import check_digests, read_manifest
from lora_trainer.base import find_base
from lora_trainer.batches import evaluation_budget
from lora_trainer.contract.summary import Verification
from lora_trainer.device import choose_device
from lora_trainer.errors import VerificationError
from lora_trainer.evaluate import evaluate
from lora_trainer.hub import Hub
from lora_trainer.model import load_model
from lora_trainer.recipe import evaluation_rows
from lora_trainer.volumes import Volumes

log = logging.getLogger(__name__)

TOLERANCES = {"fp32": 1e-3, "bf16": 2e-2, "fp16": 2e-2}
"""Largest difference of losses, in nats per token, by compute type.

The sums run in another order than in training: that is about 1e-6 in fp32 and a few 1e-3 where products are rounded to
16 bits. An adapter of a wrong scale differs by more than either as soon as it learned anything that matters."""


def verify(folder: Path, volumes: Volumes, hub: Hub, *, anywhere: bool = False) -> Verification:
    """Check the adapter in `folder`. Raises `VerificationError` where it is not what its manifest says.

    `anywhere` takes a CPU where the run had a GPU; within the run a GPU that is gone by now is a `GpuFaultError`.
    """
    manifest = read_manifest(folder)
    check_digests(folder, manifest)
    config = manifest.config
    wanted = dataclasses.replace(config.device, allow_cpu=config.device.allow_cpu or anywhere)
    device = choose_device(wanted, config.training.precision)
    base = find_base(_pinned(config.model.uri, manifest.base_revision), volumes, hub)
    if base.revision != manifest.base_revision:
        raise VerificationError(
            f"the base model is at {base.revision} now, the adapter was trained on {manifest.base_revision}: "
            "restore the model that was used"
        )
    examples, fingerprint = evaluation_rows(config, volumes, hub, base)
    if fingerprint != manifest.resolved.dataset_fingerprint:
        raise VerificationError(
            f"the data set {config.dataset.uri} has changed since the run ({fingerprint[:19]}… instead of "
            f"{manifest.resolved.dataset_fingerprint[:19]}…): restore the data that was used"
        )
    loaded = load_model(base, config.quantization, device)
    trained = apply_adapter(loaded, folder, config.lora, device)
    if trained != manifest.resolved.trainable_parameters:
        raise VerificationError(
            f"the adapter holds {trained} parameters, {manifest.resolved.trainable_parameters} were trained"
        )
    budget = evaluation_budget(config.training.micro_batch_size, manifest.dataset.longest_tokens)
    loss = evaluate(loaded.model, loaded.head, examples, device, lambda rows: None, budget=budget).loss
    # Verified by hand on another device, the run's own rounding counts, too.
    tolerance = max(TOLERANCES[device.dtype_name], TOLERANCES.get(manifest.resolved.compute_dtype, 0.0))
    return _judge(loss, manifest.measured.eval_loss_after, tolerance)


def _pinned(uri: str, revision: str) -> str:
    """The model's address at the commit that was used, whatever its branch points to by now."""
    return f"{uri.partition('@')[0]}@{revision}" if uri.startswith("hf://") else uri


def _judge(loss: float, claimed: float, tolerance: float) -> Verification:
    difference = abs(loss - claimed)
    log.info(
        "verified: loss %.6f, claimed %.6f, difference %.2e (tolerance %.0e)", loss, claimed, difference, tolerance
    )
    if not math.isfinite(loss) or difference > tolerance:
        raise VerificationError(
            f"the written adapter on the base model gives a loss of {loss:.4f}, the trained model gave {claimed:.4f}: "
            f"they differ by {difference:.4f}, more than {tolerance}; the adapter is not published, please report this"
        )
    return Verification(loss=loss, difference=difference, tolerance=tolerance)
