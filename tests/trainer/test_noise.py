"""A verification that judges by the noise of the run: what it allows, what it measures, and faults that exceed it."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.trainer import forked
from tests.trainer.conftest import make_config
from tests.trainer.runs import Workplace, read_json
from tests.trainer.test_verify import WEIGHTS, sign_again, trained
from tests.trainer.tiny import QUESTIONS, enlarged, in_16_bits
from tests.trainer.tiny import chats as tiny_chats
from torch import nn

from lora_trainer.data.dataset import Data
from lora_trainer.data.store import Examples
from lora_trainer.data.survey import Sources
from lora_trainer.data.tokens import IGNORED, Example
from lora_trainer.errors import VerificationError
from lora_trainer.model.device import Device
from lora_trainer.result import inputs
from lora_trainer.result import verify as verification
from lora_trainer.result.verify import judge, verify
from lora_trainer.spec.config import Quantization, TrainConfig
from lora_trainer.spec.names import run_suffix
from lora_trainer.spec.reasons import Reason
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.manifest import Manifest, read_manifest
from lora_trainer.storage.sealed import MANIFEST
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.batches import Batch, MicroBatchLimit
from lora_trainer.train.evaluate import Evaluation, evaluate
from lora_trainer.train.noise import DRAWS, FLOORS, TOLERANCES, measure_noise, noise_of, tolerance_of

# What is allowed.


@pytest.mark.parametrize(
    ("noise", "improvement", "types", "unmeasured", "wanted"),
    [
        pytest.param(1e-6, 2.0, ("fp32", "fp32"), False, 1e-3, id="never below 0.001 in fp32"),
        pytest.param(1e-6, 2.0, ("bf16", "bf16"), False, 5e-3, id="never below 0.005 in 16 bits"),
        pytest.param(0.004, 2.0, ("bf16", "bf16"), False, 0.012, id="three times the noise"),
        pytest.param(0.004, 2.0, ("fp32", "fp32"), False, 0.012, id="in fp32 too"),
        pytest.param(0.3, 2.0, ("fp16", "fp16"), False, 0.5, id="never above a quarter of the improvement"),
        pytest.param(0.3, 0.002, ("fp32", "fp32"), False, 1e-3, id="or what was allowed without noise"),
        pytest.param(0.3, -1.0, ("bf16", "bf16"), False, 2e-2, id="where nothing improved, too"),
        pytest.param(1e-6, 2.0, ("fp32", "bf16"), False, 5e-3, id="the coarser type counts"),
        pytest.param(1e-6, 2.0, ("fp32", "bf16"), True, 2e-2, id="another device may differ by more"),
        pytest.param(0.02, 2.0, ("fp32", "bf16"), True, 0.06, id="and the noise counts there, too"),
        pytest.param(1e-6, 2.0, ("fp32", "a type that nobody knows"), False, 1e-3, id="types that nobody knows"),
    ],
)
def test_the_tolerance_follows_the_noise_within_limits(
    *, noise: float, improvement: float, types: tuple[str, str], unmeasured: bool, wanted: float
) -> None:
    """In nats per token."""
    assert tolerance_of(noise, improvement, types, unmeasured=unmeasured) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("tokens", "kind", "wanted"),
    [(1000, "bf16", 5e-3), (256, "bf16", 5e-3), (64, "bf16", 1e-2), (4, "bf16", 2e-2), (4, "fp32", 1e-3)],
)
def test_the_mean_of_few_tokens_may_differ_by_more(tokens: int, kind: str, wanted: float) -> None:
    """Rounding does not average out over them, and of a row that comes alone twice no noise is measured."""
    assert tolerance_of(0.0, 2.0, (kind, kind), tokens=tokens) == pytest.approx(wanted)


@given(
    noise=st.floats(0, 100),
    improvement=st.floats(-20, 20),
    types=st.lists(st.sampled_from(sorted(TOLERANCES)), min_size=1, max_size=2),
    unmeasured=st.booleans(),
)
def test_the_tolerance_never_leaves_its_limits(
    *, noise: float, improvement: float, types: list[str], unmeasured: bool
) -> None:
    """Nor does more noise ever allow less."""
    found = tolerance_of(noise, improvement, types, unmeasured=unmeasured)
    plain = max(TOLERANCES[name] for name in types)
    assert max(FLOORS[name] for name in types) <= found <= max(improvement / 4, plain)
    assert found <= tolerance_of(2 * noise, improvement, types, unmeasured=unmeasured)


@pytest.mark.parametrize(("loss", "claimed"), [(float("nan"), 1.0), (1.0, float("nan")), (float("inf"), 1.0)])
def test_what_is_no_number_agrees_with_nothing(loss: float, claimed: float) -> None:
    """Comparisons with it are false."""
    with pytest.raises(VerificationError, match="the written adapter gives a loss of"):
        judge(loss, claimed, 0.5, "adapter")


# What is measured.


def test_the_noise_is_the_shift_and_two_standard_errors_of_it() -> None:
    """Per target token; rows that were not evaluated again do not count."""
    first = Evaluation(sums=(4.0, 6.0, 8.0, 50.0), tokens=(2, 2, 2, 9))
    assert noise_of(first, Evaluation(sums=(4.0, 6.0, 8.0), tokens=(2, 2, 2))) == 0
    assert noise_of(first, Evaluation(sums=(4.2, 6.2, 8.2), tokens=(2, 2, 2))) == pytest.approx(0.1)
    # Shifts of +0.3, -0.3 and 0 have no mean; their standard error is sqrt(0.18 * 3 / 2) / 6.
    assert noise_of(first, Evaluation(sums=(4.3, 5.7, 8.0), tokens=(2, 2, 2))) == pytest.approx(2 * 0.27**0.5 / 6)
    assert noise_of(first, Evaluation(sums=(3.9,), tokens=(2,))) == pytest.approx(0.05)


def row(length: int, learned: int = 4, token: int = 1) -> Example:
    """A row of so many tokens."""
    labels = np.full(length, IGNORED, dtype=np.int64)
    labels[-learned:] = 1
    return Example(input_ids=np.full(length, token), labels=labels, truncated=False)


class Mixture(nn.Module):
    """Two experts, the first of which knows what follows; the router is sure at token 1, and near a tie at token 2."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(3, 2, dtype=torch.bfloat16)
        self.router = nn.Identity()
        self.head = nn.Linear(1, 3, dtype=torch.bfloat16)
        with torch.no_grad():
            self.embeddings.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, 0.5], [1.0, 1 - 2**-9]]))
            self.head.weight.copy_(torch.tensor([[-4.0], [4.0], [4.0]]))
            self.head.bias.copy_(torch.tensor([4.0, 0.0, 0.0]))
        self.requires_grad_(requires_grad=False)

    def get_input_embeddings(self) -> nn.Module:
        """As a model of Transformers."""
        return self.embeddings

    def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        """Logits by the expert that is chosen."""
        chosen = self.router(self.embeddings(input_ids)).argmax(dim=-1, keepdim=True)
        return SimpleNamespace(logits=self.head(1.0 - chosen.to(torch.bfloat16)))


