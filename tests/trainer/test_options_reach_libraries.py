"""Each leaf of the adapter's and the training's configuration reaches the library object that it is meant for.

A whole run is watched from outside: what PEFT's adapter, the optimizer, the batches, autocast and clipping were given.
A leaf without a row in the table fails; so does one whose change nobody notices.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.optim.adamw import AdamW8bit
from tests.trainer import variants
from tests.trainer.conftest import make_config
from tests.trainer.runs import Workplace, prepared
from transformers import LlamaForCausalLM

from lora_trainer.distributed.reports import Reporter
from lora_trainer.model.loading import Adapted, adapt
from lora_trainer.result import export
from lora_trainer.result.export import write_result
from lora_trainer.spec.config import LoraConfig, TrainingConfig
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train import evaluator, loop, session, step
from lora_trainer.train.batches import Batch, collate
from lora_trainer.train.evaluate import Evaluation, evaluate
from lora_trainer.train.optimizers import make_optimizer
from lora_trainer.train.run import RunContext, run_training


@dataclass(slots=True)
class Seen:
    """What the libraries were given in one run. Lists have an entry for each micro-batch, step or evaluation."""

    adapted: list[Adapted] = field(default_factory=list)
    layers: list[Any] = field(default_factory=list)
    recomputes: list[bool] = field(default_factory=list)
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    step_rows: list[int] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    autocast: set[torch.dtype | None] = field(default_factory=set)
    evaluations: int = 0

    @property
    def peft(self) -> Any:
        """PEFT's configuration of the adapter."""
        return self.adapted[0].model.peft_config["default"]

    @property
    def first_layer(self) -> Any:
        """PEFT's module on the first query projection, which the base no longer has after the training."""
        return self.layers[0]

    @property
    def group(self) -> Mapping[str, Any]:
        """What the optimizer knows of its parameters."""
        return self.optimizers[0].param_groups[0]


