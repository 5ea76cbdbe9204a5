"""One run, top-down: tokens, model, evaluation before, training, evaluation after, adapter on the volume."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lora_trainer.data.dataset import log_data, open_data
from lora_trainer.data.kept_rows import KeptRows
from lora_trainer.distributed.collectives import Ranks
from lora_trainer.distributed.group import join, local_rank
from lora_trainer.distributed.reports import Report, Reporter
from lora_trainer.model.device import choose_device, same_type
from lora_trainer.model.quantize import check_kernels
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.progress import Phase
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.account import Account
from lora_trainer.train.checkpoint import Checkpoints
from lora_trainer.train.identity import identity
from lora_trainer.train.inputs import base_of
from lora_trainer.train.resolve_auto import resolve_setup
from lora_trainer.train.run_callback import RunCallback
from lora_trainer.train.session import Result, Session
from lora_trainer.train.starting import agreed, beginning, check_claim
from lora_trainer.train.stopping import Stop

log = logging.getLogger(__name__)

WriteResult = Callable[[Account, Result, Path, Callable[[int], None]], None]
"""Writes a training's result into a folder, after it has had room made for so many bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """Where a training works: the run's durable folder, None where nothing outlives the pod; `rows`, where encoded rows
    outlive an attempt; `may_write` raises where another trainer took the run over; `stop` hears the request to stop."""

    folder: Path | None = None
    rows: KeptRows = KeptRows()  # noqa: RUF009 - frozen
    may_write: Callable[[], None] = lambda: None
    stop: Stop = field(default_factory=Stop)

    def make_room(self, size_bytes: int) -> None:
        """Have room for so much, where this process may still write."""
        self.may_write()
        self.rows.make_room(size_bytes)


def run_training(
    config: TrainConfig,
    prepared: Path,
    volumes: Volumes,
    hub: Hub,
    *,
    folder: Path,
    reporter: Reporter,
    run_context: RunContext,
    write_result: WriteResult,
) -> None:
    """Train on what was `prepared` in a folder, together with the other processes of the run; the first of them has
    the adapter written into `folder`, with its manifest. Raises `TrainerError`."""
    began_s = time.monotonic()
    device = choose_device(config.device, config.training.precision, local_rank())
    log.info("device %s, compute type %s", device.name, device.dtype_name)

    with join(device.torch_device, config.stall_timeout_s) as group:
        device = same_type(device, group)
        reporter.phase(Phase.LOADING_MODEL)
        checkpoints = _checkpoints(config, run_context, group)
        saved = beginning(config, checkpoints, volumes, group)
        data = open_data(prepared)
        base = base_of(config, prepared, volumes, hub)
        reporter.send(Report(dataset=data.stats))
        log_data(data)

        setup = resolve_setup(
            config, base, device, data, group, reporter=reporter, kept=saved.quantization if saved else None
        )
        config = setup.config
        check_kernels(config.quantization, config.lora.variant, device)
        ours = agreed(
            identity(config, base.revision, data.fingerprint, data.template_digest, day=data.day, capped=data.capped),
            group,
        )
        start = saved and saved.checked(ours, config.training, len(data.training))
        if group.is_main and run_context.folder:
            check_claim(setup, run_context.folder, len(data.training), start)

        account = Account(
            setup=setup,
            base=base,
            data=data,
            prepared=prepared,
            identity=ours,
            device=device,
            checkpoints=checkpoints,
            start=start,
            began_s=began_s,
        )
        session = Session.open(setup, base, data, device, group)
        result = session.train(
            setup,
            start=start,
            stop=run_context.stop,
            checkpoint_policy=account.checkpoint_policy,
            callback=RunCallback(account, reporter, folder, group),
        )
        write_result(account, result, folder, run_context.make_room)


def _checkpoints(config: TrainConfig, run_context: RunContext, ranks: Ranks) -> Checkpoints | None:
    """Those of the first process; the others need to know whether there are any, and may not see the volume."""
    folder = ranks.broadcast_value(run_context.folder, Path | None)
    if folder is None:
        log.info("no claim for checkpoints: an interrupted run starts again at the beginning")
        return None
    keep, make_room = config.checkpoint.keep, run_context.rows.make_room
    return Checkpoints(folder, keep=keep, may_write=run_context.may_write, make_room=make_room)
