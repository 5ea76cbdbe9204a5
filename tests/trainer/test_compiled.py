"""A decoder layer is compiled once for all, where its numbers are right and the run is long enough to repay it.

What PyTorch's compiler makes of the code is left to GPUs: here its tracing is real, and what it traced runs as it is.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from benchmarks.acceptance import kernels as acceptance
from benchmarks.acceptance.bench import Bench
from benchmarks.acceptance.findings import State
from tests.trainer import tiny
from tests.trainer.test_fast_paths import Others, arguments, trained
from tests.trainer.test_kernels import CONFIG, adapted, autocast_as_on_a_gpu
from tests.trainer.trainings import Kept
from tests.trainer.variants import make_mixture, rows
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lora_trainer.contract.config import ActivationCheckpointing, Kernels, LoraConfig, Quantization, TrainingConfig
from lora_trainer.data.tokens import Encoder, Example
from lora_trainer.model import compiled, fast_paths, liger, lora_kernel, repaying
from lora_trainer.model.attention import choose_attention
from lora_trainer.model.device import Device
from lora_trainer.model.fast_paths import COMPILED_LAYER, LIGER_ROPE, Chosen, Trial, prove
from lora_trainer.model.loading import Adapted, adapt, load_model, set_training
from lora_trainer.model.recompute import decoder_layers
from lora_trainer.places.base import Base, open_folder
from lora_trainer.ranks.collectives import ALONE
from lora_trainer.recipe import kernels
from lora_trainer.recipe.kernels import choose_kernels
from lora_trainer.training.batches import Budget, collate
from lora_trainer.training.loop import Training
from lora_trainer.training.loss import token_losses

__all__ = ["autocast_as_on_a_gpu"]
SELECTIVE, FULL = ActivationCheckpointing.SELECTIVE, ActivationCheckpointing.FULL
TAKEN = Chosen(taken=("compiled-layer",))
Code = Callable[..., Any]


@pytest.fixture
def device(cpu: Device) -> Device:
    """The CPU in the type of GPUs."""
    return dataclasses.replace(cpu, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def deep_base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Of four layers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "LAYERS", 4)
        return open_folder(tiny.make_model(tmp_path_factory.mktemp("models") / "deep"))


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[Code], Code]], None]]:
    """Compile on the CPU, too, by the function that is given: as it is, unless it is called."""

    def by(make: Callable[[Code], Code]) -> None:
        monkeypatch.setattr(compiled, "compile_code", make)
        compiled._compiled.cache_clear()

    monkeypatch.setattr(compiled, "DEVICES", {"cpu"})
    monkeypatch.setattr(kernels, "ALL", (COMPILED_LAYER,))
    by(lambda code: code)
    yield by
    compiled._compiled.cache_clear()


def changed(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Code], Code]:
    """Code that computes something else."""
    return lambda code: lambda *args, **kwargs: change(code(*args, **kwargs))


def failing(_result: torch.Tensor) -> torch.Tensor:
    """As a compiler that finds no other one."""
    raise RuntimeError("BackendCompilerFailed: backend='inductor' raised:\nRuntimeError: Failed to find C compiler.")


def computed(model: Adapted, lengths: Sequence[int], device: Device, *, packed: bool) -> list[torch.Tensor]:
    """Losses and gradients of rows of these lengths."""
    ids = [np.arange(5, 5 + length) for length in lengths]
    examples = [Example(input_ids=one, labels=one, truncated=False) for one in ids]
    batch = collate(examples, device.torch_device, packed=packed)
    set_training(model.model, on=True)
    losses = token_losses(model.model, model.head, batch, device)
    parameters = [parameter for parameter in model.model.parameters() if parameter.requires_grad]
    return [losses.detach(), *torch.autograd.grad(losses.sum(), parameters)]


def rotated(queries: torch.Tensor, keys: torch.Tensor, *angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """In the place of Liger's kernel."""
    found: tuple[torch.Tensor, torch.Tensor] = apply_rotary_pos_emb(queries, keys, *angles)
    return found


def three_times(x: torch.Tensor) -> torch.Tensor:
    """Something to compile."""
    return 3 * x


