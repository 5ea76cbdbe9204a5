"""A stage of a run in a process of its own; `verify` thus in one that has seen nothing of the training.

Started by the supervisor as `python -m lora_trainer.stage`. It ends with an exit code of the contract and, before that,
with a report that says why in one sentence; stack traces go to the log only.
"""

import argparse
import faulthandler
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from lora_trainer.data.kept_rows import KeptRows
from lora_trainer.distributed import logs
from lora_trainer.distributed.activity import heard_by
from lora_trainer.distributed.deadline import reported_by
from lora_trainer.distributed.libraries import importing_libraries
from lora_trainer.distributed.parent import end_with_parent
from lora_trainer.distributed.reports import Report, Reporter, open_report
from lora_trainer.errors import StorageError
from lora_trainer.host.guard import guarded, leave
from lora_trainer.spec.config import Quantization, TrainConfig
from lora_trainer.spec.manifest import checkpoint_claim
from lora_trainer.spec.progress import Phase
from lora_trainer.spec.reasons import Reason
from lora_trainer.storage.base import Base
from lora_trainer.storage.cache_folders import cached_rows
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.lock import check_ticket
from lora_trainer.storage.manifest import read_manifest
from lora_trainer.storage.outputs import open_publisher
from lora_trainer.storage.run_folders import folder_of_run
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.inputs import fetch, prepare
from lora_trainer.train.resume_overrides import kept_quantization, with_kept_commits
from lora_trainer.train.stopping import Stop

_POLL_S = 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage; the process's exit status."""
    parser = argparse.ArgumentParser(prog="lora_trainer.stage")
    parser.add_argument("stage", choices=sorted(_STAGES))
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--target", type=Path)
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--ticket")
    parser.add_argument("--claims", type=Path, required=True)
    parser.add_argument("--configmaps", type=Path, required=True)
    parser.add_argument("--report", required=True)
    parser.set_defaults(stop=Stop())
    options = parser.parse_args(arguments)
    # torchrun numbers a node's processes; the first one speaks for all.
    local_rank = os.environ.get("LOCAL_RANK")
    silent = local_rank not in (None, "0")
    end_with_parent()
    signal.signal(signal.SIGTERM, options.stop.handle)
    # The supervisor asks a training that stands still where it stands.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    reporter = Reporter(open_report(options.report), failures_only=silent)
    volumes = Volumes(claims=options.claims, config_maps=options.configmaps, notes=options.config.parent)
    level = logging.WARNING if silent else logging.INFO
    with logs.inherited(os.environ, level), heard_by(reporter.activity), reported_by(reporter.failure):
        return guarded(lambda: _run(options, volumes, reporter), reporter)


def _run(options: argparse.Namespace, volumes: Volumes, reporter: Reporter) -> None:
    config = TrainConfig.from_json(options.config.read_text(encoding="utf-8"))
    _STAGES[options.stage](config, options, volumes, reporter)


# PyTorch is imported under the guard of `guarded`: that takes seconds, in which a broken GPU driver may show.


def import_peft(quantization: Quantization) -> None:
    """Import PEFT without bitsandbytes where the base is not quantized: it takes a quarter of all that is imported.

    PEFT imports it wherever it is installed. Whatever needs it for something else finds it afterwards.
    """
    if quantization is Quantization.NONE and "bitsandbytes" not in sys.modules:
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
        try:
            import peft  # noqa: F401, PLC0415
        finally:
            del sys.modules["bitsandbytes"]


def _prepare(config: TrainConfig, options: argparse.Namespace, volumes: Volumes, reporter: Reporter) -> None:
    reporter.phase(Phase.PREPARING)
    check_gpus(config, range(config.device.gpus))
    hub = Hub()
    fetch(with_kept_commits(config, _folder_of_run(config, options, volumes), hub), volumes, hub)


def _train(config: TrainConfig, options: argparse.Namespace, volumes: Volumes, reporter: Reporter) -> None:
    number = int(os.environ.get("LOCAL_RANK", "0"))
    check_gpus(config, [number])
    folder, rows, data = _folder_of_run(config, options, volumes), _rows(config, options, volumes), _data(options)
    if number == 0:
        reporter.phase(Phase.PREPARING)
        check = partial(_check_options, config, folder)
        prepare(config, volumes, Hub(), data, check=check, kept=rows, workspace=folder)
    with importing_libraries():
        import_peft(expected_quantization(config, folder))
        from lora_trainer.result.export import write_result  # noqa: PLC0415
        from lora_trainer.train.run import RunContext, run_training  # noqa: PLC0415

    # A process that fails to prepare it takes the others along.
    while not data.is_dir():
        time.sleep(_POLL_S)
    run_context = RunContext(
        folder=options.workspace, rows=rows, may_write=lambda: _check_lock(options), stop=options.stop
    )
    run_training(
        config,
        data,
        volumes,
        Hub(),
        folder=options.folder,
        reporter=reporter,
        run_context=run_context,
        write_result=write_result,
    )


