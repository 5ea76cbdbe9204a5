"""One run, top-down: tokens, model, evaluation before, training, evaluation after, adapter on the volume."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.progress import Phase
from lora_trainer.data.dataset import log_data, open_data
from lora_trainer.data.kept_rows import KeptRows
from lora_trainer.model.device import choose_device, same_type
from lora_trainer.model.quantize import check_kernels
from lora_trainer.places.hub import Hub
from lora_trainer.places.volumes import Volumes
from lora_trainer.ranks.collectives import Ranks
from lora_trainer.ranks.group import join, local_rank
from lora_trainer.ranks.reports import Report, Reporter
from lora_trainer.recipe.account import Account
from lora_trainer.recipe.inputs import base_of
from lora_trainer.recipe.session import Session
from lora_trainer.recipe.settling import settle
from lora_trainer.recipe.starting import agreed, beginning, check_claim
from lora_trainer.recipe.telling import Teller
from lora_trainer.training.checkpoint import Checkpoints
from lora_trainer.training.identity import identity
from lora_trainer.training.stopping import Stop

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
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
    workshop: Workshop,
) -> None:
    """Train on what was `prepared` in a folder, together with the other processes of the run; the first of them writes
    the adapter with its manifest into `folder`. Raises `TrainerError`."""
    began_s = time.monotonic()
    device = choose_device(config.device, config.training.precision, local_rank())
    log.info("device %s, compute type %s", device.name, device.dtype_name)

    with join(device.torch_device, config.stall_timeout_s) as group:
        device = same_type(device, group)
        reporter.phase(Phase.LOADING_MODEL)
        checkpoints = _checkpoints(config, workshop, group)
        saved = beginning(config, checkpoints, volumes, group)
        data = open_data(prepared)
        base = base_of(config, prepared, volumes, hub)
        reporter.send(Report(dataset=data.stats))
        log_data(data)

        settled = settle(
            config, base, device, data, group, reporter=reporter, kept=saved.quantization if saved else None
        )
        config = settled.config
        check_kernels(config.quantization, config.lora.variant, device)
        ours = agreed(
            identity(config, base.revision, data.fingerprint, data.template_digest, day=data.day, capped=data.capped),
            group,
        )
        start = saved and saved.checked(ours, config.training, len(data.training))
        if group.is_main and workshop.folder:
            check_claim(settled, workshop.folder, len(data.training), start)

        account = Account(
            settled=settled,
            base=base,
            data=data,
            prepared=prepared,
            identity=ours,
            device=device,
            checkpoints=checkpoints,
            start=start,
            began_s=began_s,
        )
        session = Session.open(settled, base, data, device, group)
        result = session.train(
            settled,
            start=start,
            stop=workshop.stop,
            saver=account.saver,
            listener=Teller(account, reporter, folder, group),
        )
        account.write(result, folder, workshop.make_room)


def _checkpoints(config: TrainConfig, workshop: Workshop, ranks: Ranks) -> Checkpoints | None:
    """Those of the first process; the others need to know whether there are any, and may not see the volume."""
    folder = ranks.broadcast_value(workshop.folder, Path | None)
    if folder is None:
        log.info("no claim for checkpoints: an interrupted run starts again at the beginning")
        return None
    keep, make_room = config.checkpoint.keep, workshop.rows.make_room
    return Checkpoints(folder, keep=keep, may_write=workshop.may_write, make_room=make_room)