@pytest.mark.parametrize(
    ("lengths", "tokens", "batches"),
    [
        pytest.param([8] * 100, 4096, [32, 32], id="64 rows, half of them at once"),
        pytest.param([100] * 100, 4096, [10, 10], id="2,048 tokens"),
        pytest.param([1500] * 9, 4096, [1, 1], id="two rows, however long"),
        pytest.param([10] * 6, 4096, [3, 3], id="rows that all fit into one batch"),
        pytest.param([10] * 6, 20, [1] * 6, id="a budget of two rows"),
        pytest.param([10], 4096, [1], id="a single row"),
    ],
)
def test_some_rows_come_again_in_batches_of_half_the_size(
    monkeypatch: pytest.MonkeyPatch, cpu: Device, lengths: list[int], tokens: int, batches: list[int]
) -> None:
    """Padded, whether they were packed or not; `done` hears of each batch."""
    seen: list[int] = []

    def losses(_model: nn.Module, _head: nn.Module, batch: Batch, _device: Device) -> torch.Tensor:
        assert batch.segments is None
        seen.append(len(batch.input_ids))
        # Each token of a row loses by how many rows are computed together.
        return torch.full((len(batch.rows),), 1.0 + 0.001 * seen[-1])

    monkeypatch.setattr("lora_trainer.train.evaluate.token_losses", losses)
    rows = Examples.of(row(length) for length in lengths)
    first = Evaluation(sums=(4.0,) * len(lengths), tokens=(4,) * len(lengths))
    heard: list[int] = []
    limit = MicroBatchLimit(tokens=tokens, longest=max(lengths), packed=True)
    model = Mixture()
    noise = measure_noise(model, model.head, rows, cpu, heard.append, first=first, limit=limit)
    assert seen == batches
    assert len(heard) == len(batches)
    assert noise == pytest.approx(0.001 * batches[0], abs=1e-6)


