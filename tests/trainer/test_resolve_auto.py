"""What a run leaves open on the device that its training finds: with real files of a model, on GPUs that are played."""

import contextlib
import dataclasses
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.trainer import families
from tests.trainer.conftest import make_config

from lora_trainer.distributed.collectives import Ranks
from lora_trainer.distributed.reports import Report, Reporter
from lora_trainer.errors import DoesNotFitError, InternalError
from lora_trainer.model import options
from lora_trainer.model.device import Device
from lora_trainer.model.loading import load_model
from lora_trainer.plan.adapter import plan_adapter
from lora_trainer.plan.planning import plan_of, settled
from lora_trainer.spec.config import Planned, Quantization, TrainConfig
from lora_trainer.spec.gpus import Gpu, find_gpu
from lora_trainer.spec.run_plan import RunPlan
from lora_trainer.spec.summary import DatasetStats
from lora_trainer.storage.base import Base, open_folder
from lora_trainer.storage.base_architecture import architecture_in, parameters_in
from lora_trainer.train import resolve_auto
from lora_trainer.train.resolve_auto import RunSetup, resolve_setup

STATS = DatasetStats(
    train_samples=100,
    validation_samples=2,
    train_tokens=50_000,
    target_tokens=20_000,
    longest_tokens=900,
    truncated_samples=0,
    skipped_samples=0,
    duplicate_samples=0,
)
AUTO = {"quantization": "Auto", "lora": {"rank": 4}, "training": {"maxSequenceLength": 1024}}


@dataclasses.dataclass(frozen=True)
class Several(Ranks):
    """Processes whose devices have these amounts of memory."""

    gpus: tuple[Gpu | None, ...] = ()

    def gather(self, value: Any, kind: Any) -> list[Any]:
        """This process's, and the others'."""
        return [value, *self.gpus]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Plays a GPU of this name, memory and compute capability."""

    def play(name: str, memory: int, capability: tuple[int, int] = (8, 0)) -> Device:
        monkeypatch.setattr(resolve_auto, "device_bytes", lambda _device: memory)
        # Its kernels are not here to be looked at.
        monkeypatch.setattr(options, "check_kernels", lambda *_arguments: None)
        return Device(torch_device=torch.device("cpu"), name=name, dtype=torch.bfloat16, capability=capability)

    return play


def resolve_on(device: Device, base: Base, config: TrainConfig | None = None, **options: Any) -> RunSetup:
    """The run settled on a device, with the tiny model."""
    config, ranks = config or make_config(**AUTO), options.pop("ranks", Ranks())
    data: Any = SimpleNamespace(stats=STATS, longest_evaluated=options.pop("evaluated", 0))
    return resolve_setup(config, base, device, data, ranks, **{"kept": None, "reporter": Reporter(None), **options})


def demand(base: Base, config: TrainConfig, quantization: Quantization) -> int:
    """Bytes of memory with which this quantization just fits, in the way that takes least."""
    shape = architecture_in(base.folder, "tiny")
    forced = dataclasses.replace(config, quantization=quantization)
    adapter = plan_adapter(config.lora, shape)
    tiny = Gpu(name="x", memory_bytes=1)
    least = plan_of(forced, shape, adapter, gpu=tiny, longest=900, target_share=0.4).peak_bytes
    return int(least / 0.9) + 2


def test_on_a_cpu_nothing_is_quantized(tiny_base: Base, cpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it takes is estimated for the process. The options, checked once, are not checked again."""
    monkeypatch.delattr(resolve_auto, "check_options")
    found = resolve_on(cpu, tiny_base)
    assert found.config.quantization is Quantization.NONE
    assert found.plan is not None
    assert (found.plan.device, found.plan.activation_checkpointing) == ("cpu", False)
    assert found.plan.peak_bytes > 1_300_000_000


def test_a_device_settles_it_as_the_plan_would(tiny_base: Base, gpu: Any) -> None:
    """In full where it fits, quantized where only that does; by the very function of the plan."""
    config = make_config(**AUTO)
    for quantization in (Quantization.NONE, Quantization.NF4):
        memory = demand(tiny_base, config, quantization)
        found = resolve_on(gpu("NVIDIA Zebra", memory), tiny_base)
        assert found.plan is not None
        assert (found.config.quantization, found.plan.fits) == (quantization, True)
        shape = architecture_in(tiny_base.folder, "tiny")
        planned = plan_of(
            config,
            shape,
            plan_adapter(config.lora, shape),
            tokens=50_000,
            rows=100,
            target_share=0.4,
            longest=900,
            gpu=Gpu(name="NVIDIA Zebra", memory_bytes=memory),
        )
        assert found.plan == planned
        assert settled(config, planned).quantization is found.config.quantization
    assert found.config.training == config.training


