"""What vLLM can serve of adapters, by what they are made of: before a training by its configuration, after it by files.

The rules are those of `PEFTHelper` in vllm/lora/peft_helper.py, which refuses DoRA, whole modules and biases, and which
compares `--max-lora-rank` with the largest of `r` and all of `rank_pattern`, whether a module has it or not.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

from lora_trainer.spec.config import LoraConfig, Variant

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM's `--max-lora-rank` takes (`MaxLoRARanks` in vllm/config/lora.py)."""
HONOURS_PATTERNS = "vLLM 0.32"
"""The release from which on modules may have factors of their own. Older ones multiply every module's product by the
one factor of `r` and `lora_alpha`, and give wrong answers."""
_LARGEST = f"{VLLM_RANKS[-1]}, the largest that vLLM serves"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What of an adapter decides whether it can be served. `rank` is the largest that is declared, used or not, or
    `doubled` as PiSSA and OLoRA are written; `low_rank` says whether it has any matrices of low rank."""

    rank: int
    doubled: bool = False
    dora: bool = False
    whole: bool = False
    biases: bool = False
    experts: bool = False
    low_rank: bool = True


def traits_of(config: LoraConfig) -> Traits:
    """The traits of the adapter that a run will write. PiSSA and OLoRA are written as plain adapters of twice the
    rank, the same for all modules."""
    rank = max(config.rank, *config.rank_pattern.values(), 0)
    return Traits(
        rank=2 * rank if config.init.changes_base else rank,
        doubled=config.init.changes_base,
        dora=config.variant is Variant.DORA,
        whole=bool(config.modules_to_save),
        experts=bool(config.target_parameters),
    )


def obstacles(traits: Traits) -> Iterator[str]:
    """Why vLLM cannot serve the adapter; nothing where it can."""
    if traits.dora:
        yield "vLLM serves no DoRA adapters"
    if traits.whole:
        yield "vLLM serves no adapters with modules that were trained whole (lora.modulesToSave)"
    if traits.biases:
        yield "vLLM serves no adapters with biases"
    if traits.experts:
        yield "vLLM serves adapters on a mixture's experts (lora.targetParameters) for few models only"
    if not traits.low_rank:
        yield "the adapter has no low-rank matrices, and vLLM serves nothing else of an adapter"
    if traits.rank > VLLM_RANKS[-1]:
        twice = ", and twice with lora.init PiSSA or OLoRA" if traits.doubled else ""
        counts = f"of lora.rank and lora.rankPattern the largest counts, used or not{twice}"
        yield f"rank {traits.rank} ({counts}) is above {_LARGEST}"


def vllm_rank(rank: int) -> int:
    """The smallest sufficient value of `--max-lora-rank`. Raises `ValueError` above the largest."""
    for allowed in VLLM_RANKS:
        if rank <= allowed:
            return allowed
    raise ValueError(f"rank {rank} is above {_LARGEST}")


def lora_module(name: str, path: str) -> str:
    """The value of `--lora-modules`: `LoRAParserAction` of vLLM takes `name=path` only where there is one equals sign
    and no comma; else JSON."""
    plain = f"{name}={path}"
    if plain.count("=") == 1 and "," not in plain:
        return plain
    return json.dumps({"name": name, "path": path}, ensure_ascii=False)


def factor(alpha: int, rank: int, *, stabilized: bool) -> float:
    """What multiplies B A: alpha / rank, or alpha / sqrt(rank)."""
    least = max(1, rank)
    return alpha / math.sqrt(least) if stabilized else alpha / least