def lengthened(x: torch.Tensor, name: str) -> torch.Tensor:
    """What is compiled anew for each name."""
    return x + len(name)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(
    ("recompute", "packed", "most"),
    [(SELECTIVE, True, 4), (FULL, False, 1)],
    ids=["packed, MLPs recomputed", "padded, all recomputed"],
)
def test_one_compilation_serves_all_layers_and_lengths(
    *,
    deep_base: Base,
    device: Device,
    compiles: Callable[[Callable[[Code], Code]], None],
    monkeypatch: pytest.MonkeyPatch,
    recompute: ActivationCheckpointing,
    packed: bool,
    most: int,
) -> None:
    """Made in the trial, with other fast paths in the layer, on as many tokens as the model is wide: no later pack
    compiles anything, and results are those of the same operations."""
    torch._dynamo.reset()
    compiles(lambda code: torch.compile(code, dynamic=True, backend="eager"))
    monkeypatch.setattr(liger, "DEVICES", {"cpu"})
    monkeypatch.setattr(liger, "rotate", rotated)
    loaded = load_model(deep_base, Quantization.NONE, device)
    model = adapt(loaded, CONFIG, deep_base, device, 1, checkpointing=recompute)
    # Where rows cannot be packed, attention is the model's own, and compiled with the rest.
    assert not packed or choose_attention(model.model, device).packs
    assert lora_kernel.fuse(model.model) == 28
    for path in (LIGER_ROPE, fast_paths.RECOMPUTED_SWIGLU):
        for module in path.find(model.model):
            path.install(module)
    batches = [(24, 40), (30, 9), (17, 3), (64, 50)] if not packed else [(24, 40), (33,), (5, 9, 13), (64,), (2, 2, 7)]
    plain = [computed(model, lengths, device, packed=packed) for lengths in batches]
    before = compiled.compilations()
    ids = [np.arange(5, 5 + length) for length in batches[0]]
    examples = [Example(input_ids=one, labels=one, truncated=False) for one in ids]
    pack = collate(examples, device.torch_device, packed=packed).arguments
    found = prove(COMPILED_LAYER, model.model, model.head, pack, device, timed=False)
    assert (found.refusal, len(found.modules)) == (None, 4)
    assert 0 < compiled.compilations() - before <= most
    for layer in found.modules:
        COMPILED_LAYER.install(layer)
    made = compiled.compilations()
    for lengths, wanted in zip(batches, plain, strict=True):
        for ours, theirs in zip(computed(model, lengths, device, packed=packed), wanted, strict=True):
            assert torch.equal(ours, theirs)
    assert compiled.compilations() == made


@pytest.mark.usefixtures("compiles")
def test_passes_that_train_are_compiled_alone(
    deep_base: Base, encoder: Encoder, device: Device, compiles: Callable[[Callable[[Code], Code]], None]
) -> None:
    """Not the first layer's, whose input needs no gradient; nor is anything of an evaluation. An adapter trains as
    without."""
    calls = []

    def counting(code: Code) -> Code:
        @functools.wraps(code)
        def counted(*args: Any, **kwargs: Any) -> Any:
            calls.append(code.__qualname__)
            return code(*args, **kwargs)

        return counted

    compiles(counting)
    examples, found = rows(encoder, 6), []
    for wanted in (Kernels.REFERENCE, Kernels.AUTO):
        model = adapted(deep_base, device, CONFIG)
        chosen = choose_kernels(wanted, model, examples, device, ALONE, packed=False, kept=TAKEN)
        assert chosen == (TAKEN if wanted is Kernels.AUTO else Chosen())
        calls.clear()
        found.append(trained(model, examples, device))
    assert all(map(torch.equal, *found))
    # Two steps of a micro-batch for three rows each.
    assert calls == ["LlamaDecoderLayer.forward"] * (3 * 2)
    calls.clear()
    set_training(model.model, on=True)
    with torch.no_grad():
        model.model(**arguments(encoder, device))
    set_training(model.model, on=False)
    model.model(**arguments(encoder, device))
    assert calls == []


def test_missing_memory_in_compiled_code_halves_micro_batches(
    tiny_base: Base, encoder: Encoder, device: Device, compiles: Callable[[Callable[[Code], Code]], None]
) -> None:
    """As in any other."""
    shortages = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")]

    def short_once(code: Code) -> Code:
        def short(*args: Any, **kwargs: Any) -> Any:
            if shortages:
                raise shortages.pop()
            return code(*args, **kwargs)

        return short

    model, examples, listener = adapted(tiny_base, device, CONFIG), rows(encoder, 6), Kept()
    compiles(short_once)
    for layer in decoder_layers(model.model):
        COMPILED_LAYER.install(layer)
    longest = int(examples.lengths.max())
    config = TrainingConfig(epochs=None, max_steps=2, effective_batch_size=6)
    training = Training(
        adapted=model,
        examples=examples,
        config=config,
        budget=Budget.of(4, longest),
        device=device,
        listener=listener,
    )
    assert training.run().steps == 2
    assert listener.budgets == [2 * longest]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda result: 1.01 * result, "its result errs by 1.0e-02, plain PyTorch's by "),
        (lambda result: result + 0.01 * (result - result.detach()), "the gradient of its input errs by 1.0e-02, plain"),
        (failing, "it fails: RuntimeError: BackendCompilerFailed: backend='inductor' raised:"),
    ],
    ids=["1 % wrong", "a gradient 1 % wrong", "fails"],
)
def test_code_that_is_wrong_is_left_out(
    *,
    tiny_base: Base,
    encoder: Encoder,
    cpu: Device,
    compiles: Callable[[Callable[[Code], Code]], None],
    change: Callable[[torch.Tensor], torch.Tensor],
    sentence: str,
) -> None:
    """With one sentence, and without a trace."""
    compiles(changed(change))
    model = adapted(tiny_base, cpu, CONFIG)
    before = {name: parameter.clone() for name, parameter in model.model.named_parameters()}
    found = prove(COMPILED_LAYER, model.model, model.head, arguments(encoder, cpu), cpu, timed=False)
    assert str(found.refusal).startswith(sentence)
    assert not any("forward" in vars(layer) or layer.training for layer in decoder_layers(model.model))
    assert all(torch.equal(one, before[name]) for name, one in model.model.named_parameters())


