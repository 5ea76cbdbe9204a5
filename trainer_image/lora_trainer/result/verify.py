"""A written adapter against the claim that it makes: digests, base model, and the loss, computed without PEFT."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from lora_trainer.data.store import Examples
from lora_trainer.distributed.collectives import ALONE, Ranks
from lora_trainer.distributed.group import join, local_rank
from lora_trainer.errors import VerificationError
from lora_trainer.model.apply import apply_adapter
from lora_trainer.model.device import Device, choose_anywhere, choose_device, same_type
from lora_trainer.model.load_throttle import readers, throttled
from lora_trainer.model.loading import held_bytes, load_model
from lora_trainer.model.rope import frequencies_of
from lora_trainer.model.sharding import device_bytes, fits_divided, mesh_over, on_cpu, shard, stream
from lora_trainer.result.adapter_config import check_config
from lora_trainer.result.inputs import base_and_rows
from lora_trainer.result.merged import Bench, bench_for, merged_model
from lora_trainer.spec.config import Quantization
from lora_trainer.spec.summary import Verification
from lora_trainer.storage.base import Base
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.manifest import Form, Manifest, check_digests, read_manifest
from lora_trainer.storage.sealed import MANIFEST
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.batches import evaluation_limit
from lora_trainer.train.evaluate import evaluate
from lora_trainer.train.noise import DRAWS, TOLERANCES, measure_noise, tolerance_of
from lora_trainer.train.objective import objective_of

log = logging.getLogger(__name__)


def verify(
    folder: Path, volumes: Volumes, hub: Hub, *, anywhere: bool = False, data: Path | None = None
) -> Verification:
    """Check the result in `folder`. Raises `VerificationError` where it is not what its manifest says.

    `anywhere` takes a CPU where the run had a GPU; within the run a GPU that is gone by now is a `GpuFaultError`, and
    the log, which is yet to be put beside the result, does not count. `data` is the run's, prepared, where it still is.
    """
    manifest = read_manifest(folder)
    check_digests(folder, manifest, log=anywhere)
    config = manifest.config
    device = (choose_anywhere if anywhere else choose_device)(config.device, config.training.precision, local_rank())
    base, examples = base_and_rows(manifest, volumes, hub, data)
    if manifest.format is Form.MERGED:
        return _verify_merged(folder, manifest, base, bench_for(base, examples, device))
    with join(device.torch_device, config.stall_timeout_s) as group:
        device = same_type(device, group)
        claim = _Claim(folder=folder, manifest=manifest, base=base, examples=examples, device=device)
        found = _found(claim, group)
    check_config(base, folder)
    return judge(found.loss, manifest.measured.eval_loss_after, found.tolerance, "adapter", noise=found.noise)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The loss of the base model with the adapter, the noise by which it is judged, and how far the loss may be from
    what is claimed."""

    loss: float
    noise: float
    tolerance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placement:
    """How the base model is held: `ranks` compute, `at_once` of a node read at a time, and where they read it.

    With a `mesh` it is divided over them. Where it is `streamed` they do not hold it even so.
    """

    ranks: Ranks
    at_once: int
    read_at: Device
    mesh: Any = None
    streamed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    """What is verified: an adapter in a folder, with the base model and the held-out rows, on a device."""

    folder: Path
    manifest: Manifest
    base: Base
    examples: Examples
    device: Device


def _found(claim: _Claim, group: Ranks) -> _Found:
    """What all processes that there are compute together."""
    placement = _placement(claim, group)
    measure = partial(_measured, claim)
    if not placement.streamed:
        return measure(placement, lambda rows: None)
    if placement.at_once == group.local_world:
        # Together after each batch, each of which may take minutes: nobody is to be waited for until the end.
        return measure(placement, lambda rows: group.barrier())
    # What is converted is in main memory once for each process that computes, and for all the time.
    return _by_one(group, lambda done: measure(replace(placement, ranks=ALONE, at_once=1), done))


def _placement(claim: _Claim, group: Ranks) -> _Placement:
    base, device = claim.base, claim.device
    if not claim.manifest.resolved.sharded:
        return _Placement(ranks=group, at_once=group.local_world, read_at=device)
    held = not group.any(not _hold(base, device, group.world, claim.manifest.config.quantization))
    if held and group.world == 1:
        return _Placement(ranks=group, at_once=1, read_at=device)
    return _Placement(
        ranks=replace(group, fsdp=group.world > 1),
        at_once=readers(base.folder, device.dtype, group),
        read_at=on_cpu(device),
        mesh=mesh_over(device, group, group.world) if held else None,
        streamed=not held,
    )


