"""Whether vLLM can serve what was written, with which flags, and the command for it.

Standard library only: the adapter is judged by its files, as vLLM will read them.
"""

import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lora_trainer.artifact.manifest import Serving
from lora_trainer.artifact.tensor_files import read_entries
from lora_trainer.errors import DamagedError

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM's `--max-lora-rank` takes (`MaxLoRARanks` in vllm/config/lora.py)."""
WAY_OUT = "publish it with output.merge: Merged, which every server loads"


MERGED = Serving(servable=True, text="", rank=0)
"""A merged model: every server loads it, without flags."""


def adapter_serving(folder: Path) -> Serving:
    """Judge the adapter in PEFT's format in `folder`. Raises `DamagedError` where its files cannot be read."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        ranks = _ranks(config, [entry.name for entry in read_entries(folder / "adapter_model.safetensors")])
    except (OSError, ValueError, KeyError) as error:
        raise DamagedError(f"the adapter cannot be read: {error}") from error
    rank = max(ranks.values(), default=0)
    obstacle = _obstacle(config, ranks, rank)
    if obstacle is not None:
        return Serving(servable=False, text=f"{obstacle}; {WAY_OUT}", rank=rank)
    return Serving(servable=True, text=f"--enable-lora --max-lora-rank {vllm_rank(rank)}", rank=rank)


def vllm_rank(rank: int) -> int:
    """The smallest sufficient value of `--max-lora-rank`. Raises `ValueError` above the largest."""
    for allowed in VLLM_RANKS:
        if rank <= allowed:
            return allowed
    raise ValueError(f"rank {rank} is above {VLLM_RANKS[-1]}, the largest that vLLM serves")


def _obstacle(config: Mapping[str, Any], ranks: Mapping[str, int], rank: int) -> str | None:
    """Why vLLM cannot serve the adapter, or None.

    The rules are those of `PEFTHelper` in vllm/lora/peft_helper.py, which refuses DoRA, whole modules and biases, and
    which knows no patterns: it multiplies every module's product by the one factor of `r` and `lora_alpha`.
    """
    whole = config.get("modules_to_save") or config.get("trainable_token_indices")
    biases = config.get("bias", "none") != "none" or config.get("lora_bias")
    obstacles = (
        (config.get("use_dora"), "vLLM serves no DoRA adapters"),
        (whole, "vLLM serves no adapters with modules that were trained whole (lora.modulesToSave)"),
        (biases, "vLLM serves no adapters with biases"),
        (
            config.get("target_parameters"),
            "vLLM serves adapters on a mixture's experts (lora.targetParameters) for few models only",
        ),
        (
            rank > VLLM_RANKS[-1],
            f"the adapter's rank {rank} is above {VLLM_RANKS[-1]}, the largest that vLLM serves",
        ),
    )
    return next((sentence for holds, sentence in obstacles if holds), None) or _uneven(config, ranks)


def _uneven(config: Mapping[str, Any], modules: Iterable[str]) -> str | None:
    """The sentence where modules have factors of their own."""
    own = scale(config)
    differing = [module for module in modules if not math.isclose(scale(config, module), own, rel_tol=1e-9)]
    if differing:
        return (
            f"vLLM multiplies every module by the same factor, here {own:g}, but the patterns of rank and alpha give "
            f"{differing[0]} {scale(config, differing[0]):g}"
        )
    return None


def scale(config: Mapping[str, Any], module: str | None = None) -> float:
    """Factor on B A of a module of the adapter, by PEFT's `adapter_config.json`; without a module that of the others.

    A pattern's key matches a module's full name or the end of it, and may be a regular expression, as in PEFT.
    """
    rank = _pattern(config.get("rank_pattern"), module, config["r"])
    alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return float(alpha / math.sqrt(rank)) if config.get("use_rslora") else float(alpha / rank)


def _pattern(patterns: Mapping[str, Any] | None, module: str | None, default: Any) -> Any:
    if module is None or not patterns:
        return default
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _ranks(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, int]:
    """Module to rank. Not by shapes: adapters of a mixture's experts stack the experts along the rank."""
    modules = {name.removeprefix("base_model.model.").partition(".lora_A")[0] for name in names if ".lora_A" in name}
    return {module: int(_pattern(config.get("rank_pattern"), module, config["r"])) for module in sorted(modules)}


def command(serving: Serving, *, base_model: str, name: str, path: str) -> str | None:
    """What to type to serve the adapter as `name`; None where vLLM cannot serve it."""
    if not serving.servable:
        return None
    module = shlex.quote(f"{name}={path}")
    return f"vllm serve {shlex.quote(base_model)} {serving.text} --lora-modules {module}"


def merged_command(path: str) -> str:
    """What to type to serve a merged model."""
    return f"vllm serve {shlex.quote(path)}"