def test_the_noise_contains_the_choice_of_a_router_near_a_tie(cpu: Device) -> None:
    """Where a fast path or other code for the same adapter rounds otherwise, a token has other experts. Other batches
    do not show that on a CPU, which computes each row alike in all of them."""
    device = dataclasses.replace(cpu, dtype=torch.bfloat16)
    rows = Examples.of([*(row(20, learned=18) for _ in range(7)), row(20, learned=1, token=2)])
    limit, model = MicroBatchLimit(tokens=400, longest=20), Mixture()

    def loss() -> Evaluation:
        return evaluate(model, model.head, rows, device, lambda _rows: None, limit=limit)

    first = loss()
    noise = max(
        measure_noise(model, model.head, rows, device, lambda _: None, first=first, limit=limit, draw=draw)
        for draw in range(DRAWS)
    )
    up = torch.tensor([1.0, 1 + torch.finfo(torch.bfloat16).eps], dtype=torch.bfloat16)
    model.router.register_forward_hook(lambda _module, _given, logits: logits * up)
    difference = loss().loss - first.loss
    tokens = int(rows.targets.sum())
    assert difference > tolerance_of(0.0, 2.0, ("bf16",), tokens=tokens), "it would be refused without noise"
    assert difference < tolerance_of(noise, 2.0, ("bf16",), tokens=tokens)


# What is found.

BASES: Mapping[str, tuple[Callable[[Path, Path], Path], Mapping[str, Any]]] = {
    "fp32": (lambda folder, _target: folder, {}),
    "bf16": (in_16_bits, {"training": {"precision": "BF16"}}),
    "INT8": (lambda folder, _target: folder, {"quantization": "INT8"}),
}
ANSWERS = dict(
    zip(
        QUESTIONS,
        ("On its way to you", "By the link below", "Yes, by any card", "At nine each day", "A parrot, captain"),
        strict=True,
    )
)
Sound = tuple[Path, Volumes, TrainConfig]


def chats() -> list[dict[str, Any]]:
    """Rows whose answers follow from their questions."""
    rows = tiny_chats(60)
    for row in rows:
        asked, answer = row["messages"]
        answer["content"] = ANSWERS[asked["content"].partition(" number")[0]]
    return rows


@pytest.fixture(scope="module", params=BASES)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Sound:
    """An adapter that was trained until it matters and not to the end, where scales matter little; on bases with large
    weights, whose losses are more and less exact."""
    root = tmp_path_factory.mktemp("sound")
    change, sections = BASES[request.param]
    length = {"maxSteps": 24, "learningRate": "0.007"}
    config = make_config(**{**sections, "training": {**length, **sections.get("training", {})}})
    base = change(enlarged(tiny_folder, root / "large", 16), root / "base")
    folder, volumes = trained(root, base, config, chats())
    return folder, volumes, config