def _check_options(config: TrainConfig, folder: Path | None, base: Base) -> None:
    with importing_libraries():
        import_peft(expected_quantization(config, folder))
        from lora_trainer.model.device import choose_device  # noqa: PLC0415
        from lora_trainer.model.options import check_options  # noqa: PLC0415

    check_options(base, config, choose_device(config.device, config.training.precision))


def _data(options: argparse.Namespace) -> Path:
    """Where the stages of this pod have the run's data, prepared; missing where nothing was trained here."""
    folder: Path = options.config.parent
    return folder / "data"


def check_gpus(config: TrainConfig, numbers: Iterable[int]) -> None:
    """Whether the pod's GPUs of these numbers can train, and have the memory free that was planned.

    Before anything is fetched or read, which takes minutes. Raises `GpuFaultError` and `ConfigError`.
    """
    if config.device.gpus == 0:
        return
    from lora_trainer.model.device import choose_device  # noqa: PLC0415 - as above
    from lora_trainer.model.device_check import check_room  # noqa: PLC0415

    for number in numbers:
        device = choose_device(config.device, config.training.precision, number)
        if config.planned is not None and config.planned.device_bytes is not None:
            check_room(device.torch_device, device.name, config.planned.room_bytes)


def expected_quantization(config: TrainConfig, folder: Path | None) -> Quantization:
    """What `Auto` may become, without a look at the model: none on a CPU, unless a checkpoint says otherwise."""
    if config.quantization is not Quantization.AUTO:
        return config.quantization
    kept = kept_quantization(folder)
    if kept is not None:
        return kept
    import torch  # noqa: PLC0415 - as above

    return Quantization.AUTO if config.device.gpus > 0 and torch.cuda.is_available() else Quantization.NONE


def _folder_of_run(config: TrainConfig, options: argparse.Namespace, volumes: Volumes) -> Path | None:
    """The run's folder, where anything in it outlives the pod. A node that is not the first only reads there."""
    workspace: Path | None = options.workspace
    claim = checkpoint_claim(config)
    return workspace if workspace or claim is None else volumes.claim_path(folder_of_run(config, claim))


def _rows(config: TrainConfig, options: argparse.Namespace, volumes: Volumes) -> KeptRows:
    """Encoded rows lie in the run's folder, which only the first node writes, and where `prepare` puts them."""
    return KeptRows(
        own=options.workspace,
        other=None if options.workspace else _folder_of_run(config, options, volumes),
        cache=cached_rows(os.environ),
        may_write=lambda: _check_lock(options),
        undisturbed=options.stop.deferred,
    )


def _check_lock(options: argparse.Namespace) -> None:
    if options.ticket is not None:
        what = f"the run's folder {options.workspace.name}"
        check_ticket(options.workspace, options.ticket, what, Reason.OUTPUT_LOCKED)


def _verify(_config: TrainConfig, options: argparse.Namespace, volumes: Volumes, reporter: Reporter) -> None:
    quantization = read_manifest(options.folder).config.quantization
    with importing_libraries():
        import_peft(quantization)
        from lora_trainer.result.verify import verify  # noqa: PLC0415

    reporter.send(Report(verification=verify(options.folder, volumes, Hub(), data=_data(options))))


def _merge(config: TrainConfig, options: argparse.Namespace, volumes: Volumes, reporter: Reporter) -> None:
    quantization = read_manifest(options.folder).config.quantization
    with importing_libraries():
        import_peft(quantization)
        from lora_trainer.result.merge_stage import merge_result  # noqa: PLC0415

    reporter.phase(Phase.PUBLISHING)
    output = config.output
    precision = output.merge_precision
    merge_result(options.folder, options.target, output.merge, volumes, Hub(), precision=precision, data=_data(options))


def _publish(config: TrainConfig, options: argparse.Namespace, volumes: Volumes, reporter: Reporter) -> None:
    reporter.send(Report(published=open_publisher(config, volumes).publish(options.folder)))


def _fetch_back(config: TrainConfig, options: argparse.Namespace, volumes: Volumes, _reporter: Reporter) -> None:
    publisher = open_publisher(config, volumes)
    published = publisher.published()
    if published is None:
        raise StorageError(f"output.uri is {config.output.uri}: what this run published there is gone")
    publisher.fetch(published, options.folder)


_STAGES: Mapping[str, Callable[[TrainConfig, argparse.Namespace, Volumes, Reporter], None]] = {
    "prepare": _prepare,
    "train": _train,
    "verify": _verify,
    "merge": _merge,
    "publish": _publish,
    "fetch": _fetch_back,
}


if __name__ == "__main__":
    leave(main(), os.environ)
