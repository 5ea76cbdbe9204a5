"""When a base model is divided over GPUs, and what is refused instead."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.trainer.conftest import make_config
from tests.trainer.families import make_family

from lora_trainer.distributed.collectives import Ranks
from lora_trainer.errors import ConfigError, CudaOutOfMemoryError
from lora_trainer.model.device import Device
from lora_trainer.model.loading import load_model
from lora_trainer.model.quantize import is_4bit, packed
from lora_trainer.model.sharding import divided_over, stream, weight_bytes
from lora_trainer.spec import codec
from lora_trainer.spec.config import Quantization
from lora_trainer.spec.exit_codes import ExitCode
from lora_trainer.spec.run_plan import RunPlan
from lora_trainer.storage.base import open_folder
from lora_trainer.train import session
from lora_trainer.train.resolve_auto import RunSetup

GIB = 2**30
H100 = 80 * GIB
LLAMA_70B = 141 * GIB
CPU = Device(torch_device=torch.device("cpu"), name="cpu", dtype=torch.float32)


def over(
    size: float = LLAMA_70B,
    gpu: int | None = H100,
    processes: int = 8,
    plan: RunPlan | None = None,
    nodes: int = 1,
    **sections: Any,
) -> int:
    """The decision; everything has a default that shards."""
    config = make_config(**{"quantization": "None", **sections})
    ranks = Ranks(world=processes, local_world=processes // nodes)
    return divided_over(plan=plan, weights=lambda: size, device_bytes=gpu, ranks=ranks, config=config)


def decide(size: float = LLAMA_70B, gpu: int | None = H100, **others: Any) -> bool:
    """Whether it is divided."""
    return over(size, gpu, **others) > 1


class Mixed(Ranks):
    """This process among others, of which one has a GPU of 24 GiB."""

    def gather(self, value: Any, kind: Any) -> list[Any]:
        """As if the other had been asked."""
        return [value, codec.decode(kind, 24 * GIB)]


def test_processes_with_gpus_of_two_sizes_divide_the_base_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As fits the smallest: who divides it makes groups with the others, who does not would wait for something else."""

    class DividedError(Exception):
        pass

    def divide(_device: Device, _ranks: Ranks, over: int) -> None:
        raise DividedError(over)

    monkeypatch.setattr(session, "held_bytes", lambda *_: 50 * GIB)
    monkeypatch.setattr(session, "device_bytes", lambda _device: H100)
    monkeypatch.setattr(session, "mesh_over", divide)
    setup = RunSetup(config=make_config(quantization="None"), plan=None)
    base: Any = SimpleNamespace(folder=tmp_path)
    nothing: Any = None
    with pytest.raises(DividedError, match="8"):
        session.Session.open(setup, base, nothing, CPU, Mixed(world=8, local_world=8))


def planned(*, sharded: bool, sharded_over: int | None = None, fits: bool | None = True) -> RunPlan:
    """A plan that says so."""
    return RunPlan(
        quantization=Quantization.NONE,
        activation_checkpointing=True,
        micro_batch_tokens=4096,
        sharded=sharded,
        sharded_over=sharded_over,
        fits=fits,
        peak_bytes=5,
        weight_bytes=1,
        adapter_bytes=1,
        activation_bytes=2,
        other_bytes=1,
        pod_memory_bytes=1,
        trainable_parameters=1,
        adapter_file_bytes=4,
        reason="",
    )


@pytest.mark.parametrize("sharded", [True, False])
def test_a_plan_that_fits_decides(sharded: bool) -> None:
    """Where activations lack room, and where the weights nearly fill a GPU."""
    for size in (0.5 * H100, 0.8 * H100):
        assert decide(size=size, plan=planned(sharded=sharded)) is sharded
    assert not decide(plan=planned(sharded=True), processes=1)
    assert not decide(plan=planned(sharded=True), gpu=None)


@pytest.mark.parametrize(
    ("nodes", "sharded_over", "wanted"), [(2, 4, 4), (2, 8, 8), (2, None, 8), (1, 8, 8), (4, 4, 8)]
)
def test_a_plan_says_whether_a_node_suffices(nodes: int, sharded_over: int | None, wanted: int) -> None:
    """One for nodes of another size knows all processes alone."""
    assert over(nodes=nodes, plan=planned(sharded=True, sharded_over=sharded_over)) == wanted


def test_weights_are_divided_over_all_nodes_only_where_one_does_not_hold_them() -> None:
    """What is gathered for each layer then crosses the network."""
    assert over(processes=16, nodes=2) == 8
    assert over(processes=16, nodes=8) == 16
    assert over(processes=4, nodes=4) == 4
    assert over(processes=8, nodes=1) == 8


@pytest.mark.parametrize("fits", [None, False])
def test_a_plan_that_may_not_fit_leaves_it_to_the_weights(fits: bool | None) -> None:
    """A guess divides nothing that fits, and refuses nothing."""
    assert not decide(size=0.5 * H100, plan=planned(sharded=True, fits=fits))
    assert decide(plan=planned(sharded=False, fits=fits))


def test_weights_that_do_not_fit_one_gpu_are_divided() -> None:
    """70 billion parameters in 16 bits over eight GPUs of 80 GiB; also with adapters of another variant."""
    assert decide()
    assert decide(lora={"variant": "DoRA"})
    assert decide(quantization="NF4")
    assert decide(quantization="FP4")


