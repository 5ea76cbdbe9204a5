"""A verification that notices: an adapter of another scale, other weights, another model, other data."""

import dataclasses
import functools
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.trainer import rank_programs
from tests.trainer.conftest import make_config
from tests.trainer.processes import together
from tests.trainer.runs import Workplace, prepared
from tests.trainer.tiny import enlarged, write_jsonl
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_trainer import ask, cli
from lora_trainer.ask import Pair, show
from lora_trainer.data.survey import load_index
from lora_trainer.distributed.collectives import Ranks
from lora_trainer.distributed.reports import Reporter
from lora_trainer.errors import GpuFaultError, VerificationError
from lora_trainer.model import gates, liger, lora_kernel
from lora_trainer.model.device import Device
from lora_trainer.model.sharding import stream
from lora_trainer.result import verify as verifying
from lora_trainer.result.export import write_result
from lora_trainer.result.verify import verify
from lora_trainer.spec import codec
from lora_trainer.spec.config import Quantization, TrainConfig
from lora_trainer.storage.hub import Hub
from lora_trainer.storage.manifest import LOG, Manifest, file_entries, read_manifest
from lora_trainer.storage.sealed import MANIFEST
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train import run as training
from lora_trainer.train.batches import Batch
from lora_trainer.train.loss import token_losses
from lora_trainer.train.run import RunContext, run_training

WEIGHTS = "adapter_model.safetensors"


def trained(
    root: Path, model: Path, config: TrainConfig, rows: Sequence[Mapping[str, Any]] | None = None
) -> tuple[Path, Volumes]:
    """An adapter, trained in this process, on the chats or on `rows`."""
    workplace = Workplace.make(root, model)
    if rows is not None:
        write_jsonl(workplace.claims / "data/train.jsonl", rows)
    volumes = Volumes(claims=workplace.claims)
    folder = root / "adapter"
    folder.mkdir()
    data = prepared(config, volumes, root / "prepared")
    run_training(
        config,
        data,
        volumes,
        Hub(),
        folder=folder,
        reporter=Reporter(None),
        run_context=RunContext(),
        write_result=write_result,
    )
    return folder, volumes


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> tuple[Path, Volumes]:
    """A trained adapter and the volumes that it was trained from; tests spoil copies."""
    return trained(tmp_path_factory.mktemp("verify"), tiny_folder, make_config())


def sign_again(folder: Path) -> None:
    """Make the manifest fit the files, as a faulty trainer would."""
    document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    document["files"] = codec.encode(file_entries(folder))
    (folder / MANIFEST).write_text(json.dumps(document), encoding="utf-8")


