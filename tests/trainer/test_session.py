"""Adapters that are trained one after the other on a base that is read once: each as if it were alone, to the byte."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.conftest import make_config
from tests.trainer.families import make_family
from tests.trainer.test_sharding import planned
from tests.trainer.trainings import ROWS, STATS, Kept

from lora_trainer.data.dataset import Data
from lora_trainer.data.formats import PlainText
from lora_trainer.data.store import Examples
from lora_trainer.data.tokenizer import load_encoder
from lora_trainer.distributed.collectives import Ranks
from lora_trainer.errors import ConfigError
from lora_trainer.model.device import Device
from lora_trainer.model.loading import Loaded, load_model
from lora_trainer.plan.hint_checks import Columns
from lora_trainer.result.export import write_adapter
from lora_trainer.spec.config import DatasetFormat, LossOn
from lora_trainer.spec.summary import ResolvedRun
from lora_trainer.storage.base import Base, open_folder
from lora_trainer.train.checkpoint_policy import CheckpointPolicy
from lora_trainer.train.evaluate import Evaluation
from lora_trainer.train.resolve_auto import RunSetup
from lora_trainer.train.session import Session

KINDS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "dropout": {"lora": {"dropout": "0.2", "layers": "Attention", "rank": 2}, "training": {"seed": 7}},
    "DoRA": {"lora": {"variant": "DoRA"}},
    "PiSSA": {"lora": {"init": "PiSSA"}},
    "OLoRA": {"lora": {"init": "OLoRA", "layers": "QueryValue"}},
    "tied embeddings": {"lora": {"modulesToSave": ["embed_tokens"]}},
    "norms": {"lora": {"modulesToSave": ["input_layernorm", "norm"]}},
    "plain PyTorch": {"training": {"kernels": "Reference", "packing": "Disabled", "microBatchSize": 2}},
    "recomputed": {"training": {"activationCheckpointing": "Full"}},
    "recomputed MLPs": {"training": {"activationCheckpointing": "Selective"}},
    "experts": {"lora": {"layers": "Attention", "targetParameters": ["experts.gate_up_proj", "experts.down_proj"]}},
}

PAIRS = (
    *(("None", "plain", other) for other in KINDS if other not in ("plain", "experts")),
    ("None", "PiSSA", "tied embeddings"),
    ("None", "norms", "DoRA"),
    ("NF4", "plain", "DoRA"),
    ("NF4", "plain", "norms"),
    ("NF4", "tied embeddings", "recomputed"),
    ("INT8", "plain", "norms"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Opens sessions for one base on the CPU, and trains in them."""

    base: Base
    data: Data
    device: Device
    root: Path

    def session(self, quantization: str = "None") -> Session:
        """A new one."""
        setup = self.setup("plain", quantization)
        return Session.open(setup, self.base, self.data, self.device, Ranks())

    def setup(self, kind: str, quantization: str = "None") -> RunSetup:
        """A run of this kind, with three steps."""
        training = {"maxSteps": 3, **KINDS[kind].get("training", {})}
        lora = KINDS[kind].get("lora", {})
        return RunSetup(config=make_config(lora=lora, training=training, quantization=quantization), plan=None)

    def train(self, session: Session, kind: str, quantization: str = "None") -> Mapping[str, Any]:
        """All that an adapter of this kind and its training come to."""
        callback, folder = Kept(), self.root / f"{len(list(self.root.iterdir()))}"
        result = session.train(self.setup(kind, quantization), callback=callback)
        assert result.adapter is not None
        write_adapter(result.adapter, folder, None)
        return {
            "files": {path.name: path.read_bytes() for path in folder.iterdir()},
            "steps": [(step.loss, step.gradient_norm, step.fill) for step in callback.steps],
            "course": dataclasses.replace(result.trainer_state, seconds=0.0),
            "rest": (result.resolved, result.before, result.after, result.noise, result.left_alone),
        }


def make_bench(base: Base, device: Device, root: Path) -> Bench:
    """With rows of several lengths."""
    encoder = load_encoder(base, LossOn.COMPLETION, 256)

    def rows(count: int) -> Examples:
        texts = (f"Ahoy {i}! " + "Fair winds. " * (i % 4) for i in range(count))
        return Examples.of(encoder.encode(PlainText(where=text, text=text)) for text in texts)

    data = Data(
        training=rows(12),
        evaluation=rows(3),
        held_out=True,
        kind=DatasetFormat.TEXT,
        fingerprint="sha256:2",
        dataset_revision=None,
        validation_revision=None,
        held_out_digest=None,
        capped=False,
        columns=Columns(format=DatasetFormat.TEXT, read={"text": "text"}, unread=()),
        stats=STATS,
        rows=ROWS,
        day=None,
        template=None,
        template_digest=None,
        verbatim=True,
        largest_token=0,
        first="",
        doubts=(),
    )
    root.mkdir()
    return Bench(base=base, data=data, device=device, root=root)


@pytest.fixture
def bench(tiny_base: Base, cpu: Device, tmp_path: Path) -> Bench:
    """With the tiny model, whose embeddings are tied."""
    return make_bench(tiny_base, cpu, tmp_path / "adapters")