@pytest.mark.parametrize(
    ("fast_s", "compiling_s", "passes", "sentence"),
    [
        (0.8, 30.0, 1000, None),
        (0.8, 30.0, 30, ""),
        (0.8, 50.0, 100, "it saves 400.0 of 2000.0 ms in each of 100 micro-batches, 40 s in all, and compiling took 5"),
        (0.97, 1.0, 1000, "it saves 60.0 of 2000.0 ms in each of 1000 micro-batches, 60 s in all, and compiling took"),
        (1.2, 1.0, 1000, "it takes longer: 2400.0 ms forward and backward, plain PyTorch 2000.0 ms"),
    ],
    ids=["repaid", "a short run", "not repaid", "hardly faster", "slower"],
)
def test_a_run_compiles_where_that_is_repaid(
    *,
    tiny_base: Base,
    encoder: Encoder,
    cpu: Device,
    compiles: Callable[[Callable[[Code], Code]], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fast_s: float,
    compiling_s: float,
    passes: int,
    sentence: str | None,
) -> None:
    """By both layers, in its micro-batches. One that is too short for any gain does not even try, and is no advice."""
    caplog.set_level("INFO")
    clock, made = [0.0], []

    def compiling(code: Code) -> Code:
        made.append(code)
        clock[0] += compiling_s
        return code

    compiles(compiling)
    monkeypatch.setattr(fast_paths, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(Trial, "seconds", lambda *_: (fast_s, 1.0))
    monkeypatch.setattr(Trial, "plain_seconds", lambda *_: 1.0)
    model = adapted(tiny_base, cpu, CONFIG)
    choose = functools.partial(choose_kernels, Kernels.AUTO, model, rows(encoder, 4), cpu, ALONE, packed=False)
    found = choose(kept=None, passes=passes)
    assert bool(found.taken) is (sentence is None)
    assert [one.startswith(f"compiled-layer: {sentence}") for one in found.left_out] == [True] * bool(sentence)
    wait = "compiling takes 20 s or more, and in 30 micro-batches of 2000.0 ms could save 16 s at most"
    assert (wait in caplog.text) is (sentence == "")
    assert bool(made) is (passes * 2 * repaying._MOST_SAVED > repaying.LEAST_S)
    assert choose(kept=None) == Chosen(), "a run of no known length compiles nothing"


def test_what_is_too_short_for_one_process_none_compiles(
    tiny_base: Base,
    encoder: Encoder,
    cpu: Device,
    compiles: Callable[[Callable[[Code], Code]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Near the border clocks differ: it would wait for the others' minutes of compiling."""
    compiles(lambda _: pytest.fail("compiled"))
    monkeypatch.setattr(Trial, "plain_seconds", lambda *_: 1.0)
    monkeypatch.setattr(Others, "said", f"{repaying.TOO_SHORT}: there")
    model = adapted(tiny_base, cpu, CONFIG)
    chosen = choose_kernels(Kernels.AUTO, model, rows(encoder, 4), cpu, Others(), packed=False, kept=None, passes=1000)
    assert chosen == Chosen()


def test_a_later_attempt_keeps_it_without_a_clock(
    tiny_base: Base,
    encoder: Encoder,
    cpu: Device,
    compiles: Callable[[Callable[[Code], Code]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And reports it where it fails there."""
    monkeypatch.setattr(Trial, "plain_seconds", lambda *_: pytest.fail("timed"))
    model = adapted(tiny_base, cpu, CONFIG)
    choose = functools.partial(choose_kernels, Kernels.AUTO, model, rows(encoder, 4), cpu, ALONE, packed=False)
    assert choose(kept=TAKEN, passes=9, step=7) == TAKEN
    assert choose(kept=Chosen(), passes=9, step=7) == Chosen()
    for layer in decoder_layers(model.model):
        COMPILED_LAYER.remove(layer)
    compiles(changed(failing))
    lost = choose(kept=TAKEN, passes=9, step=7)
    assert (lost.taken, lost.changed_step) == ((), 7)
    assert lost.left_out[0].startswith("compiled-layer: it fails: RuntimeError: BackendCompilerFailed")
    assert lost.left_out[0].endswith("it was taken up to step 7")


@pytest.mark.usefixtures("compiles", "autocast_as_on_a_gpu")
@pytest.mark.parametrize(
    "what", ["nothing", "dropout", "NF4", "experts", "divided", "another device", "many kinds", "many scales"]
)
def test_what_is_not_compiled(
    tiny_base: Base, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """As the documentation says."""
    base = open_folder(make_mixture(tmp_path / "mixture")) if what == "experts" else tiny_base
    quantization = Quantization.NF4 if what == "NF4" else Quantization.NONE
    lora = LoraConfig(rank=4, alpha=8, dropout=0.1 if what == "dropout" else 0.0)
    model = adapted(base, device, lora, quantization).model
    layer: Any = decoder_layers(model)[0]
    if what == "divided":
        layer.unshard = lambda: None
    if what == "many kinds":
        monkeypatch.setattr(compiled, "_MOST_KINDS", 1)
        layer.self_attn.scaling = 0.5
    if what == "many scales":
        monkeypatch.setattr(compiled, "_MOST_KINDS", 1)
        layer.mlp.up_proj.scaling["default"] = 0.5
    if what == "another device":
        monkeypatch.setattr(compiled, "DEVICES", {"cuda"})
    assert len(COMPILED_LAYER.find(model)) == (2 if what == "nothing" else 0)


@pytest.mark.usefixtures("compiles")
def test_a_layer_that_draws_random_numbers_is_not_compared(tiny_base: Base, encoder: Encoder, cpu: Device) -> None:
    """Such as one whose attention has dropout."""
    model = adapted(tiny_base, cpu, CONFIG)
    for layer in decoder_layers(model.model):
        vars(layer)["_modules"]["self_attn"].attention_dropout = 0.1
    found = prove(COMPILED_LAYER, model.model, model.head, arguments(encoder, cpu), cpu, timed=False)
    wanted = "it cannot be compared: ValueError: LlamaDecoderLayer draws random numbers, as dropout does"
    assert found.refusal == wanted


def test_what_the_compiler_fails_at_later_is_computed_without(
    compiles: Callable[[Callable[[Code], Code]], None], caplog: pytest.LogCaptureFixture
) -> None:
    """And logged; a device without memory stays an error. Nothing is compiled for ever, nor by other processes."""
    compiled._prepare()
    assert torch._inductor.config.compile_threads == 1

    def refuses(_graph: Any, _inputs: Any) -> Any:
        raise RuntimeError("no kernel for this shape")

    def short(_graph: Any, _inputs: Any) -> Any:
        def run(*_: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        return run

    x = torch.ones(3)
    torch._dynamo.reset()
    with caplog.at_level("WARNING"):
        assert torch.equal(torch.compile(three_times, backend=refuses)(x), 3 * x)
    assert any("no kernel for this shape" in line for line in caplog.messages)
    torch._dynamo.reset()
    with pytest.raises(torch.OutOfMemoryError):
        torch.compile(three_times, backend=short)(x)
    before = compiled.compilations()
    add: Any = torch.compile(lengthened, backend="eager")
    for number in range(100):
        assert torch.equal(add(x, number * "a"), x + number)
    assert compiled.compilations() - before <= torch._dynamo.config.recompile_limit < 100


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(
    ("dynamic", "state", "again"), [(True, State.PASSED, 0), (False, State.FAILED, 4)], ids=["open", "fixed"]
)
def test_the_acceptance_of_a_gpu_counts_compilations(
    *,
    device: Device,
    compiles: Callable[[Callable[[Code], Code]], None],
    dynamic: bool,
    state: State,
    again: int,
) -> None:
    """One that is made anew for another length fails it, though its numbers are right."""
    torch._dynamo.reset()
    compiles(lambda code: torch.compile(code, dynamic=dynamic, backend="eager"))
    bench = Bench(device=device, tiny=True)
    check = next(one for one in acceptance.checks(bench) if one.name == "compiled layers")
    outcome = check.run()
    assert (outcome.state, f"for 2 layers, and {again} for another length" in outcome.said) == (state, True), outcome
