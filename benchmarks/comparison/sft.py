"""TRL's `SFTTrainer` on the same rows: padded, padding-free and packed."""

import contextlib
import copy
import gc
import importlib.util
import io
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from benchmarks.comparison.job import IGNORED, Job, Row, training_rows
from benchmarks.comparison.measuring import Clock, device_of, let_go, peak_mib, result
from benchmarks.comparison.plain import arguments, callback, new_model, new_tokenizer
from benchmarks.comparison.settings import EFFECTIVE, MUCH_SLOWER, Form, Setting, Tried, settings

from lora_trainer.errors import one_sentence, out_of_memory
from lora_trainer.train.state import copy_of, put_back, trainable

APART = 1e-3
"""Most that hidden states of a row may change with the rows beside it, relative to their spread: rounding."""


def sft(job: Job) -> dict[str, float]:
    """Train, and measure; on a GPU after a training of a row, as `plain`. The loss is that of a model which TRL has not
    patched, with the adapter that it trained."""
    device, data = device_of(job), training_rows(job)
    if job.device == "cuda":
        _warm_up(job, job.chosen, data)
        let_go(device)
    model = new_model(job, job.chosen.attention)
    clock = Clock(device.torch_device)
    with trainer_of(job, job.chosen, model, data, clock) as trainer:
        device.reset_peak_memory()
        trainer.train()
    peak = peak_mib(device)
    trained = copy_of(trainable(model))
    del trainer, model
    gc.collect()
    fresh = new_model(job, "sdpa")
    put_back(trainable(fresh), trained)
    return result(job, clock, peak, fresh)


def sweep(job: Job) -> list[Tried]:
    """What each setting takes on all the rows, of each kind up to the first that is much slower than its best."""
    data = training_rows(job)
    lengths = [len(row.input_ids) for row in data]
    gpu, found = job.device == "cuda", list[Tried]()
    ligers = (True, False) if gpu and importlib.util.find_spec("liger_kernel") else (False,)
    attentions = ("sdpa", "flash_attention_2") if gpu and importlib.util.find_spec("flash_attn") else ("sdpa",)
    try:
        _warm_up(job, Setting(form=Form.PADDED, micro=1, accumulation=EFFECTIVE), data)
    except RuntimeError as error:
        # Each setting tells it for itself.
        if not out_of_memory(error):
            raise
    let_go(device_of(job))
    for same in settings(lengths, liger=ligers, attentions=attentions):
        tried: list[Tried] = []
        for setting in same:
            tried.append(_try(job, setting, data))
            if tried[-1].trouble or tried[-1].seconds > MUCH_SLOWER * min(one.seconds for one in tried):
                break
        found += tried
    return found


def _warm_up(job: Job, setting: Setting, data: list[Row]) -> None:
    """Train a model that is of no use afterwards on the first row."""
    model, clock = new_model(job, setting.attention), Clock(device_of(job).torch_device)
    with trainer_of(job, setting, model, data[:1], clock) as trainer:
        trainer.train()


def _try(job: Job, setting: Setting, data: list[Row]) -> Tried:
    clock = Clock(device_of(job).torch_device)
    try:
        with trainer_of(job, setting, new_model(job, setting.attention), data, clock) as trainer:
            see = rows_see_each_other(trainer)
            learned = learned_in_a_step(trainer, setting)
            trainer.train()
    except Exception as error:  # a setting that the library refuses is none; what it says is reported
        if out_of_memory(error):
            gc.collect()
            device_of(job).give_back()
        return Tried(setting=setting, trouble=one_sentence(error)[:120])
    return Tried(setting=setting, seconds=clock.cost, learned=learned, see=see)


@contextlib.contextmanager
def trainer_of(job: Job, setting: Setting, model: Any, data: list[Row], clock: Clock) -> Iterator[Any]:
    """A trainer for the rows, with a folder as long as it lasts. Raises what TRL raises."""
    # Not for tests and mypy alone: the image of the trainer has none of them.
    datasets, trl = (importlib.import_module(name) for name in ("datasets", "trl"))
    packed = setting.form is Form.PACKED
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        config = trl.SFTConfig(
            **arguments(job, setting, folder),
            packing=packed,
            padding_free=setting.form is Form.PADDING_FREE,
            max_length=setting.length if packed else None,
            completion_only_loss=True,
        )
        yield trl.SFTTrainer(
            model=model,
            args=config,
            train_dataset=datasets.Dataset.from_list(
                [
                    {
                        "input_ids": row.input_ids.tolist(),
                        "completion_mask": (row.labels != IGNORED).astype(int).tolist(),
                    }
                    for row in data
                ]
            ),
            processing_class=new_tokenizer(job),
            callbacks=[callback(clock)],
        )


def learned_in_a_step(trainer: Any, setting: Setting) -> float:
    """Tokens that a full step learns, on average over all rows."""
    learned = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in trainer.get_train_dataloader())
    return learned / len(trainer.train_dataset) * setting.micro * setting.accumulation


def rows_see_each_other(trainer: Any) -> bool:
    """Whether the last row of a micro-batch gives something else beside other rows. Tried, for attention masks,
    positions and kernels must all play together; on the first micro-batch that has more rows than one."""
    for batch in trainer.get_train_dataloader():
        beside = _beside_the_last_row(batch)
        if not beside.any():
            continue
        vocabulary = int(trainer.model.config.get_text_config().vocab_size)
        others = {**batch, "input_ids": torch.where(beside, (batch["input_ids"] + 1) % vocabulary, batch["input_ids"])}
        before, after = (_hidden(trainer, inputs)[~beside] for inputs in (batch, others))
        return bool((before - after).abs().mean() > APART * before.std())
    return False


def _beside_the_last_row(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Which tokens belong to another row than the last, shape as `input_ids`."""
    ids = batch["input_ids"]
    beside = torch.zeros_like(ids, dtype=torch.bool)
    if "position_ids" in batch:
        beside[0, : int((batch["position_ids"][0] == 0).nonzero()[-1])] = True
    else:
        beside[:-1] = True
    return beside


def _hidden(trainer: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Hidden states of the last layer in the trainer's own computation of its loss, shape (rows, tokens, size)."""
    found: list[torch.Tensor] = []
    decoder = trainer.model.get_base_model().get_decoder()
    handle = decoder.register_forward_hook(lambda _module, _given, output: found.append(output[0].float()))
    try:
        with torch.no_grad(), trainer.compute_loss_context_manager():
            trainer.compute_loss(trainer.model, copy.copy(dict(batch)))
    finally:
        handle.remove()
    return found[0]