def _by_one(group: Ranks, measure: Callable[[Callable[[int], None]], _Found]) -> _Found:
    """What the first process measures, on each; the others hear of every batch that it goes on."""
    if not group.is_main:
        while group.any(flag=False):
            pass
        return group.broadcast_value(cast("_Found", None), _Found)

    def goes_on(_rows: int) -> None:
        group.any(flag=True)

    found = measure(goes_on)
    group.any(flag=False)
    return group.broadcast_value(found, _Found)


def _measured(claim: _Claim, placement: _Placement, done: Callable[[int], None]) -> _Found:
    manifest, examples, device, ranks = claim.manifest, claim.examples, claim.device, placement.ranks
    config = manifest.config
    with throttled(ranks, placement.at_once):
        loaded = load_model(
            claim.base, config.quantization, placement.read_at, packs_later=placement.read_at is not device
        )
        trained = apply_adapter(loaded, claim.folder, config.lora, placement.read_at)
        if trained != manifest.resolved.trainable_parameters:
            raise VerificationError(
                f"the adapter holds {trained} parameters, {manifest.resolved.trainable_parameters} were trained"
            )
        if placement.mesh is not None:
            shard(loaded.model, device, placement.mesh)
        elif placement.streamed:
            stream(loaded.model, device)
    limit = evaluation_limit(
        config.training.micro_batch_size,
        manifest.dataset.longest_tokens,
        frequencies_of(loaded.model),
        device.torch_device,
        trained=manifest.resolved.micro_batch_tokens,
    )
    model, head = loaded.model, loaded.head
    minimised = objective_of(config)
    found = evaluate(model, head, examples, device, done, limit=limit, ranks=ranks, objective=minimised)
    tokens = int(examples.targets.sum())
    noise, tolerance = manifest.noise, _tolerance(manifest, manifest.noise, device, tokens)
    # The first draw is the training's. Others take their time on a CPU, and change nothing where that one is enough.
    for draw in range(1, DRAWS):
        if abs(found.loss - manifest.measured.eval_loss_after) <= tolerance:
            break
        ours = measure_noise(
            model,
            head,
            examples,
            device,
            done,
            first=found,
            limit=limit,
            ranks=ranks,
            draw=draw,
            objective=minimised,
        )
        noise = max(noise, ours)
        tolerance = _tolerance(manifest, noise, device, tokens)
    return _Found(loss=found.loss, noise=noise, tolerance=tolerance)


def _tolerance(manifest: Manifest, noise: float, here: Device, tokens: int) -> float:
    measured, run = manifest.measured, manifest.resolved
    elsewhere = (here.name, here.dtype_name) != (run.device, run.compute_dtype)
    return tolerance_of(
        noise,
        measured.eval_loss_before - measured.eval_loss_after,
        # Verified by hand on another device, the run's own rounding counts, too.
        (here.dtype_name, run.compute_dtype),
        tokens=tokens,
        # PiSSA and OLoRA train beside what they leave of the base, rounded to its type, and are written for all of it.
        unmeasured=elsewhere or manifest.config.lora.init.changes_base,
    )


def _hold(base: Base, device: Device, processes: int, quantization: Quantization) -> bool:
    """Whether the GPUs of these processes hold the base model between them."""
    fits = fits_divided(held_bytes(base, device, quantization), device_bytes(device), processes)
    if not fits:
        log.warning("this node's GPUs do not hold the base model: its layers come to them one by one, for each batch")
    return fits


def _verify_merged(folder: Path, manifest: Manifest, base: Base, bench: Bench) -> Verification:
    if manifest.merged is None:
        raise VerificationError(f"{folder.name}/{MANIFEST} does not state the merged model's loss")
    loss = bench.loss(merged_model(folder, manifest.format, base), manifest)
    tolerance = max(manifest.merged.tolerance, TOLERANCES[bench.device.dtype_name])
    return judge(loss, manifest.merged.loss, tolerance, "merged model")


def judge(loss: float, claimed: float, tolerance: float, what: str, *, noise: float | None = None) -> Verification:
    """Compare a loss with what it has to be; `what` is the written thing. Raises `VerificationError`."""
    difference = abs(loss - claimed)
    log.info(
        "the written %s: loss %.6f, claimed %.6f, difference %.2e (tolerance %.2g%s)",
        what,
        loss,
        claimed,
        difference,
        tolerance,
        "" if noise is None else f", noise {noise:.1e}",
    )
    if not difference <= tolerance:
        raise VerificationError(
            f"the written {what} gives a loss of {loss:.4f}, the trained model gave {claimed:.4f}: they differ by "
            f"{difference:.4f}, more than {tolerance:.2g}; the {what} is not published; report this"
        )
    log.info("verified the %s", what)
    return Verification(loss=loss, difference=difference, noise=noise, tolerance=tolerance)