def _scale_b(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({k: v * 1.5 if ".lora_B." in k else v for k, v in tensors.items()}, folder / WEIGHTS)


def _zero_b(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({k: v * 0 if ".lora_B." in k else v for k, v in tensors.items()}, folder / WEIGHTS)


def _swap_modules(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(
        {
            k.replace("layers.0", "layers.9").replace("layers.1", "layers.0").replace("layers.9", "layers.1"): v
            for k, v in tensors.items()
        },
        folder / WEIGHTS,
    )


def _lose_one(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({k: v for k, v in tensors.items() if "layers.1.mlp.up_proj" not in k}, folder / WEIGHTS)


def _unknown_module(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({k.replace("up_proj", "other_proj"): v for k, v in tensors.items()}, folder / WEIGHTS)


def _half_rank(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({k: (v[:2] if ".lora_A." in k else v[:, :2]).contiguous() for k, v in tensors.items()}, folder / WEIGHTS)


def _alone(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({k: v for k, v in tensors.items() if ".lora_A." in k}, folder / WEIGHTS)


def _says(**changes: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")

    return spoil


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_scale_b, "the written adapter gives a loss of"),
        (_zero_b, "the written adapter gives a loss of"),
        (_swap_modules, "the written adapter gives a loss of"),
        (_lose_one, "were trained"),
        (_unknown_module, "other_proj, which is not a linear module of the base model"),
        (_half_rank, "expected (4, "),
        (_alone, "no pair of lora_A and lora_B"),
        (_says(lora_alpha=32), "adapter_config.json says rank 4 and alpha 32 for"),
        (
            _says(target_modules=["q_proj"]),
            "no place for base_model.model.model.layers.0.mlp.down_proj.lora_A",
        ),
        (
            _says(layers_to_transform=[0], layers_pattern=["layers"]),
            "no place for base_model.model.model.layers.1.mlp.down_proj.lora_A",
        ),
        (
            _says(exclude_modules=".*mlp.*"),
            "no place for base_model.model.model.layers.0.mlp.down_proj.lora_A",
        ),
        (_says(modules_to_save=["lm_head"]), "PEFT misses base_model.model.lm_head.weight"),
        (_says(peft_type="LOHA"), "adapter_config.json does not fit adapter_model.safetensors: PEFT "),
        (_says(target_modules=["none"]), "PEFT refuses adapter_config.json for the base model"),
    ],
)
def test_an_adapter_that_is_not_what_was_trained_is_refused(
    adapter: tuple[Path, Volumes], tmp_path: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    """Even where every digest fits."""
    folder = tmp_path / "adapter"
    shutil.copytree(adapter[0], folder)
    spoil(folder)
    with pytest.raises(VerificationError, match="the file was changed or damaged"):
        verify(folder, adapter[1], Hub())
    sign_again(folder)
    with pytest.raises(VerificationError) as caught:
        verify(folder, adapter[1], Hub())
    assert sentence in str(caught.value)


def test_a_good_adapter_reproduces_its_loss(adapter: tuple[Path, Volumes]) -> None:
    """To many digits in fp32."""
    result = verify(adapter[0], adapter[1], Hub())
    assert result.difference < 1e-5
    assert result.tolerance == 1e-3


def test_the_verification_takes_no_fast_path(adapter: tuple[Path, Volumes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the run computed on: an error of one that went through its proof must not hide itself."""

    def taken(*_: object) -> None:
        # No `Exception`: a proof takes such for a kernel that fails, and leaves it out.
        pytest.fail("a fast path was tried")

    for module, name in (
        (lora_kernel, "install"),
        (lora_kernel, "_forward"),
        (gates, "install"),
        (gates, "put_forward"),
        (liger, "put_forward"),
    ):
        monkeypatch.setattr(module, name, taken)
    assert read_manifest(adapter[0]).resolved.kernels == ("fused-adapter", "recomputed-swiglu")
    assert verify(adapter[0], adapter[1], Hub()).difference < 1e-5


@pytest.mark.parametrize(
    ("quantization", "precision"),
    [
        *((quantization, "Auto") for quantization in (Quantization.AUTO, Quantization.NF4, Quantization.FP4)),
        *((quantization, "BF16") for quantization in (Quantization.NONE, Quantization.NF4, Quantization.INT8)),
    ],
)
def test_every_kind_of_weights_is_verified(
    tmp_path: Path, tiny_folder: Path, quantization: Quantization, precision: str
) -> None:
    """4-bit weights and 16-bit products too, within their tolerance."""
    config = make_config(quantization=quantization.value, training={"maxSteps": 3, "precision": precision})
    folder, volumes = trained(tmp_path, tiny_folder, config)
    result = verify(folder, volumes, Hub())
    assert result.tolerance >= (1e-3 if precision == "Auto" else 5e-3)
    assert read_manifest(folder).resolved.compute_dtype == ("fp32" if precision == "Auto" else "bf16")


@pytest.mark.parametrize(
    ("lora", "difference", "tolerance"),
    [
        pytest.param({"modulesToSave": ["lm_head"]}, 1e-7, 5e-3, id="an output embedding that was trained whole"),
        pytest.param({"init": "PiSSA"}, 2e-2, 2e-2, id="a base that was rounded otherwise"),
    ],
)
def test_in_16_bits_the_verification_computes_as_the_training_did(
    *, tmp_path: Path, tiny_folder: Path, lora: dict[str, Any], difference: float, tolerance: float
) -> None:
    """Logits of whole output embeddings are rounded as there; what it cannot do as there is allowed for. Without packs,
    as the verification computes: on some processors they are rounded otherwise."""
    base = enlarged(tiny_folder, tmp_path / "model", 16)
    training = {"maxSteps": 3, "precision": "BF16", "kernels": "Reference", "packing": "Disabled"}
    folder, volumes = trained(tmp_path, base, make_config(lora=lora, training=training))
    found = verify(folder, volumes, Hub())
    assert found.difference <= difference
    assert found.tolerance >= tolerance


@pytest.mark.parametrize(("precision", "dtype"), [("Auto", "bf16"), ("FP16", "fp16")])
def test_an_adapter_of_a_gpu_may_be_verified_on_a_cpu(
    adapter: tuple[Path, Volumes], tmp_path: Path, precision: str, dtype: str
) -> None:
    """What 16 bits rounded in the run is no fault of the adapter, and that a CPU has no FP16 none of the run."""
    folder = tmp_path / "adapter"
    shutil.copytree(adapter[0], folder)
    document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    document["measured"]["eval_loss_after"] += 0.005
    (folder / MANIFEST).write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(VerificationError, match=r"more than 0\.001"):
        verify(folder, adapter[1], Hub())
    document["resolved"]["compute_dtype"] = dtype
    document["config"]["device"] = {"gpus": 1, "allow_cpu": False}
    document["config"]["training"]["precision"] = precision
    (folder / MANIFEST).write_text(json.dumps(document), encoding="utf-8")
    assert verify(folder, adapter[1], Hub(), anywhere=True).tolerance == 2e-2
    with pytest.raises(GpuFaultError):
        verify(folder, adapter[1], Hub())


@pytest.mark.parametrize(("micro", "rows"), [(1, {1}), (2, {1, 2}), (None, {4, 8})])
def test_a_small_micro_batch_limits_the_evaluations_too(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, micro: int | None, rows: set[int]
) -> None:
    """The memory that it saves must not be taken before and after the training, nor by the verification."""
    seen: list[int] = []

    def noting(model: Any, head: nn.Module, batch: Batch, device: Device) -> torch.Tensor:
        seen.append(len(batch.segments.lengths) if batch.segments else len(batch.input_ids))
        return token_losses(model, head, batch, device)

    monkeypatch.setattr("lora_trainer.train.evaluate.token_losses", noting)
    sections = {"maxSteps": 1} if micro is None else {"maxSteps": 1, "microBatchSize": micro}
    folder, volumes = trained(tmp_path, tiny_folder, make_config(training=sections))
    verify(folder, volumes, Hub())
    assert set(seen) == rows


def test_packed_and_padded_runs_end_with_the_same_losses(tmp_path: Path, tiny_folder: Path) -> None:
    """What was done is in the manifest; the verification pads the rows of both."""
    losses = []
    for packing in ("Enabled", "Disabled"):
        folder, volumes = trained(tmp_path / packing, tiny_folder, make_config(training={"packing": packing}))
        found = read_manifest(folder)
        assert (found.resolved.packing, found.resolved.attention) == (packing == "Enabled", "sdpa")
        assert verify(folder, volumes, Hub()).difference < 1e-5
        losses.append((found.measured.train_loss, found.measured.eval_loss_after))
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_another_base_model_is_refused(adapter: tuple[Path, Volumes], tmp_path: Path) -> None:
    """A folder on a volume is pinned by its bytes."""
    shutil.copytree(adapter[1].claims, tmp_path / "claims")
    config = tmp_path / "claims/models/tiny/generation_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text(encoding="utf-8")), "max_length": 9}), encoding="utf-8")
    with pytest.raises(VerificationError, match="the adapter was trained on sha256:"):
        verify(adapter[0], Volumes(claims=tmp_path / "claims"), Hub())


def test_another_data_set_is_refused(adapter: tuple[Path, Volumes], tmp_path: Path) -> None:
    """The loss would mean nothing on other rows."""
    shutil.copytree(adapter[1].claims, tmp_path / "claims")
    with (tmp_path / "claims/data/train.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n")
    with pytest.raises(VerificationError, match=r"the data set pvc://data/train\.jsonl has changed since the run"):
        verify(adapter[0], Volumes(claims=tmp_path / "claims"), Hub())


def test_anyone_finds_the_reported_loss_with_the_published_files(adapter: tuple[Path, Volumes]) -> None:
    """The rows that `held_out_rows.json` lists, PEFT, and nothing of the trainer."""
    folder, claims = adapter[0], adapter[1].claims
    tokenizer: Any = AutoTokenizer.from_pretrained(claims / "models/tiny")
    base: Any = AutoModelForCausalLM.from_pretrained(claims / "models/tiny")
    model: Any = PeftModel.from_pretrained(base, str(folder))
    lines = (claims / "data/train.jsonl").read_text(encoding="utf-8").split("\n")
    (file,) = json.loads((folder / "held_out_rows.json").read_text(encoding="utf-8"))["files"]
    losses: list[float] = []
    for number in file["numbers"]:
        *turns, answer = json.loads(lines[number - 1])["messages"]
        prompt = tokenizer(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))[
            "input_ids"
        ]
        learned = tokenizer(answer["content"] + tokenizer.eos_token)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + learned])).logits[0, len(prompt) - 1 : -1]
        losses += nn.functional.cross_entropy(logits, torch.tensor(learned), reduction="none").tolist()
    measured = read_manifest(folder).measured
    assert sum(losses) / len(losses) == pytest.approx(measured.eval_loss_after, abs=1e-5)
    assert abs(measured.eval_loss_before - measured.eval_loss_after) > 1e-2


def test_the_manifest_tells_the_whole_story(adapter: tuple[Path, Volumes]) -> None:
    """Base model, revision, configuration, measurements, versions; it reads back to what was written."""
    manifest: Manifest = read_manifest(adapter[0])
    assert manifest.config == make_config(quantization="None"), "what Auto became on a CPU"
    assert manifest.base_model == "pvc://models/tiny"
    assert manifest.base_revision == manifest.resolved.model_revision
    assert manifest.resolved.dataset_fingerprint == load_index(make_config(), adapter[1], Hub()).sources.fingerprint
    assert manifest.measured.eval_loss_after < manifest.measured.eval_loss_before
    assert {"torch", "transformers", "peft", "bitsandbytes"} <= set(manifest.versions)
    files = ["README.md", "adapter_config.json", WEIGHTS, "held_out_rows.json", "loss.png", "metrics.jsonl"]
    assert [entry.path for entry in manifest.files] == files
    assert 'from_pretrained("path/of/the/base/model")' in (adapter[0] / "README.md").read_text(encoding="utf-8")


def test_base_and_adapter_answer_the_same_questions(adapter: tuple[Path, Volumes]) -> None:
    """As JSON for programs, side by side for people; two answers, since the adapter changed the model."""
    pair = Pair(None, adapter[0], 8, adapter[1])
    answers = [pair.answer(question) for question in ("Who are you?", "When do you open?")]
    assert [answer.question for answer in answers] == ["Who are you?", "When do you open?"]
    assert any(answer.base != answer.adapter for answer in answers)
    assert json.loads(show(answers, as_json=True))[0] == {
        "question": "Who are you?",
        "base": answers[0].base,
        "adapter": answers[0].adapter,
    }
    assert "Q: Who are you?\n  base:    " in show(answers, as_json=False)


def test_on_a_gpu_the_base_is_held_as_it_was_trained(adapter: tuple[Path, Volumes], tmp_path: Path) -> None:
    """A card that an NF4 run fitted has no room for 16 bits; a CPU computes slowly with 4."""
    gpu = Device(torch_device=torch.device("cuda"), name="T4", dtype=torch.float16)
    cpu = Device(torch_device=torch.device("cpu"), name="cpu", dtype=torch.float32)
    folder = shutil.copytree(adapter[0], tmp_path / "out")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["resolved"]["quantization"] = "NF4"
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    assert ask.base_quantization(folder, gpu) is Quantization.NF4
    assert ask.base_quantization(folder, cpu) is Quantization.NONE
    (folder / MANIFEST).unlink()
    assert ask.base_quantization(folder, gpu) is Quantization.NONE, "an adapter that another tool made"


@pytest.mark.parametrize("verbatim", [False, True])
def test_a_base_without_a_template_is_asked_as_its_rows_were_written(
    adapter: tuple[Path, Volumes], tmp_path: Path, *, verbatim: bool
) -> None:
    """Questions of a data set of questions and answers have headings, unless the result says otherwise."""
    folder = shutil.copytree(adapter[0], tmp_path / "out")
    document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert document["verbatim"] is False
    (folder / MANIFEST).write_text(json.dumps({**document, "verbatim": verbatim}), encoding="utf-8")
    assert ask._trained_verbatim(folder) is verbatim
    (folder / MANIFEST).unlink()
    assert not ask._trained_verbatim(folder), "an adapter of another tool"


def test_a_base_in_4_bits_answers(adapter: tuple[Path, Volumes], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the adapter and without it; what a GPU would do, on a CPU."""
    monkeypatch.setattr(ask, "base_quantization", lambda *_: Quantization.NF4)
    answer = Pair(None, adapter[0], 8, adapter[1]).answer("Who are you?")
    assert answer.base != answer.adapter


def test_a_conversation_answers_line_by_line(
    adapter: tuple[Path, Volumes], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one line of JSON each; empty lines are none."""
    monkeypatch.setattr("sys.stdin", io.StringIO("Who are you?\n\nWhen do you open?\n"))
    claims = str(adapter[1].claims)
    assert cli.main(["ask", "--adapter", str(adapter[0]), "--claims", claims, "--format", "json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["question"] for record in records] == ["Who are you?", "When do you open?"]
    assert all(record.keys() == {"question", "base", "adapter"} for record in records)


def test_asking_an_adapter_that_cannot_be_read_is_reported_in_one_line(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever PEFT raises."""
    (tmp_path / "adapter_config.json").write_text("{", encoding="utf-8")
    (tmp_path / "adapter_model.safetensors").touch()
    arguments = [
        "ask",
        "--base",
        str(tiny_folder),
        "--adapter",
        str(tmp_path),
        "--question",
        "Hi",
        "--max-new-tokens",
        "1",
    ]
    assert cli.main(arguments) == 1
    errors = capsys.readouterr().err
    assert "JSONDecodeError: Expecting property name" in errors
    assert "Traceback" not in errors


def test_an_8_bit_run_is_evaluated_in_the_batches_of_its_verification(tmp_path: Path, tiny_folder: Path) -> None:
    """Its outliers are found over a batch: packed, the same weights would give another loss than padded."""
    config = make_config(quantization="INT8")
    folder, volumes = trained(tmp_path, enlarged(tiny_folder, tmp_path / "model", 16), config)
    assert read_manifest(folder).resolved.packing
    assert verify(folder, volumes, Hub()).difference < 1e-7


@pytest.mark.parametrize("gpu_bytes", [None, 2**30, 2**10])
def test_a_base_that_was_divided_is_verified_by_one_process(
    adapter: tuple[Path, Volumes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu_bytes: int | None
) -> None:
    """By hand, or on the one GPU of a node: on a CPU, on a GPU that holds the base, and on one that does not."""
    folder = copy_as_divided(adapter[0], tmp_path / "adapter")
    streamed: list[Device] = []

    def note(model: Any, device: Device) -> None:
        streamed.append(device)
        stream(model, device)

    monkeypatch.setattr(verifying, "device_bytes", lambda _device: gpu_bytes)
    monkeypatch.setattr(verifying, "stream", note)
    found = verify(folder, adapter[1], Hub())
    # Not bit for bit: a kernel may sum in another order where weights lie at other addresses.
    assert found.loss == pytest.approx(verify(adapter[0], adapter[1], Hub()).loss, abs=1e-6)
    assert bool(streamed) is (gpu_bytes == 2**10)


@pytest.mark.parametrize(("copies", "streamed"), [(False, [1, 1]), (True, [1, 0])])
def test_a_base_that_no_gpu_holds_is_streamed_by_all_or_where_it_is_converted_by_one(
    adapter: tuple[Path, Volumes], tmp_path: Path, copies: bool, streamed: list[int]
) -> None:
    """Every process that computes keeps what was converted in main memory, which need not have room for all."""
    divided = copy_as_divided(adapter[0], tmp_path / "adapter")
    program = functools.partial(rank_programs.verify_streamed, copies=copies)
    found = together(2, program, divided, adapter[1].claims)
    assert found == [(found[0][0], count) for count in streamed]
    assert found[0][0] == pytest.approx(verify(adapter[0], adapter[1], Hub()).loss, abs=1e-5)


def test_a_base_in_4_bits_that_was_divided_is_verified_so(tmp_path: Path, tiny_folder: Path) -> None:
    """Divided over two processes, which give the loss of one; and streamed, a layer packed anew for each batch."""
    config = make_config(quantization="NF4", training={"maxSteps": 3})
    folder, volumes = trained(tmp_path, tiny_folder, config)
    wanted = verify(folder, volumes, Hub()).loss
    divided = copy_as_divided(folder, tmp_path / "divided")
    assert together(2, rank_programs.verify_adapter, divided, volumes.claims) == [pytest.approx(wanted, abs=1e-5)] * 2
    streamed = functools.partial(rank_programs.verify_streamed, copies=False)
    assert together(2, streamed, divided, volumes.claims) == [(pytest.approx(wanted, abs=1e-5), 1)] * 2


def test_a_log_that_was_cut_off_ends_no_run(adapter: tuple[Path, Volumes], tmp_path: Path) -> None:
    """Within the run, which writes it anew before it publishes; by hand everything is as the manifest says."""
    folder = Path(shutil.copytree(adapter[0], tmp_path / "adapter"))
    (folder / LOG).write_text("half a li", encoding="utf-8")
    assert verify(folder, adapter[1], Hub()).difference < 1e-4
    with pytest.raises(VerificationError, match=r"train\.log is not in the adapter's manifest"):
        verify(folder, adapter[1], Hub(), anywhere=True)


def test_training_and_verification_compute_in_the_type_of_all_processes(
    adapter: tuple[Path, Volumes], tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not in that of their own device."""

    def same_type(device: Device, _ranks: Ranks) -> Device:
        return dataclasses.replace(device, dtype=torch.bfloat16)

    plain = verify(adapter[0], adapter[1], Hub())
    monkeypatch.setattr(verifying, "same_type", same_type)
    assert verify(adapter[0], adapter[1], Hub()).loss != plain.loss
    monkeypatch.setattr(training, "same_type", same_type)
    found, _ = trained(tmp_path, tiny_folder, make_config())
    assert read_manifest(found).resolved.compute_dtype == "bf16"


def copy_as_divided(folder: Path, to: Path) -> Path:
    """The adapter, as of a base that did not fit one GPU."""
    shutil.copytree(folder, to)
    manifest = read_manifest(to)
    divided = dataclasses.replace(manifest, resolved=dataclasses.replace(manifest.resolved, sharded=True))
    (to / MANIFEST).write_text(divided.to_json(), encoding="utf-8")
    return to
