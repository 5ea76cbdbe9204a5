"""Whether vLLM can serve what was written, with which flags, and the command for it.

The adapter is judged by its files, as vLLM will read them, and by the rules of `contract.serving`.
"""

import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lora_trainer.errors import DamagedError
from lora_trainer.spec.serving import HONOURS_PATTERNS, Traits, factor, lora_module, obstacles, vllm_rank
from lora_trainer.storage.manifest import Serving
from lora_trainer.storage.tensor_files import read_entries

WAY_OUT = "publish it with output.merge: Merged, which every server loads"
TEMPLATE = "chat_template.jinja"
"""The chat template beside the adapter, where the base model has none."""
_KINDS = (".lora_A", ".lora_embedding_A")

MERGED = Serving(servable=True, text="", rank=0)
"""A merged model: every server loads it, without flags."""


def adapter_serving(folder: Path) -> Serving:
    """Judge the adapter in PEFT's format in `folder`. Raises `DamagedError` where its files cannot be read."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        ranks = _ranks(config, [entry.name for entry in read_entries(folder / "adapter_model.safetensors")])
        declared = max(config["r"], *(config.get("rank_pattern") or {}).values(), 0)
    except (OSError, ValueError, KeyError) as error:
        raise DamagedError(f"the adapter cannot be read: {error}") from error
    rank = max(ranks.values(), default=0)
    obstacle = next(obstacles(_traits(config, rank, declared)), None)
    if obstacle is not None:
        return Serving(servable=False, text=f"{obstacle}; {WAY_OUT}", rank=rank)
    text = f"--enable-lora --max-lora-rank {vllm_rank(declared)}"
    if (folder / TEMPLATE).is_file():
        text += f" --chat-template {TEMPLATE}"
    return Serving(servable=True, text=text, rank=rank, needs=_needs(config, ranks))


def _traits(config: Mapping[str, Any], rank: int, declared: int) -> Traits:
    """`declared` is the largest of `r` and all of `rank_pattern`, used or not, `rank` that of the modules."""
    return Traits(
        rank=declared,
        dora=bool(config.get("use_dora")),
        whole=bool(config.get("modules_to_save") or config.get("trainable_token_indices")),
        biases=config.get("bias", "none") != "none" or bool(config.get("lora_bias")),
        experts=bool(config.get("target_parameters")),
        low_rank=rank > 0,
    )


def _needs(config: Mapping[str, Any], modules: Iterable[str]) -> str:
    """The release of vLLM from which on modules may have factors of their own, where they do; else nothing."""
    own = scale(config)
    even = all(math.isclose(scale(config, module), own, rel_tol=1e-9) for module in modules)
    return "" if even else HONOURS_PATTERNS


def scale(config: Mapping[str, Any], module: str | None = None) -> float:
    """Factor on B A of a module of the adapter, by PEFT's `adapter_config.json`; without a module that of the others.

    A pattern's key matches a module's full name or the end of it, and may be a regular expression, as in PEFT.
    """
    rank = _pattern(config.get("rank_pattern"), module, config["r"])
    alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return factor(alpha, rank, stabilized=bool(config.get("use_rslora")))


def _pattern(patterns: Mapping[str, Any] | None, module: str | None, default: Any) -> Any:
    if module is None or not patterns:
        return default
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _ranks(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, int]:
    """Module to rank. Not by shapes: adapters of a mixture's experts stack the experts along the rank."""
    modules = {
        name.removeprefix("base_model.model.").partition(kind)[0] for name in names for kind in _KINDS if kind in name
    }
    return {module: int(_pattern(config.get("rank_pattern"), module, config["r"])) for module in sorted(modules)}


def command(
    serving: Serving, *, base_model: str, base_revision: str, name: str, path: str, folder: str | None = None
) -> str | None:
    """What to type to serve the adapter as `name`; None where vLLM cannot serve it.

    `path` is what vLLM loads, a folder or a name on the Hub; `folder` is where the files lie if `path` is no folder. Of
    a base model that is not on the Hub, whose revision is a digest, only its user has the path.
    """
    if not serving.servable:
        return None
    folder = path if folder is None else folder
    local = base_revision.startswith("sha256:")
    typed = ["vllm", "serve", "path/of/the/base/model" if local else base_model]
    typed += [] if local or not base_revision else ["--revision", base_revision]
    # A path among the flags is relative to the adapter's folder.
    typed += [f"{folder}/{flag}" if flag == TEMPLATE else flag for flag in shlex.split(serving.text)]
    return shlex.join([*typed, "--lora-modules", lora_module(name, path)])


def merged_command(path: str) -> str:
    """What to type to serve a merged model."""
    return f"vllm serve {shlex.quote(path)}"
