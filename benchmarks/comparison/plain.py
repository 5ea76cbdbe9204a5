"""The script that a user would write: Transformers, PEFT and its Trainer, rows padded to the longest of their batch."""

import tempfile
from typing import Any

import torch
import transformers
from benchmarks.comparison.job import ALPHA, LEARNING_RATE, RANK, Job, Row, training_rows
from benchmarks.comparison.measuring import Clock, device_of, let_go, peak_mib, result
from benchmarks.comparison.settings import MUCH_SLOWER, Setting, Tried, plain_settings
from peft import LoraConfig, get_peft_model

from lora_trainer.errors import one_sentence, out_of_memory

_library: Any = transformers


def plain(job: Job) -> dict[str, float]:
    """Train, and measure; on a GPU after a training of a row, for ours has computed on it, too, when its clock starts.
    That is of another model, as the library leaves what it wraps around one."""
    device, data = device_of(job), training_rows(job)
    if job.device == "cuda":
        train(job, job.chosen, new_model(job, job.chosen.attention), data[:1])
        let_go(device)
    model = new_model(job, job.chosen.attention)
    device.reset_peak_memory()
    clock = train(job, job.chosen, model, data)
    return result(job, clock, peak_mib(device), model)


def sweep(job: Job) -> list[Tried]:
    """What each micro-batch takes on all the rows, up to the first that is much slower than the best before it. A
    few rows would not do: what padding costs depends on who meets the long ones."""
    data, found = training_rows(job), list[Tried]()
    model = new_model(job, "sdpa")
    for setting in plain_settings():
        try:
            if not found:
                train(job, setting, model, data[:1])
            seconds = train(job, setting, model, data).cost
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            found.append(Tried(setting=setting, trouble=one_sentence(error)[:60]))
            break
        found.append(Tried(setting=setting, seconds=seconds))
        if seconds > MUCH_SLOWER * min(one.seconds for one in found):
            break
    return found


def new_model(job: Job, attention: str) -> Any:
    """The model with PEFT's adapter on all linear layers."""
    device = device_of(job)
    torch.manual_seed(job.seed)
    model = _library.AutoModelForCausalLM.from_pretrained(
        job.model, dtype=device.dtype, attn_implementation=attention, device_map={"": device.torch_device}
    )
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def train(job: Job, setting: Setting, model: Any, data: list[Row]) -> Clock:
    """From the begin of `Trainer.train` to the end of its last step."""
    clock = Clock(device_of(job).torch_device)
    tokenizer = new_tokenizer(job)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _library.Trainer(
            model=model,
            args=_library.TrainingArguments(**arguments(job, setting, folder)),
            train_dataset=[{"input_ids": row.input_ids.tolist(), "labels": row.labels.tolist()} for row in data],
            data_collator=_library.DataCollatorForSeq2Seq(tokenizer, padding=True),
            callbacks=[callback(clock)],
        )
        trainer.train()
    return clock


def new_tokenizer(job: Job) -> Any:
    """With a token for padding."""
    tokenizer = _library.AutoTokenizer.from_pretrained(job.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def arguments(job: Job, setting: Setting, folder: str) -> dict[str, Any]:
    """What the Trainer and TRL's are given alike."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": setting.micro,
        "gradient_accumulation_steps": setting.accumulation,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0,
        "num_train_epochs": 1,
        "seed": job.seed,
        "bf16": device_of(job).dtype is torch.bfloat16,
        "fp16": device_of(job).dtype is torch.float16,
        "use_cpu": job.device == "cpu",
        "gradient_checkpointing": job.recompute,
        "use_liger_kernel": setting.liger,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def callback(clock: Clock) -> Any:
    """Stamps the clock at the begin and after each step."""

    class Stamps(_library.TrainerCallback):  # type: ignore[misc] # the library is untyped
        def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
            clock.stamp()

        def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
            clock.stamp()

    return Stamps()
