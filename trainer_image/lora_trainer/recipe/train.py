"""One run, top-down: tokens, model, evaluation before, training, evaluation after, adapter on the volume."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.progress import Phase
from lora_trainer.data import dataset as datasets
from lora_trainer.data.chosen_template import chosen_template
from lora_trainer.data.dataset import Data
from lora_trainer.data.kept_rows import KeptRows
from lora_trainer.data.survey import Samples
from lora_trainer.data.tokenizer import load_encoder
from lora_trainer.data.tokens import Encoder
from lora_trainer.model.device import choose_device, same_type
from lora_trainer.model.options import check_options
from lora_trainer.places.base import Base, find_base
from lora_trainer.places.hub import Hub
from lora_trainer.places.volumes import Volumes
from lora_trainer.ranks.collectives import Ranks
from lora_trainer.ranks.group import join, local_rank
from lora_trainer.ranks.reports import Report, Reporter
from lora_trainer.recipe.account import Account
from lora_trainer.recipe.session import Session
from lora_trainer.recipe.settling import check_lengths, settle
from lora_trainer.recipe.starting import agreed, beginning, check_claim
from lora_trainer.recipe.telling import Teller
from lora_trainer.recipe.vocabulary import check_tokens
from lora_trainer.training.checkpoint import Checkpoints
from lora_trainer.training.identity import identity
from lora_trainer.training.objective import objective_of
from lora_trainer.training.stopping import Stop

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """Where a training works: the run's durable folder, None where nothing outlives the pod; `tokens`, a temporary one
    that the processes of a node share; `rows`, where encoded rows outlive an attempt; `may_write` raises where another
    trainer took the run over; `stop` hears the request to stop."""

    folder: Path | None = None
    tokens: Path | None = None
    rows: KeptRows = KeptRows()  # noqa: RUF009 - frozen
    may_write: Callable[[], None] = lambda: None
    stop: Stop = field(default_factory=Stop)

    def make_room(self, size_bytes: int) -> None:
        """Have room for so much, where this process may still write."""
        self.may_write()
        self.rows.make_room(size_bytes)


def run_training(
    config: TrainConfig,
    samples: Samples,
    volumes: Volumes,
    hub: Hub,
    *,
    folder: Path,
    reporter: Reporter,
    workshop: Workshop,
) -> None:
    """Train on samples, together with the other processes of the run; the first of them writes the adapter with its
    manifest into `folder`. Raises `TrainerError`."""
    began_s = time.monotonic()
    device = choose_device(config.device, config.training.precision, local_rank())
    log.info("device %s, compute type %s", device.name, device.dtype_name)

    with join(device.torch_device, config.stall_timeout_s) as group:
        device = same_type(device, group)
        reporter.phase(Phase.LOADING_MODEL)
        checkpoints = _checkpoints(config, workshop, group)
        found = beginning(config, checkpoints, volumes, group)
        saved = found.saved
        base = find_base(saved.pinned(config.model.uri) if saved else config.model.uri, volumes, hub)
        chosen = chosen_template(config.dataset, volumes, found.day)
        encoder = load_encoder(
            base,
            config.training.loss_on,
            config.training.max_sequence_length,
            chosen,
            encode=objective_of(config).encode,
        )
        linear = check_options(base, config, device)
        data = datasets.encode_once(samples, encoder, workshop.tokens, workshop.rows, base.revision)
        _look_at_data(config, base, data, encoder, reporter)

        settled = settle(
            config, base, device, data, group, reporter=reporter, kept=saved.quantization if saved else None
        )
        config = settled.config
        ours = agreed(
            identity(config, base.revision, data.fingerprint, chosen.digest, day=encoder.day, capped=samples.capped),
            group,
        )
        start = saved and saved.checked(ours, config.training, len(data.training))
        if group.is_main and workshop.folder:
            check_claim(settled, workshop.folder, len(data.training), start)

        account = Account(
            settled=settled,
            base=base,
            samples=samples,
            data=data,
            encoder=encoder,
            identity=ours,
            device=device,
            checkpoints=checkpoints,
            start=start,
            began_s=began_s,
        )
        session = Session.open(settled, base, data, device, group, linear=linear)
        result = session.train(
            settled,
            start=start,
            stop=workshop.stop,
            saver=account.saver,
            listener=Teller(account, reporter, folder, group),
        )
        account.write(result, folder, workshop.make_room)


def _look_at_data(config: TrainConfig, base: Base, data: Data, encoder: Encoder, reporter: Reporter) -> None:
    reporter.send(Report(dataset=data.stats))
    datasets.log_data(data, encoder)
    check_lengths(config, base, data)
    check_tokens(base, data, encoder)


def _checkpoints(config: TrainConfig, workshop: Workshop, ranks: Ranks) -> Checkpoints | None:
    """Those of the first process; the others need to know whether there are any, and may not see the volume."""
    folder = ranks.broadcast_value(workshop.folder, Path | None)
    if folder is None:
        log.info("no claim for checkpoints: an interrupted run starts again at the beginning")
        return None
    keep, make_room = config.checkpoint.keep, workshop.rows.make_room
    return Checkpoints(folder, keep=keep, may_write=workshop.may_write, make_room=make_room)