def test_the_longest_held_out_row_is_counted(tiny_base: Base, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the statistics of the training rows do not have."""
    counted: list[int] = []

    def planned(*given: Any, **known: Any) -> RunPlan:
        counted.append(known["evaluated"])
        return plan_of(*given, **known)

    monkeypatch.setattr(resolve_auto, "plan_of", planned)
    resolve_on(gpu("H100", 2**36), tiny_base, evaluated=1000)
    assert counted == [1000]


def test_the_smallest_device_of_all_processes_decides(tiny_base: Base, gpu: Any) -> None:
    """Each of them finds the same."""
    config = make_config(**AUTO)
    little = Gpu(name="small", memory_bytes=demand(tiny_base, config, Quantization.NF4))
    large = find_gpu("H100")
    for own, other in ((little, large), (large, little)):
        device = gpu(own.name, own.memory_bytes)
        found = resolve_on(device, tiny_base, ranks=Several(gpus=(other,)))
        assert found.config.quantization is Quantization.NF4
    one_without = resolve_on(gpu("H100", 2**36), tiny_base, ranks=Several(gpus=(None,)))
    assert one_without.config.quantization is Quantization.NONE


@pytest.mark.parametrize("kept", [Quantization.NF4, Quantization.NONE, Quantization.FP4])
def test_a_checkpoints_quantization_wins_over_the_devices(tiny_base: Base, gpu: Any, kept: Quantization) -> None:
    """On a device with more memory, with less, and on a CPU."""
    config = make_config(**AUTO)
    for memory in (demand(tiny_base, config, Quantization.NF4), 80 * 2**30):
        found = resolve_on(gpu("x", memory), tiny_base, kept=kept)
        assert found.config.quantization is kept
        assert found.plan is not None
        assert found.plan.quantization is kept
    named = make_config(**{**AUTO, "quantization": "INT8"})
    assert resolve_on(gpu("x", 80 * 2**30), tiny_base, named, kept=kept).config.quantization is Quantization.INT8


def test_what_cannot_fit_the_device_ends_before_weights_are_read(tiny_base: Base, gpu: Any) -> None:
    """As preflight would have ended it, with what would fit; on all processes of the run alike."""
    with pytest.raises(
        DoesNotFitError, match=r"the run needs at least .* of a GPU's memory, and x has 0\.0 GiB"
    ) as own:
        resolve_on(gpu("x", 1), tiny_base)
    assert (own.value.plan.fits, str(own.value)) == (False, own.value.plan.reason)
    little, large = Gpu(name="x", memory_bytes=1), find_gpu("H100")
    for mine, other in ((little, large), (large, little)):
        with pytest.raises(DoesNotFitError, match=r"and x has 0\.0 GiB"):
            resolve_on(gpu(mine.name, mine.memory_bytes), tiny_base, ranks=Several(gpus=(other,)))


def test_what_a_checkpoint_was_trained_with_is_tried_on_any_device(tiny_base: Base, gpu: Any) -> None:
    """It has trained so before, and an estimate may err."""
    found = resolve_on(gpu("x", 1), tiny_base, kept=Quantization.NF4)
    assert found.plan is not None
    assert (found.config.quantization, found.plan.fits) == (Quantization.NF4, False)


@pytest.mark.parametrize(("kind", "quantization"), [("qwen3_next", Quantization.NONE), ("stablelm", Quantization.NF4)])
def test_what_the_operator_settles_of_a_guess_the_training_can_honour(
    kind: str, quantization: Quantization, gpu: Any, tmp_path: Path
) -> None:
    """A mixture among them, which it refuses to quantize; nothing was settled of the other before."""
    base, config = open_folder(families.make_family(tmp_path / "model", kind)), make_config(**AUTO)
    shape = architecture_in(base.folder, kind)
    planned = plan_of(config, shape, plan_adapter(config.lora, shape), gpu=Gpu(name="x", memory_bytes=1))
    device = gpu("x", 1)
    found = resolve_on(device, base, settled(config, planned))
    assert found.config.quantization is quantization
    options.check_options(base, found.config, device)


def test_what_cannot_be_quantized_stays_as_it_is(
    tiny_base: Base, gpu: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For a reason that no estimate knows: such as kernels that this GPU has not."""
    config = make_config(**AUTO)
    device = gpu("x", demand(tiny_base, config, Quantization.NF4), (5, 2))
    monkeypatch.undo()
    monkeypatch.setattr(resolve_auto, "device_bytes", lambda _device: demand(tiny_base, config, Quantization.NF4))
    with caplog.at_level(logging.INFO):
        found = resolve_on(device, tiny_base)
    assert found.config.quantization is Quantization.NONE
    assert found.plan is not None
    assert found.plan.fits is not True
    assert (
        "quantization NF4 would be chosen and cannot be: quantization is NF4: bitsandbytes has kernels" in caplog.text
    )


@pytest.fixture
def odd(tiny_base: Base, tmp_path: Path) -> Base:
    """The tiny model as one of a kind that is not known, with a configuration that describes no layers."""
    config = json.loads((tiny_base.folder / "config.json").read_text()) | {"model_type": "stablelm"}
    del config["num_attention_heads"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    return dataclasses.replace(tiny_base, folder=tmp_path)


def test_a_model_without_layers_that_are_known_is_not_estimated(
    odd: Base, cpu: Device, gpu: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Then the rules of thumb count; what has no weights, either, is not quantized."""
    found = resolve_on(gpu("x", 2**30), odd)
    assert (found.config.quantization, found.plan) == (Quantization.NONE, None)
    assert 'what the run takes is not estimated: config.json.model_type is "stablelm": must be a family' in caplog.text
    assert "config.json.num_attention_heads is missing" in caplog.text
    assert resolve_on(cpu, odd).config.quantization is Quantization.NONE


def test_the_weights_of_such_a_model_decide(
    odd: Base, tiny_base: Base, gpu: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three quarters of the memory may be theirs. A checkpoint's quantization wins, and so do the model's modules."""
    (odd.folder / "model.safetensors").symlink_to(tiny_base.folder / "model.safetensors")
    weights = 2 * parameters_in(tiny_base.folder, "tiny")
    for memory, quantization in ((weights / 0.75 + 1, Quantization.NONE), (weights / 0.75 - 1, Quantization.NF4)):
        with caplog.at_level(logging.INFO):
            assert resolve_on(gpu("x", int(memory)), odd).config.quantization is quantization
        assert f"quantization: {quantization.value}, by the weights: unquantized weights take" in caplog.text
    monkeypatch.setattr(resolve_auto, "_possible", lambda *_arguments: False)
    assert resolve_on(gpu("x", 1000), odd).config.quantization is Quantization.NONE
    assert resolve_on(gpu("x", 1000), odd, kept=Quantization.FP4).config.quantization is Quantization.FP4


def planned(**changes: Any) -> TrainConfig:
    """A run as preflight settled it, for a GPU of 24 GiB."""
    plan = Planned(
        device="L4",
        device_bytes=24 * 2**30,
        activation_checkpointing=True,
        micro_batch_tokens=1024,
        peak_bytes=2**30,
        room_bytes=2**30,
    )
    config = make_config(**{**AUTO, "quantization": "None"})
    return dataclasses.replace(config, planned=dataclasses.replace(plan, **changes))


def test_what_was_planned_is_followed_and_compared(tiny_base: Base, gpu: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Though the device would allow for more: the status has said so."""
    with caplog.at_level(logging.INFO):
        found = resolve_on(gpu("NVIDIA L4", 23_000 * 2**20), tiny_base, planned())
    assert found.plan is not None
    assert (found.plan.activation_checkpointing, found.plan.micro_batch_tokens) == (True, 1024)
    assert "planned for L4 with 24.0 GiB, which was to take 1.0 GiB; found L4 with 22.5 GiB, which takes" in caplog.text
    free = resolve_on(gpu("NVIDIA L4", 23_000 * 2**20), tiny_base)
    assert free.plan is not None
    assert (free.plan.activation_checkpointing, free.plan.micro_batch_tokens) == (False, 8 * 900)


def test_a_plan_for_another_device_is_dropped_where_it_does_not_fit(
    tiny_base: Base, gpu: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What is settled stays; what only costs memory is chosen anew."""
    config = planned(activation_checkpointing=False, micro_batch_tokens=4096)
    memory = demand(tiny_base, config, Quantization.NONE)
    found = resolve_on(gpu("x", memory), tiny_base, config)
    assert found.plan is not None
    assert found.plan.fits
    assert found.plan.activation_checkpointing
    assert found.config.quantization is Quantization.NONE
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "planned for L4" in warning.getMessage()


@pytest.mark.parametrize(("memory", "before"), [(1, None), (1, planned()), (2**36, None), (2**36, planned())])
def test_what_the_status_has_not_yet_is_reported(
    tiny_base: Base, gpu: Any, monkeypatch: pytest.MonkeyPatch, memory: int, before: TrainConfig | None
) -> None:
    """The plan of a device that nothing told before, and of one that the run cannot fit."""
    reporter, reports = Reporter(None), list[Report]()
    monkeypatch.setattr(reporter, "send", reports.append)
    with pytest.raises(DoesNotFitError) if memory == 1 else contextlib.nullcontext():
        resolve_on(gpu("x", memory), tiny_base, before, reporter=reporter)
    plans = [report.plan.device for report in reports if report.plan]
    assert plans == ([] if before and memory > 1 else ["x"])


def test_weights_are_never_read_before_it_is_settled(tiny_base: Base, cpu: Device) -> None:
    """Whoever forgets it finds out at once."""
    with pytest.raises(InternalError, match="quantization is Auto: it has to be settled before weights are read"):
        load_model(tiny_base, Quantization.AUTO, cpu)