def watch(patch: pytest.MonkeyPatch, seen: Seen) -> None:
    """Record what reaches each library; nothing that it sees is changed, but evaluations get worse and worse."""
    forward, clip = LlamaForCausalLM.forward, torch.nn.utils.clip_grad_norm_

    def record_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        enabled = torch.is_autocast_enabled("cpu")
        seen.autocast.add(torch.get_autocast_dtype("cpu") if enabled else None)
        return forward(self, *args, **kwargs)

    def record_adapt(*args: Any, **kwargs: Any) -> Adapted:
        adapted = adapt(*args, **kwargs)
        seen.adapted.append(adapted)
        seen.layers.append(adapted.model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj"))
        seen.recomputes.append(adapted.model.get_base_model().model.gradient_checkpointing)
        return adapted

    def record_optimizer(*args: Any) -> torch.optim.Optimizer:
        optimizer = make_optimizer(*args)
        optimizer.register_step_pre_hook(note_step)
        seen.optimizers.append(optimizer)
        return optimizer

    def note_step(optimizer: Any, _args: Any, _kwargs: Any) -> None:
        seen.rates.append(float(optimizer.param_groups[0]["lr"]))
        seen.step_rows.append(sum(_rows(batch) for batch in seen.batches) - sum(seen.step_rows))

    def record_clip(parameters: Any, norm: float) -> Any:
        seen.norms.append(norm)
        return clip(parameters, norm)

    def record_collate(*args: Any, **kwargs: Any) -> Batch:
        seen.batches.append(collate(*args, **kwargs))
        return seen.batches[-1]

    def record_evaluate(*args: Any, **kwargs: Any) -> Evaluation:
        seen.evaluations += 1
        result: Evaluation = evaluate(*args, **kwargs)
        return dataclasses.replace(result, sums=tuple(value + seen.evaluations for value in result.sums))

    patch.setattr(LlamaForCausalLM, "forward", record_forward)
    patch.setattr(session, "adapt", record_adapt)
    patch.setattr(loop, "make_optimizer", record_optimizer)
    patch.setattr(torch.nn.utils, "clip_grad_norm_", record_clip)
    patch.setattr(step, "collate", record_collate)
    patch.setattr(evaluator, "evaluate", record_evaluate)
    for name in ("write_adapter", "write_curves", "write_manifest"):
        patch.setattr(export, name, lambda *args, **kwargs: None)


def _rows(batch: Batch) -> int:
    return len(batch.input_ids) if batch.segments is None else len(batch.segments.lengths)


def observe(root: Path, model: Path, lora: Mapping[str, Any], training: Mapping[str, Any]) -> Seen:
    """Run a configuration in this process."""
    volumes = Volumes(claims=Workplace.make(root, model).claims)
    settings = {"maxSteps": 4, "packing": "Disabled", "learningRate": "0.01", "effectiveBatchSize": 8}
    # The proof of fast paths takes as long as some steps.
    settings |= {"kernels": "Reference", **training}
    config = make_config(lora=lora, training=settings)
    (root / "adapter").mkdir()
    seen = Seen()
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, seen)
        run_training(
            config,
            prepared(config, volumes, root / "prepared"),
            volumes,
            Hub(),
            folder=root / "adapter",
            reporter=Reporter(None),
            run_context=RunContext(),
            write_result=write_result,
        )
    return seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A change of a leaf, what to look at, and what is to be seen; `beside` is set in both runs."""

    change: Mapping[str, Any]
    look: Callable[[Seen], Any]
    want: Any
    beside: Mapping[str, Any] = field(default_factory=dict)
    mixture: bool = False


LORA: Mapping[str, Probe] = {
    "rank": Probe(
        change={"rank": 2}, look=lambda s: (s.peft.r, s.first_layer.lora_A["default"].out_features), want=(2, 2)
    ),
    "alpha": Probe(
        change={"alpha": 20}, look=lambda s: (s.peft.lora_alpha, s.first_layer.scaling["default"]), want=(20, 5)
    ),
    "layers": Probe(change={"layers": "QueryValue"}, look=lambda s: s.peft.target_modules, want={"q_proj", "v_proj"}),
    "target_modules": Probe(
        change={"targetModules": ["q_proj"]}, look=lambda s: s.peft.target_modules, want={"q_proj"}
    ),
    "exclude_modules": Probe(
        change={"excludeModules": ["k_proj"]},
        look=lambda s: s.peft.target_modules,
        want={"q_proj", "v_proj", "o_proj"},
        beside={"layers": "Attention"},
    ),
    "layer_indices": Probe(change={"layerIndices": [0]}, look=lambda s: s.peft.layers_to_transform, want=[0]),
    "dropout": Probe(
        change={"dropout": "0.25"},
        look=lambda s: (s.peft.lora_dropout, getattr(s.first_layer.lora_dropout["default"], "p", 0.0)),
        want=(0.25, 0.25),
    ),
    "scaling": Probe(
        change={"scaling": "RankStabilized"},
        look=lambda s: (s.peft.use_rslora, s.first_layer.scaling["default"]),
        want=(True, 4.0),
    ),
    "variant": Probe(
        change={"variant": "DoRA"},
        look=lambda s: (s.peft.use_dora, "default" in s.first_layer.lora_magnitude_vector),
        want=(True, True),
    ),
    "init": Probe(
        change={"init": "OLoRA"},
        look=lambda s: (s.peft.init_lora_weights, len(s.adapted[0].starts)),
        want=("olora", 14),
    ),
    "rank_pattern": Probe(
        change={"rankPattern": {"q_proj": 2}},
        look=lambda s: (s.peft.rank_pattern, s.first_layer.r["default"]),
        want=({"q_proj": 2}, 2),
    ),
    "alpha_pattern": Probe(
        change={"alphaPattern": {"q_proj": 2}},
        look=lambda s: (s.peft.alpha_pattern, s.first_layer.scaling["default"]),
        want=({"q_proj": 2}, 0.5),
    ),
    "modules_to_save": Probe(
        change={"modulesToSave": ["norm"]}, look=lambda s: s.peft.modules_to_save, want=["model.norm"]
    ),
    "target_parameters": Probe(
        change={"targetParameters": ["experts.down_proj"]},
        look=lambda s: s.peft.target_parameters and set(s.peft.target_parameters),
        want={"experts.down_proj"},
        mixture=True,
    ),
}

ONE_STEP = {"maxSteps": 1}
TRAINING: Mapping[str, Probe] = {
    "epochs": Probe(change={"epochs": "0.5"}, look=lambda s: len(s.rates), want=2, beside={"maxSteps": None}),
    "max_steps": Probe(change={"maxSteps": 3}, look=lambda s: len(s.rates), want=3),
    "learning_rate": Probe(change={"learningRate": "0.002"}, look=lambda s: max(s.rates), want=0.002),
    "schedule": Probe(change={"schedule": "Constant"}, look=lambda s: s.rates[1:], want=[0.01, 0.01, 0.01]),
    "warmup_ratio": Probe(change={"warmupRatio": "0.75"}, look=lambda s: s.rates[:3], want=[0.0025, 0.005, 0.0075]),
    "effective_batch_size": Probe(
        change={"effectiveBatchSize": 6}, look=lambda s: set(s.step_rows), want={6}, beside=ONE_STEP
    ),
    "micro_batch_size": Probe(
        change={"microBatchSize": 1}, look=lambda s: {_rows(b) for b in s.batches}, want={1}, beside=ONE_STEP
    ),
    "max_sequence_length": Probe(
        change={"maxSequenceLength": 41}, look=lambda s: max(b.input_ids.shape[1] for b in s.batches), want=41
    ),
    "packing": Probe(
        change={"packing": "Enabled"},
        look=lambda s: {(len(b.input_ids), b.segments is None) for b in s.batches},
        want={(1, False)},
        beside=ONE_STEP,
    ),
    "loss_on": Probe(
        change={"lossOn": "All"},
        look=lambda s: all(b.target_positions[0] == 0 for b in s.batches),
        want=True,
        beside=ONE_STEP,
    ),
    "optimizer": Probe(
        change={"optimizer": "AdamW8bit"}, look=lambda s: type(s.optimizers[0]), want=AdamW8bit, beside=ONE_STEP
    ),
    "weight_decay": Probe(
        change={"weightDecay": "0.125"}, look=lambda s: s.group["weight_decay"], want=0.125, beside=ONE_STEP
    ),
    "max_grad_norm": Probe(change={"maxGradNorm": "0.5"}, look=lambda s: set(s.norms), want={0.5}, beside=ONE_STEP),
    "precision": Probe(
        change={"precision": "BF16"}, look=lambda s: torch.bfloat16 in s.autocast, want=True, beside=ONE_STEP
    ),
    "activation_checkpointing": Probe(
        change={"activationCheckpointing": "Full"},
        look=lambda s: s.recomputes == [True],
        want=True,
        beside=ONE_STEP,
    ),
    "kernels": Probe(
        change={"kernels": "Auto"}, look=lambda s: "forward" in vars(s.first_layer), want=True, beside=ONE_STEP
    ),
    "seed": Probe(
        change={"seed": 43},
        look=lambda s: (s.batches[0].input_ids.tolist(), s.first_layer.lora_A["default"].weight.tolist()),
        want=None,
        beside=ONE_STEP,
    ),
    "eval_steps": Probe(change={"evalSteps": 2}, look=lambda s: s.evaluations > 2, want=True),
    "early_stopping_patience": Probe(
        change={"earlyStoppingPatience": 1}, look=lambda s: len(s.rates) < 4, want=True, beside={"evalSteps": 1}
    ),
}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts."""
    return variants.make_mixture(tmp_path_factory.mktemp("models") / "mixture")


