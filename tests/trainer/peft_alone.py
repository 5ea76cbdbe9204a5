"""Reproduce the reported loss of published adapters with Transformers and PEFT alone: nothing of this project is used.

    python tests/trainer/peft_alone.py ADAPTER BASE ROWS.jsonl [ADAPTER BASE ROWS.jsonl ...]

ADAPTER is a published folder, BASE the folder of its base model, ROWS the file of `dataset.validationUri`, with a list
`messages` in each row. Prints a line for each adapter, and ends with 1 where a loss is not the reported one.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from torch.nn.functional import cross_entropy

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCES = {"fp32": 1e-3, "bf16": 2e-2, "fp16": 2e-2}
"""In nats per token, by compute type: TOLERANCES of lora_trainer/train/noise.py."""


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="Reproduce reported losses with Transformers and PEFT alone.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="ADAPTER BASE ROWS")
    paths: list[Path] = parser.parse_args().paths
    if len(paths) % 3:
        parser.error("name an adapter, its base model and its rows, three paths each")
    differ = False
    for adapter, base, rows in zip(paths[::3], paths[1::3], paths[2::3], strict=True):
        manifest = json.loads((adapter / "manifest.json").read_text(encoding="utf-8"))
        before, reported = (manifest["measured"][f"eval_loss_{when}"] for when in ("before", "after"))
        # INT8 multiplies in fp16, and rounds a row otherwise where other rows lie beside it.
        is_int8 = manifest["config"]["quantization"] == "INT8"
        tolerance = TOLERANCES["fp16" if is_int8 else manifest["resolved"]["compute_dtype"]]
        loss = mean_loss(manifest, adapter, base, rows)
        agrees = abs(loss - reported) <= tolerance
        differ |= not agrees
        print(
            f"{adapter.name}: loss {loss:.6f}, reported {reported:.6f}, base model {before:.6f}, "
            f"tolerance {tolerance:g}: {'agrees' if agrees else 'DIFFERS'}"
        )
    return int(differ)


def mean_loss(manifest: dict[str, Any], adapter: Path, base: Path, rows: Path) -> float:
    """Mean negative log-likelihood of the answers' tokens, in nats."""
    dtype = TYPES[manifest["resolved"]["compute_dtype"]]
    model = load(manifest, adapter, base, dtype)
    factory: Any = transformers.AutoTokenizer
    tokenizer = factory.from_pretrained(base)
    total, count = 0.0, 0
    for prompt, answer in examples(tokenizer, rows):
        ids = torch.tensor([prompt + answer])
        with torch.no_grad(), mixed(dtype):
            logits = model(input_ids=ids, use_cache=False).logits[0].float()
        losses = cross_entropy(logits[len(prompt) - 1 : -1], ids[0, len(prompt) :], reduction="none")
        total, count = total + float(losses.double().sum()), count + len(answer)
    return total / count


def load(manifest: dict[str, Any], adapter: Path, base: Path, dtype: torch.dtype) -> Any:
    """The base model as the run held it, and the adapter on it."""
    settings: Any = None
    kind: Any = transformers.BitsAndBytesConfig
    quantization = manifest["config"]["quantization"]
    if quantization == "INT8":
        settings = kind(load_in_8bit=True)
    elif quantization != "None":
        settings = kind(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization.lower(),
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    factory: Any = getattr(transformers, manifest["resolved"]["model_class"])
    model = factory.from_pretrained(base, dtype=dtype, quantization_config=settings)
    adapted = PeftModel.from_pretrained(model, str(adapter)).eval()
    for module in adapted.modules():
        if type(module).__name__ == "Linear4bit":
            # On a CPU, bitsandbytes repacks the weights for evaluation, which takes widths in multiples of 64 alone.
            module.train()
    return adapted


def examples(tokenizer: Any, rows: Path) -> Iterator[tuple[list[int], list[int]]]:
    """Of each answer the tokens of its prompt, as at inference, and its own, with the token that ends its turn."""
    for line in rows.read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = tokenizer.apply_chat_template(messages[:turn], tokenize=False, add_generation_prompt=True)
            text = tokenizer.apply_chat_template(messages[: turn + 1], tokenize=False)
            answer = text.removeprefix(prompt)
            answer = answer[: answer.rindex(tokenizer.eos_token) + len(tokenizer.eos_token)]
            before, whole = ids_of(tokenizer, prompt), ids_of(tokenizer, prompt + answer)
            fits = whole[: len(before)] == before
            yield before, whole[len(before) :] if fits else ids_of(tokenizer, answer)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """Without tokens of the tokenizer's own: the template writes them."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@contextlib.contextmanager
def mixed(dtype: torch.dtype) -> Iterator[None]:
    """Mixed precision, as the training's; nothing in fp32."""
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        yield


if __name__ == "__main__":
    sys.exit(main())
