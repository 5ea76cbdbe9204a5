"""The names that we set in other libraries exist there: an upgrade fails here and not on a GPU."""

import dataclasses
import importlib.metadata
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora.layer import Linear as LoraLinear
from tests.trainer.conftest import make_config
from tests.trainer.runs import TRAINER
from tests.trainer.trainings import RESOLVED
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from lora_trainer.model.adapter import plan_adapter
from lora_trainer.model.device import Device
from lora_trainer.model.loading import load_model, set_input_casts, skeleton
from lora_trainer.model.quantize import quantization_settings
from lora_trainer.spec.config import LoraConfig as AdapterConfig
from lora_trainer.spec.config import Optimizer, Quantization, TrainingConfig
from lora_trainer.stage import expected_quantization
from lora_trainer.storage.base import Base
from lora_trainer.train.optimizers import make_optimizer
from lora_trainer.train.versions import versions


def test_peft_knows_the_options_of_the_adapter(tiny_base: Base) -> None:
    """Every name that is set is a field of its configuration, whose defaults a file means by leaving a field out."""
    fields = {field.name: field.default for field in dataclasses.fields(LoraConfig)}
    empty = skeleton(tiny_base)
    plan = plan_adapter(AdapterConfig(), empty.model, empty.linear, Quantization.NONE)
    assert {*plan.settings, "init_lora_weights", "base_model_name_or_path", "revision"} <= set(fields)
    assert (fields["use_rslora"], fields["use_dora"], fields["init_lora_weights"]) == (False, False, True)
    assert fields["lora_bias"] is False


def test_peft_keeps_start_values_where_they_are_taken_from() -> None:
    """Its methods that take the main directions out of a weight, and the factor on an adapter's product."""
    kind: Any = LoraLinear
    layer = kind(nn.Linear(6, 5), "default", LoraConfig(r=2, lora_alpha=6), r=2, lora_alpha=6)
    before = layer.get_base_layer().weight.detach().clone()
    for take, arguments in ((layer.pissa_init, ("default", "pissa_niter_16")), (layer.olora_init, ("default",))):
        with torch.no_grad():
            layer.get_base_layer().weight.copy_(before)
            take(*arguments)
            product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            whole = layer.get_base_layer().weight + layer.scaling["default"] * product
        torch.testing.assert_close(whole, before, atol=1e-5, rtol=0)


def test_peft_saves_without_asking_the_hub() -> None:
    """The option that keeps it from looking up embeddings."""
    assert {"safe_serialization", "save_embedding_layers"} <= set(
        inspect.signature(PeftModel.save_pretrained).parameters
    )
    assert "active" in inspect.signature(disable_input_dtype_casting).parameters


