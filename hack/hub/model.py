"""Make the demo's model: SmolLM2-135M-Instruct as an ordinary Hugging Face model folder, once per machine.

The weights are the published ones after a round trip through 4-bit GGUF (Q4_1, embeddings Q8_0), stored as bf16 again:
the model's shape, tokenizer and behaviour are those of the original, its single weights are not bit for bit.

Run `python -m hub.model` (with `hack` on PYTHONPATH) to convert and print the folder.
"""

import fcntl
import json
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub.gguf_package import FILE_SHA256, GGUFUnavailableError, gguf_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

REPO_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
CONVERSION_VERSION = 1
"""Raise it when the conversion writes something else; existing folders are then made again."""

MARKER = ".conversion.json"
CONTEXT_LENGTH = 8192


def cache_root() -> Path:
    """Return the folder that holds `models/` and `datasets/`: `$XDG_CACHE_HOME/lora-operator` or below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lora-operator"


def ensure_model(root: Path) -> Path:
    """Return `root/models/<org>/<name>`, converting it first where it is missing or of an older conversion.

    Safe against interruption (written beside, renamed into place) and against a second process (locked).
    """
    target = root / "models" / REPO_ID
    if is_current(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent / f".{target.name}.lock"):
        if is_current(target):
            return target
        source = gguf_file(root / "downloads")
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as scratch:
            fresh = Path(scratch) / target.name
            convert(source, fresh)
            (fresh / MARKER).write_text(json.dumps(_marker()))
            if target.exists():
                target.rename(Path(scratch) / "outdated")
            fresh.rename(target)
    return target


def is_current(folder: Path) -> bool:
    """Tell whether `folder` was written completely by this version of the conversion."""
    try:
        return bool(json.loads((folder / MARKER).read_text()) == _marker())
    except (OSError, ValueError):
        return False


def _marker() -> dict[str, object]:
    return {"gguf_sha256": FILE_SHA256, "conversion": CONVERSION_VERSION}


def convert(source: Path, target: Path) -> None:
    """Read the GGUF file `source` and write weights (bf16 safetensors), config, tokenizer and template to `target`."""
    import torch  # noqa: PLC0415 - slow to import, and not needed when the model is already there
    from transformers import AutoModelForCausalLM, GgufConfig, LlamaForCausalLM  # noqa: PLC0415 - slow to import, as torch is

    dense = GgufConfig(dequantize=True)
    read = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, quantization_config=dense, dtype=torch.bfloat16
    )
    # A fresh model of the same shape: the one that was read still believes that it is quantized.
    model = LlamaForCausalLM(published_config(read.config.to_dict()))
    model.bfloat16()
    model.load_state_dict(read.state_dict())
    model.generation_config.eos_token_id = read.config.eos_token_id
    model.generation_config.bos_token_id = read.config.bos_token_id
    model.generation_config.pad_token_id = read.config.pad_token_id
    model.save_pretrained(target)
    _write_tokenizer(source, target)
    for file in target.iterdir():
        file.chmod(0o644)  # served by a process of another user


def published_config(read: "Mapping[str, Any]") -> Any:
    """Return the LlamaConfig with the values published for the model, taking sizes from the file that was read."""
    from transformers import LlamaConfig  # noqa: PLC0415 - slow to import, as torch is

    sizes = ("hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads")
    more_sizes = ("num_hidden_layers", "num_key_value_heads", "vocab_size", "bos_token_id", "eos_token_id")
    kept = {name: read[name] for name in (*sizes, *more_sizes, "pad_token_id", "rope_parameters")}
    # GGUF stores the epsilon as a 32-bit float: 9.999999747378752e-06.
    epsilon = float(f"{read['rms_norm_eps']:.6g}")
    return LlamaConfig(**kept, rms_norm_eps=epsilon, tie_word_embeddings=True, dtype="bfloat16")


def _write_tokenizer(source: Path, target: Path) -> None:
    from tokenizers import pre_tokenizers  # noqa: PLC0415 - slow to import, as torch is
    from transformers import AutoTokenizer  # noqa: PLC0415 - slow to import, as torch is

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # GGUF names the splitting rule only ("smollm"); reading it drops the half that splits numbers into digits.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = CONTEXT_LENGTH
    tokenizer.save_pretrained(target)
    file = target / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    for name in ("is_local", "local_files_only"):
        settings.pop(name, None)
    # The generic class reads tokenizer.json as it stands, in every version of transformers and in vLLM.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.pop("backend", None)
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


@contextmanager
def _locked(path: Path) -> "Iterator[None]":
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Convert into the cache, or into the root folder given as the only argument, and print the model's folder."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else cache_root()
    needed_bytes = 2 * 10**9
    root.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(root).free < needed_bytes:
        print(f"{root} has less than 2 GB free: free some space or set XDG_CACHE_HOME", file=sys.stderr)
        return 1
    try:
        print(ensure_model(root))
    except GGUFUnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