@pytest.mark.parametrize(("kind", "table"), [(LoraConfig, LORA), (TrainingConfig, TRAINING)])
def test_every_leaf_has_a_probe(kind: Any, table: Mapping[str, Probe]) -> None:
    """A new option comes with one."""
    assert {leaf.name for leaf in dataclasses.fields(kind)} == set(table)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, mixture: Path) -> Callable[..., Seen]:
    """Runs a probe's configuration, with its change or without; equal runs only once."""
    known: dict[str, Seen] = {}

    def run_once(probe: Probe, lora: Mapping[str, Any], training: Mapping[str, Any]) -> Seen:
        key = repr((probe.mixture, sorted(lora.items()), sorted(training.items())))
        if key not in known:
            model = mixture if probe.mixture else tiny_folder
            known[key] = observe(tmp_path_factory.mktemp("run"), model, lora, training)
        return known[key]

    return run_once


@pytest.mark.parametrize("leaf", list(LORA))
def test_a_leaf_of_the_adapter_reaches_peft(run: Callable[..., Seen], leaf: str) -> None:
    """With its value, and otherwise than before."""
    probe, lora, training = LORA[leaf], {"rank": 4, "alpha": 8}, {"maxSteps": 1}
    before = run(probe, {**lora, **probe.beside}, training)
    after = run(probe, {**lora, **probe.beside, **probe.change}, training)
    assert probe.look(after) == probe.want
    assert probe.look(before) != probe.want


@pytest.mark.parametrize("leaf", list(TRAINING))
def test_a_leaf_of_the_training_reaches_its_library(run: Callable[..., Seen], leaf: str) -> None:
    """As above."""
    probe = TRAINING[leaf]
    before = probe.look(run(probe, {}, probe.beside))
    after = probe.look(run(probe, {}, {**probe.beside, **probe.change}))
    if probe.want is not None:
        assert after == (pytest.approx(probe.want) if isinstance(probe.want, float | list) else probe.want)
    if isinstance(before, tuple):
        assert all(old != new for old, new in zip(before, after, strict=True))
    assert before != after
