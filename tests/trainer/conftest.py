"""A tiny model and its data, made once; a client for runs in processes of their own."""

import gc
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer import tiny
from tests.trainer.runs import Workplace

from lora_trainer.data.tokenizer import load_encoder
from lora_trainer.data.tokens import Encoder
from lora_trainer.model.device import Device
from lora_trainer.spec.config import LossOn, TrainConfig
from lora_trainer.spec.manifest import RunOptions, train_config
from lora_trainer.storage.base import Base, open_folder

# PEFT asks the model for a property that Transformers renamed; neither is ours.
PEFT_RENAMED = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Pass over the one warning that the pinned libraries give each other."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(PEFT_RENAMED))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Runs in the test's own process take one thread: beside other work, several wait for each other in a busy loop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_trainer.model.device.cpu_threads", lambda: 1)
        patch.setattr("lora_trainer.result.merged.cpu_threads", lambda: 1)
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope="session", autouse=True)
def quick_collections() -> Iterator[None]:
    """The million objects that libraries are made of live to the end: to look through them takes a second each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """A shell has what it starts in the background ignore Ctrl-C, and so would the processes that tests start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a ChatML template."""
    return tiny.make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_base(tiny_folder: Path) -> Base:
    """The tiny model's files."""
    return open_folder(tiny_folder)


@pytest.fixture
def encoder(tiny_base: Base) -> Encoder:
    """The tiny model's tokenizer, learning answers only."""
    return load_encoder(tiny_base, LossOn.COMPLETION, 256)


@pytest.fixture
def cpu() -> Device:
    """The CPU in fp32."""
    torch.set_num_threads(1)
    return Device(torch_device=torch.device("cpu"), name="cpu", dtype=torch.float32)


@pytest.fixture
def workplace(tmp_path: Path, tiny_folder: Path) -> Workplace:
    """Claims with the tiny model, chats, and an empty place for adapters."""
    return Workplace.make(tmp_path, tiny_folder)


def make_config(**sections: Any) -> TrainConfig:
    """The configuration of `tiny.manifest(**sections)`."""
    return train_config(tiny.manifest(**sections), RunOptions(uid="uid-1", allow_cpu=True, strict=True))