@pytest.mark.parametrize(("on", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_peft_leaves_inputs_as_they_are_where_it_is_told_to(on: bool, dtype: torch.dtype) -> None:
    """By the attribute that steps in 16 bits switch off, and that is on from the start."""
    kind: Any = LoraLinear
    layer = kind(nn.Linear(6, 5), "default", LoraConfig(r=2), r=2, lora_alpha=6)
    seen: list[torch.dtype] = []
    layer.lora_A["default"].register_forward_pre_hook(lambda _module, given: seen.append(given[0].dtype))
    assert set_input_casts(layer, on=on)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.ones(1, 6, dtype=torch.bfloat16))
    assert seen == [dtype]
    assert set_input_casts(layer, on=True) is on


@pytest.mark.parametrize("quantization", [Quantization.NF4, Quantization.FP4, Quantization.INT8])
def test_transformers_knows_the_options_of_quantization(
    cpu: Device, monkeypatch: pytest.MonkeyPatch, quantization: Quantization
) -> None:
    """It takes unknown names in silence."""
    given: dict[str, Any] = {}
    monkeypatch.setattr("transformers.BitsAndBytesConfig", lambda **settings: given.update(settings))
    quantization_settings(quantization, cpu)
    assert given
    assert set(given) <= set(inspect.signature(BitsAndBytesConfig.__init__).parameters)


@pytest.mark.parametrize("name", list(Optimizer))
def test_the_optimizers_know_our_options(monkeypatch: pytest.MonkeyPatch, name: Optimizer) -> None:
    """Those of PyTorch and of bitsandbytes."""
    homes = {
        Optimizer.ADAMW: "torch.optim.AdamW",
        Optimizer.ADAMW_8BIT: "bitsandbytes.optim.adamw.AdamW8bit",
        Optimizer.PAGED_ADAMW_8BIT: "bitsandbytes.optim.adamw.PagedAdamW8bit",
    }
    module, _, kind = homes[name].rpartition(".")
    known = set(inspect.signature(getattr(importlib.import_module(module), kind).__init__).parameters)
    given: dict[str, Any] = {}
    monkeypatch.setattr(homes[name], lambda groups, **settings: given.update(groups[0], **settings))
    gpu = Device(torch_device=torch.device("cuda", 0), name="a GPU", dtype=torch.bfloat16)
    make_optimizer([torch.nn.Parameter(torch.ones(2, 2))], TrainingConfig(optimizer=name), gpu)
    assert {"lr", "betas", "eps", "weight_decay"} <= set(given) <= {*known, "params"}


def test_transformers_loads_with_our_options(tiny_base: Base, cpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown ones would be handed on to the model in silence."""
    given: dict[str, Any] = {}
    load: Any = AutoModelForCausalLM.from_pretrained

    def noting(*places: Any, **options: Any) -> Any:
        given.update(options)
        return load(*places, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", noting)
    load_model(tiny_base, Quantization.NONE, cpu)
    source = inspect.getsource(PreTrainedModel.from_pretrained) + inspect.getsource(load)
    assert {"dtype", "quantization_config", "use_safetensors", "trust_remote_code"} <= set(given)
    assert [option for option in given if f'"{option}"' not in source and f"{option}:" not in source] == []


def test_the_hub_client_takes_our_options() -> None:
    """Endpoint, token and cache of the run, never those of the machine."""
    wanted = {"repo_type", "revision", "allow_patterns", "token", "endpoint", "cache_dir"}
    assert wanted <= set(inspect.signature(huggingface_hub.snapshot_download).parameters)
    assert {"endpoint", "token"} <= set(inspect.signature(huggingface_hub.HfApi).parameters)


def test_torch_has_a_fused_adamw() -> None:
    """On the CPU as well."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.0, fused=True)
    parameter.grad = torch.ones(2)
    optimizer.step()
    assert torch.allclose(parameter.detach(), torch.full((2,), 0.9))


def test_a_run_that_quantizes_nothing_does_not_import_bitsandbytes_with_peft() -> None:
    """What asks for it by itself, an optimizer with 8-bit state, still finds it. Meanwhile no garbage is collected:
    there is none, and to look for it takes a third of the time."""
    program = (
        "import gc, sys\n"
        "from lora_trainer.spec.config import TrainConfig\n"
        "from lora_trainer.distributed.libraries import importing_libraries\n"
        "from lora_trainer.stage import expected_quantization, import_peft\n"
        "collections = []\n"
        "gc.callbacks.append(lambda phase, _: collections.append(phase))\n"
        "with importing_libraries():\n"
        "    import_peft(expected_quantization(TrainConfig.from_json(sys.argv[1]), None))\n"
        "    print('peft' in sys.modules, 'bitsandbytes' in sys.modules, collections)\n"
        "print(gc.isenabled(), len(gc.get_objects()) < gc.get_freeze_count())\n"
        "from bitsandbytes.optim.adamw import AdamW8bit\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, make_config().to_json()],
        env={**os.environ, "PYTHONPATH": str(TRAINER)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()) == (0, ["True False []", "True True"]), done.stderr
    assert "leaked" not in done.stderr


def test_what_auto_may_become_is_known_before_a_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None on a CPU, either on a GPU; what a checkpoint of the run has wins."""
    auto, named = make_config(quantization="Auto"), make_config(quantization="INT8")
    assert expected_quantization(named, None) is Quantization.INT8
    assert expected_quantization(auto, None) is Quantization.NONE
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert expected_quantization(auto, tmp_path) is Quantization.AUTO
    without = make_config(quantization="Auto", resources={"gpus": 0})
    assert expected_quantization(without, tmp_path) is Quantization.NONE
    for name, text in (("step-00000002", "cut off"), ("step-00000001", '{"config": {"quantization": "NF4"}}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    assert expected_quantization(auto, tmp_path) is Quantization.NF4
    assert expected_quantization(without, tmp_path) is Quantization.NF4


@pytest.mark.parametrize(
    ("kernels", "named"), [(("fused-adapter", "liger-rope"), True), (("fused-adapter",), False), ((), False)]
)
def test_the_versions_of_a_run_name_liger_where_it_took_a_kernel_of_it(
    *, kernels: tuple[str, ...], named: bool
) -> None:
    """With a kernel of another release numbers may round otherwise; a run without one has nothing to do with it."""
    found = versions(dataclasses.replace(RESOLVED, kernels=kernels))
    assert found.get("liger-kernel") == (importlib.metadata.version("liger-kernel") if named else None)
    assert {"torch", "transformers", "peft", "bitsandbytes", "accelerate"} <= set(found)
