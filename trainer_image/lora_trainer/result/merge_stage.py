"""The stage that makes a verified adapter a result with the merged model, checks that, and seals it."""

import dataclasses
import logging
import os
import shutil
from pathlib import Path

from lora_trainer.errors import ConfigError, storage_error
from lora_trainer.model.device import choose_anywhere, choose_device
from lora_trainer.result.card import CARD, card_of
from lora_trainer.result.curves import LOSS_CURVE
from lora_trainer.result.inputs import base_and_rows
from lora_trainer.result.merge import merge_into
from lora_trainer.result.merged import bench_for, merged_model, rounding
from lora_trainer.result.merged_weights import check_weights
from lora_trainer.result.serving import MERGED
from lora_trainer.result.tensorboard import TENSORBOARD
from lora_trainer.result.verify import judge
from lora_trainer.spec.config import Merge, MergePrecision
from lora_trainer.spec.summary import Verification
from lora_trainer.storage.curve_records import METRICS
from lora_trainer.storage.held_out_rows import HELD_OUT_ROWS
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.manifest import LOG, Form, Manifest, MergedModel, read_manifest, write_sealed
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.noise import TOLERANCES

log = logging.getLogger(__name__)
GROSS = 0.25
"""What rounding to 16 bits may cost at most, in nats per token. Each weight was compared before: this is for files that
are right and load as something else. Correct merges of small models with large updates were seen to cost 0.05."""


def merge_result(
    adapter: Path,
    target: Path,
    merge: Merge,
    volumes: Volumes,
    hub: Hub,
    *,
    precision: MergePrecision = MergePrecision.AUTO,
    anywhere: bool = False,
    data: Path | None = None,
) -> Verification:
    """Make of the result in `adapter` the one that `merge` asks for, in the empty folder `target`.

    Each weight of the merged model is read from its files and has to be what base and adapter give, as its type rounds
    it. What the rounding costs, by the loss of the unquantized base model with the adapter beside it, is noted in the
    manifest. `anywhere` checks that on a CPU where the run had a GPU; `data` is as of `verify`. Raises
    `VerificationError`, `StorageError`.
    """
    manifest = read_manifest(adapter)
    if manifest.format is Form.MERGED:
        raise ConfigError(f"{adapter.name} is a merged model already: there is no adapter in it")
    form = Form.BOTH if merge is Merge.BOTH else Form.MERGED
    chosen = choose_anywhere if anywhere else choose_device
    device = chosen(manifest.config.device, manifest.config.training.precision)
    base, examples = base_and_rows(manifest, volumes, hub, data)
    model = merged_model(target, form, base)
    log.info("merging the adapter into %s at %s", base.name, base.revision)
    merge_into(adapter, base.folder, model.folder, precision)
    check_weights(base, adapter, model.folder, manifest.config.lora)

    bench = bench_for(base, examples, device)
    expected = bench.expected(base, adapter, manifest)
    coarser = rounding(model, bench.device)
    tolerance = TOLERANCES[coarser]
    limit = tolerance if coarser == "fp32" else GROSS
    verification = judge(bench.loss(model, manifest), expected, limit, "merged model")
    log.info("rounding costs the merged model %+.4f nats per token", verification.loss - expected)
    merged = MergedModel(loss=verification.loss, expected=expected, tolerance=tolerance)
    manifest = dataclasses.replace(manifest, format=form, merged=merged)
    if manifest.lost_by_rounding and precision is MergePrecision.AUTO:
        remedy = "output.mergePrecision: FP32 (lora-trainer merge --precision FP32) keeps it"
        log.warning("rounding costs the merged model %s: %s", manifest.lost_by_rounding, remedy)
    _seal(adapter, target, manifest)
    return verification


def merge_by_hand(
    adapter: Path, output: Path, volumes: Volumes, hub: Hub, precision: MergePrecision = MergePrecision.AUTO
) -> Verification:
    """Make the model of a published adapter in the new folder `output`. Raises `ConfigError`, and as `merge_result`."""
    if output.exists():
        raise ConfigError(f"--output is {output}: something is there already; name a new folder")
    try:
        return merge_result(adapter, output, Merge.MERGED, volumes, hub, precision=precision, anywhere=True)
    except BaseException:
        shutil.rmtree(output, ignore_errors=True)
        raise


def _seal(adapter: Path, target: Path, manifest: Manifest) -> None:
    """Bring the adapter's other files along, all of them or what was measured alone, and write card and manifest."""
    if manifest.format is Form.MERGED:
        manifest = dataclasses.replace(manifest, serving=dataclasses.replace(MERGED, rank=manifest.serving.rank))
    try:
        for entry in manifest.files:
            measured = entry.path in (LOSS_CURVE, METRICS, HELD_OUT_ROWS) or entry.path.startswith(f"{TENSORBOARD}/")
            if measured or (manifest.format is Form.BOTH and entry.path not in (CARD, LOG)):
                _bring(adapter / entry.path, target / entry.path)
        (target / CARD).write_text(card_of(target, manifest), encoding="utf-8")
        write_sealed(target, manifest)
    except OSError as error:
        raise storage_error(error, "the merged result") from error


def _bring(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the volume knows no such thing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
