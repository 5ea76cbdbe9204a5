"""What a run would take: its model looked at where it lies, and the plan made of that."""

from pathlib import Path

from lora_trainer.errors import ConfigError, NotFoundError
from lora_trainer.plan.adapter import AdapterError
from lora_trainer.plan.answer import Asked, Model, Plan, PlanByWeights, answer
from lora_trainer.plan.architecture import ArchitectureError
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.gpus import KNOWN, DeviceError, find_gpu
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.uri import ClaimUri, parse_uri
from lora_trainer.storage.base_architecture import CONFIG, parameters_in, read_config
from lora_trainer.storage.volumes import Volumes, readable


def plan_run(config: TrainConfig, volumes: Volumes, asked: Asked) -> Plan | PlanByWeights:
    """The plan of a run. Raises `ConfigError`, `NotFoundError`, `StorageError`, and the errors of a Hub or a bucket."""
    try:
        gpus = tuple(find_gpu(text) for text in asked.gpus) or KNOWN
        return answer(config, _model(config, volumes, asked.config_file), asked, gpus)
    except (AdapterError, DeviceError, ArchitectureError) as error:
        raise ConfigError(str(error)) from error


def _model(config: TrainConfig, volumes: Volumes, file: Path | None) -> Model:
    if file is not None:
        return Model(document=read_config(file), name=str(file))
    uri = parse_uri(config.model.uri)
    if not isinstance(uri, ClaimUri):
        return _remote_model(config.model.uri, volumes)
    with readable(f"model.uri is {uri}"):
        folder = volumes.claim_path(uri)
        if not (folder / CONFIG).is_file():
            what = volumes.not_mounted(uri) if volumes.claim_missing(uri) else f"there is no {CONFIG}"
            raise NotFoundError(
                f"model.uri is {uri}: {what}; or name the model's {CONFIG} by --config", Reason.MODEL_NOT_FOUND
            )
        return Model(document=read_config(folder / CONFIG), name=CONFIG, stored=parameters_in(folder, str(uri)))


def _remote_model(address: str, volumes: Volumes) -> Model:
    from lora_trainer.storage.hub import Hub  # noqa: PLC0415 - HTTP, which a plan of local files does without
    from lora_trainer.storage.model_headers import read_headers  # noqa: PLC0415

    headers = read_headers(address, volumes, Hub(), tokenizer=False)
    return Model(document=read_config(headers.base.folder / CONFIG), name=CONFIG, stored=headers.parameters)