@pytest.fixture(scope="module")
def alone(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Mapping[str, Any]]:
    """What an adapter comes to in a session of its own."""
    cpu = Device(torch_device=torch.device("cpu"), name="cpu", dtype=torch.float32)
    bench = make_bench(open_folder(tiny_folder), cpu, tmp_path_factory.mktemp("alone") / "adapters")
    known: dict[tuple[str, str], Mapping[str, Any]] = {}

    def found(kind: str, quantization: str) -> Mapping[str, Any]:
        key = kind, quantization
        if key not in known:
            known[key] = bench.train(bench.session(quantization), kind, quantization)
        return known[key]

    return found


def state_of(session: Session, setup: RunSetup) -> Mapping[str, Any]:
    """All that the base is made of, its weights as digests."""
    model = session._held(setup).model
    tensors = {name: one for name, one in model.state_dict().items() if isinstance(one, torch.Tensor)}
    return {
        "weights": {name: hashlib.sha256(one.numpy().tobytes()).hexdigest() for name, one in tensors.items()},
        "trained": [name for name, one in model.named_parameters() if one.requires_grad or one.grad is not None],
        "modules": {
            name: (type(module), sorted(vars(module)), [len(hooks) for hooks in hooks_of(module)], module.training)
            for name, module in model.named_modules()
        },
        "tied": model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        "configuration": model.config.to_dict(),
        "attention": model.config._attn_implementation,
    }


def hooks_of(module: torch.nn.Module) -> list[Any]:
    """Before and after its passes."""
    return [module._forward_pre_hooks, module._forward_hooks, module._backward_hooks]


@pytest.mark.parametrize(("quantization", "first", "second"), PAIRS)
def test_each_adapter_is_as_if_it_were_alone(
    bench: Bench, alone: Callable[[str, str], Mapping[str, Any]], *, quantization: str, first: str, second: str
) -> None:
    """After one of another kind, in both orders; and the base is afterwards what it was."""
    session = bench.session(quantization)
    before = state_of(session, bench.setup(first, quantization))
    for kind in (first, second, first):
        assert bench.train(session, kind, quantization) == alone(kind, quantization)
        assert state_of(session, bench.setup(kind, quantization)) == before


@pytest.mark.parametrize(("family", "kind"), [("mixtral", "experts"), ("gpt2", "PiSSA"), ("gemma3_text", "norms")])
def test_so_it_is_in_other_families(cpu: Device, tmp_path: Path, *, family: str, kind: str) -> None:
    """Experts that are parametrized in each pass, weights that are transposed, attention in windows."""
    bench = make_bench(open_folder(make_family(tmp_path / "base", family)), cpu, tmp_path / "adapters")
    apart = {one: bench.train(bench.session(), one) for one in ("plain", kind)}
    session = bench.session()
    before = state_of(session, bench.setup(kind))
    for one in ("plain", kind, "plain"):
        assert bench.train(session, one) == apart[one]
        assert state_of(session, bench.setup(one)) == before


@pytest.mark.parametrize("kind", ["plain", "PiSSA", "tied embeddings"])
def test_a_training_that_fails_leaves_the_base_as_it_was(
    bench: Bench, alone: Callable[[str, str], Mapping[str, Any]], kind: str
) -> None:
    """The next adapter is trained as if there had been none."""

    def refused(_resolved: ResolvedRun, _before: Evaluation) -> CheckpointPolicy | None:
        raise RuntimeError("refused")

    session = bench.session()
    before = state_of(session, bench.setup(kind))
    with pytest.raises(RuntimeError, match="refused"):
        session.train(bench.setup(kind), checkpoint_policy=refused)
    assert state_of(session, bench.setup(kind)) == before
    assert bench.train(session, "plain") == alone("plain", "None")


def test_the_base_is_read_once_and_again_after_an_init_that_alters_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before the next adapter needs it."""
    read = []

    def counted(*given: Any, **more: Any) -> Loaded:
        read.append(given)
        return load_model(*given, **more)

    monkeypatch.setattr("lora_trainer.train.session.load_model", counted)
    session = bench.session()
    counts = []
    for kind in ("plain", "tied embeddings", "PiSSA", "plain"):
        bench.train(session, kind)
        counts.append(len(read))
    assert counts == [1, 1, 1, 2]


def test_a_base_that_is_divided_takes_one_adapter(bench: Bench) -> None:
    """Also one that a second adapter would have divided: one sentence, before anything is done."""
    session, plain = bench.session(), bench.setup("plain")
    bench.train(session, "plain")
    divided = dataclasses.replace(plain, plan=planned(sharded=True, sharded_over=2))
    with pytest.raises(ConfigError, match=r"takes one adapter for a session: open another session$"):
        session.train(divided)
    session.mesh = object()
    with pytest.raises(ConfigError, match=r"takes one adapter for a session: open another session$"):
        session.train(plain)


def test_a_session_holds_its_base_in_one_way(bench: Bench) -> None:
    """And says so to a run that wants another."""
    with pytest.raises(ConfigError, match=r"^quantization is NF4: the session holds .* with None; open another"):
        bench.session().train(bench.setup("plain", "NF4"))