def _scale(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({k: v * 1.05 if ".lora_B." in k else v for k, v in tensors.items()}, folder / WEIGHTS)


def _zero_a_layer(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({k: v * 0 if "layers.1." in k else v for k, v in tensors.items()}, folder / WEIGHTS)


def _swap_answers(rows: Examples) -> Examples:
    """Each prompt with what was learned of the next row."""
    found = list(rows)
    swapped = []
    for one, other in zip(found, [*found[1:], found[0]], strict=True):
        prompt, answer = one.labels == IGNORED, other.labels != IGNORED
        ids = np.concatenate([one.input_ids[prompt], other.input_ids[answer]])
        labels = np.concatenate([one.labels[prompt], other.labels[answer]])
        swapped.append(Example(input_ids=ids, labels=labels, truncated=False))
    return Examples.of(swapped)


def test_a_sound_adapter_is_within_the_noise(sound: Sound) -> None:
    """Which is in the manifest; where that explains the difference, the fresh process measures none. A processor
    without instructions for 16 bits may compute the same in them, however rows are batched."""
    folder, volumes, config = sound
    found, manifest = verify(folder, volumes, Hub()), read_manifest(folder)
    assert manifest.noise is not None
    assert found.noise == manifest.noise
    exact = manifest.resolved.quantization == "None" and manifest.resolved.compute_dtype == "fp32"
    if exact or config.quantization is Quantization.INT8:
        assert (manifest.noise < 1e-5) == exact
    gain = manifest.measured.eval_loss_before - manifest.measured.eval_loss_after
    kind = manifest.resolved.compute_dtype
    tokens = int(inputs.base_and_rows(manifest, volumes, Hub())[1].targets.sum())
    assert found.tolerance == tolerance_of(found.noise, gain, (kind,), tokens=tokens)
    assert found.difference <= found.tolerance
    if config.quantization is Quantization.INT8:
        assert found.difference < 1e-6


@pytest.mark.parametrize("fault", [_scale, _zero_a_layer])
def test_an_adapter_with_a_fault_exceeds_the_noise(sound: Sound, tmp_path: Path, fault: Callable[[Path], None]) -> None:
    """Its scale off by 5 %, or a layer without it; digests and configuration fit."""
    folder = tmp_path / "adapter"
    shutil.copytree(sound[0], folder)
    fault(folder)
    sign_again(folder)
    with pytest.raises(VerificationError, match=r"they differ by \d\.\d+, more than 0\.\d+; the adapter is not publ"):
        verify(folder, sound[1], Hub())


@pytest.mark.parametrize("fault", ["labels", "split"])
def test_other_rows_exceed_the_noise(sound: Sound, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Labels that are swapped between rows, and rows that another seed holds out."""
    right = inputs.prepare_anew

    def wrong(run: Manifest, sources: Sources, *given: Any) -> Data:
        if fault == "labels":
            data = right(run, sources, *given)
            return dataclasses.replace(data, evaluation=_swap_answers(data.evaluation))
        dataset = dataclasses.replace(sources.dataset, split_seed=7)
        return right(run, dataclasses.replace(sources, dataset=dataset), *given)

    monkeypatch.setattr(inputs, "prepare_anew", wrong)
    with pytest.raises(VerificationError, match="they differ by"):
        verify(sound[0], sound[1], Hub())


def _with_noise(sound: Sound, folder: Path, noise: float) -> Path:
    """A copy whose manifest says that this was measured."""
    shutil.copytree(sound[0], folder)
    document = {**read_json(folder / MANIFEST), "noise": noise}
    (folder / MANIFEST).write_text(json.dumps(document), encoding="utf-8")
    return folder


def test_the_larger_noise_counts(sound: Sound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training's, or that of the process that verifies, which draws it until it is enough where the training's is
    not. What no draw explains is refused."""
    asked: list[int] = []
    shown = 3

    def measured(*_: Any, draw: int, **__: Any) -> float:
        asked.append(draw)
        return 0.5 if draw == shown else 0.0

    monkeypatch.setattr(verification, "measure_noise", measured)
    assert verify(_with_noise(sound, tmp_path / "large", 0.4), sound[1], Hub()).noise == 0.4
    assert asked == []
    manifest = read_manifest(sound[0])
    gain = manifest.measured.eval_loss_before - manifest.measured.eval_loss_after
    tokens = int(inputs.base_and_rows(manifest, sound[1], Hub())[1].targets.sum())
    least, most = (tolerance_of(noise, gain, (manifest.resolved.compute_dtype,), tokens=tokens) for noise in (0.0, 0.5))
    folder = _with_noise(sound, tmp_path / "none", 0.0)
    document = read_json(folder / MANIFEST)
    document["measured"]["eval_loss_after"] += (least + most) / 2
    (folder / MANIFEST).write_text(json.dumps(document), encoding="utf-8")
    assert least < verify(folder, sound[1], Hub()).difference < most
    assert asked == [1, 2, 3]
    shown = DRAWS
    with pytest.raises(VerificationError, match="they differ by"):
        verify(folder, sound[1], Hub())
    assert asked == [1, 2, 3, *range(1, DRAWS)]


def test_an_adapter_that_fails_is_kept_unpublished_and_the_sentence_says_where(
    workplace: Workplace, tmp_path: Path, tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Beside the checkpoints; the exit code is one that no Job tries again."""
    folder, _ = trained(tmp_path / "earlier", tiny_folder, make_config())
    _zero_a_layer(folder)
    sign_again(folder)
    kept = f".lora-checkpoints/tiny-{run_suffix('uid-1')}"
    staged = workplace.claims / "adapters" / kept / "staged"
    shutil.copytree(folder, staged)
    caplog.set_level(logging.INFO)
    done = forked.run(workplace)
    assert (done.code, done.summary.reason) == (73, Reason.VERIFICATION_FAILED), done.summary
    assert "an earlier attempt finished the training" in caplog.text
    claimed = read_manifest(staged).measured.eval_loss_after
    assert f"the trained model gave {claimed:.4f}: they differ by " in done.summary.message
    assert done.summary.message.endswith(f"; the unpublished adapter is kept at pvc://adapters/{kept}/staged")
    assert (staged / WEIGHTS).is_file()
    assert workplace.adapters() == []