def test_weights_that_fit_stay_whole_on_each_gpu() -> None:
    """Three quarters of the memory are the limit; one process, or a CPU, has nobody to share with."""
    assert not decide(size=0.75 * H100)
    assert decide(size=0.75 * H100 + 1)
    assert not decide(processes=1)
    assert not decide(gpu=None)


def test_too_few_gpus_are_refused_before_anything_is_loaded() -> None:
    """As what it would become: memory that does not suffice, with both sizes and the remedy."""
    with pytest.raises(CudaOutOfMemoryError, match=r"141\.0 GiB.*80\.0 GiB.* 2 GPUs do not suffice; raise") as caught:
        decide(processes=2)
    assert caught.value.code == ExitCode.CUDA_OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"quantization": "INT8"}, "quantization is INT8"),
        ({"quantization": "NF4", "lora": {"variant": "DoRA"}}, "lora.variant is DoRA with quantization NF4"),
        ({"lora": {"init": "PiSSA"}}, "lora.init is PiSSA"),
        ({"lora": {"targetParameters": ["experts.down_proj"]}}, "lora.targetParameters is set"),
        ({"output": {"merge": "Merged"}}, "output.merge is Merged"),
    ],
)
def test_what_cannot_be_divided_is_refused(sections: dict[str, Any], named: str) -> None:
    """With the field; the same goes where the weights fit."""
    with pytest.raises(ConfigError, match=named):
        decide(**sections)
    assert not decide(size=40 * GIB, **sections)


def test_what_cannot_be_divided_is_tried_whole_where_it_may_fit() -> None:
    """As on one GPU alone, where the plan is not sure; not what is larger than a GPU."""
    unsure = planned(sharded=False, fits=None)
    assert not decide(size=0.8 * H100, plan=unsure, quantization="INT8")
    with pytest.raises(ConfigError, match="quantization is INT8"):
        decide(size=0.8 * H100, plan=planned(sharded=False, fits=False), quantization="INT8")
    with pytest.raises(ConfigError, match="quantization is INT8"):
        decide(size=H100 + 1, plan=unsure, quantization="INT8")


def test_memory_of_weights_is_reported_from_the_headers_of_their_files(tiny_folder: Path) -> None:
    """Tied embeddings are stored once."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - takes seconds to import

    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    files = list(tiny_folder.glob("*.safetensors"))
    assert weight_bytes(files, torch.bfloat16, Quantization.NONE) == 2 * parameters
    assert weight_bytes(files, torch.float32, Quantization.NONE) == 4 * parameters
    assert weight_bytes(files, torch.bfloat16, Quantization.NF4, linear=parameters) == pytest.approx(
        0.516 * parameters, rel=1e-3
    )
    half = weight_bytes(files, torch.bfloat16, Quantization.NF4, linear=parameters // 2)
    assert half == pytest.approx((0.516 + 2) / 2 * parameters, rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "qwen2_5_vl"])
def test_what_is_packed_later_is_what_transformers_packs_while_it_reads(tmp_path: Path, family: str) -> None:
    """The same modules, to the byte, with their scales; GPT-2's lie the other way around, and experts stay in full."""
    make_family(tmp_path, family)
    base = open_folder(tmp_path)
    at_once = load_model(base, Quantization.NF4, CPU).model
    later = load_model(base, Quantization.NF4, CPU, packs_later=True).model
    modules = {name: module for name, module in later.named_modules() if is_4bit(module)}
    wanted = {name: module for name, module in at_once.named_modules() if is_4bit(module)}
    assert list(modules) == list(wanted)
    assert modules
    for name, module in modules.items():
        found: Any = packed(module, CPU.torch_device)
        ours: Any = wanted[name].weight
        assert torch.equal(found, ours.data), name
        assert torch.equal(found.quant_state.absmax, ours.quant_state.absmax), name
        assert module.bias is None or torch.equal(module.bias, wanted[name].bias), name


def test_a_streamed_model_computes_the_same_with_one_layer_on_the_device(tiny_folder: Path) -> None:
    """Afterwards the layers' weights are where they were, also where one of them failed."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - takes seconds to import

    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    ids = torch.arange(12)[None] % 10
    layers = model.model.layers
    homes = [layer.mlp.up_proj.weight.data_ptr() for layer in layers]
    there: list[list[int]] = []

    def look(*_: Any) -> None:
        away = zip(layers, homes, strict=True)
        there.append([i for i, (layer, home) in enumerate(away) if layer.mlp.up_proj.weight.data_ptr() != home])

    with torch.no_grad():
        whole = model(ids).logits
        stream(model, CPU)
        watching = [layer.mlp.register_forward_hook(look) for layer in layers]
        # A kernel may sum in another order where weights lie at other addresses.
        torch.testing.assert_close(model(ids).logits, whole)
        for watch in watching:
            watch.remove()
        layers[1].mlp.register_forward_hook(_fail)
        with pytest.raises(MemoryError):
            model(ids)
    assert there == [[number] for number in range(len(layers))]
    assert [layer.mlp.up_proj.weight.data_ptr() for layer in layers] == homes


def _fail(*_: Any) -> None:
    raise MemoryError
