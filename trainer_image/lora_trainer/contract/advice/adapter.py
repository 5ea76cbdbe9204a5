"""Advice about the adapter: its rank, alpha and layers, and who can serve it."""

import math

from lora_trainer.contract.advice.codes import Code, Severity
from lora_trainer.contract.advice.facts import Facts
from lora_trainer.contract.advice.rule import Rule, Values, count, number
from lora_trainer.contract.config import Layers, Merge, Scaling
from lora_trainer.contract.lora_section import LARGEST_RANK
from lora_trainer.contract.serving import (
    DEFAULT_RANK,
    HONOURS_PATTERNS,
    has_own_factors,
    obstacles,
    traits_of,
    vllm_rank,
)

_BITS_A_PARAMETER, _BITS_A_TOKEN = 2, 1
_RANKS = (8, 16, 32, 64, 128, 256, 512, LARGEST_RANK)
_HIGH_RANK, _FEW_ROWS, _FAR_ABOVE = 64, 5000, 10
_USUAL_FACTOR, _MOST_STABILIZED = 2, 4
_RANK_THAT_SCALES, _ITS_RATE = 128, 0.0002
_ATTENTION = frozenset(
    [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "qkv_proj",
        "out_proj",
        "query",
        "key",
        "value",
        "query_key_value",
        "c_attn",
        "Wqkv",
    ]
)
_GUIDE = (
    "as a guide, 4 to 8 suffice for style or fewer than 5,000 rows, 16 to 32 for following instructions, 64 to 128 for "
    "code, recall or more than 50,000 rows, 256 and more for deep specialization"
)
_REGRET = "Schulman et al., LoRA Without Regret (Thinking Machines, 2025)"
_CAPACITY = f"{_REGRET}; 2 bits a parameter: Allen-Zhu and Li, arXiv 2404.05405"


def _capacity(facts: Facts) -> tuple[int, int] | None:
    """Bits that the adapter holds, and that the learned tokens do."""
    if facts.rows is None or facts.trainable_parameters is None:
        return None
    return _BITS_A_PARAMETER * facts.trainable_parameters, _BITS_A_TOKEN * facts.rows.learned


def _rank_too_low(facts: Facts) -> Values | None:
    rank, bits = facts.config.lora.rank, _capacity(facts)
    higher = [one for one in _RANKS if one > rank]
    if bits is None or bits[0] >= bits[1] or not higher or facts.trainable_parameters is None:
        return None
    enough = next((one for one in higher if bits[0] * one >= bits[1] * rank), higher[-1])
    return {
        "rank": str(rank),
        "enough": str(enough),
        "parameters": count(facts.trainable_parameters),
        "capacity": count(bits[0]),
        "tokens": count(bits[1]),
    }


def _rank_high(facts: Facts) -> Values | None:
    rank, bits = facts.config.lora.rank, _capacity(facts)
    if bits is None or facts.rows is None or rank < _HIGH_RANK or facts.rows.training >= _FEW_ROWS:
        return None
    if bits[0] < _FAR_ABOVE * bits[1]:
        return None
    return {
        "rank": str(rank),
        "rows": count(facts.rows.training),
        "capacity": count(bits[0]),
        "tokens": count(bits[1]),
    }


def _alpha_ratio(facts: Facts) -> Values | None:
    lora = facts.config.lora
    if lora.scaling is not Scaling.CLASSIC or lora.rank <= lora.alpha <= 2 * lora.rank:
        return None
    ratio = number(lora.alpha / max(1, lora.rank))
    return {"rank": str(lora.rank), "double": str(2 * lora.rank), "alpha": str(lora.alpha), "ratio": ratio}


def _alpha_rank_stabilized(facts: Facts) -> Values | None:
    lora, root = facts.config.lora, math.sqrt(max(1, facts.config.lora.rank))
    if lora.scaling is not Scaling.RANK_STABILIZED or lora.alpha <= _MOST_STABILIZED * root:
        return None
    lower = str(max(1, round(_USUAL_FACTOR * root)))
    return {"rank": str(lora.rank), "alpha": str(lora.alpha), "lower": lower, "ratio": f"{lora.alpha / root:.1f}"}


def _alpha_at_high_rank(facts: Facts) -> Values | None:
    lora, rate = facts.config.lora, facts.config.training.learning_rate
    high = lora.rank >= _RANK_THAT_SCALES and lora.alpha >= 2 * lora.rank
    if not high or lora.scaling is not Scaling.CLASSIC or rate < _ITS_RATE:
        return None
    return {"rank": str(lora.rank), "alpha": str(lora.alpha), "rate": number(rate), "lower": number(rate / 2)}


def _few_layers(facts: Facts) -> Values | None:
    lora = facts.config.lora
    if lora.modules_to_save or lora.target_parameters:
        return None
    if lora.target_modules:
        attention = all(name.rsplit(".", 1)[-1] in _ATTENTION for name in lora.target_modules)
        return {"layers": ", ".join(lora.target_modules)[:120]} if attention else None
    return {"layers": lora.layers.value} if lora.layers in {Layers.ATTENTION, Layers.QUERY_VALUE} else None


def _serve_merged(facts: Facts) -> Values | None:
    found = "; ".join(obstacles(traits_of(facts.config.lora)))
    return {"obstacles": found} if found and facts.config.output.merge is Merge.ADAPTER else None


def _servable_rank(facts: Facts) -> int | None:
    """The declared rank of an adapter that is published, and that vLLM serves."""
    traits = traits_of(facts.config.lora)
    published = facts.config.output.merge is not Merge.MERGED
    return traits.rank if published and not any(obstacles(traits)) else None


def _max_lora_rank(facts: Facts) -> Values | None:
    rank = _servable_rank(facts)
    if rank is None or rank <= DEFAULT_RANK:
        return None
    return {"rank": str(rank), "flag": str(vllm_rank(rank)), "default": str(DEFAULT_RANK)}


def _recent_server(facts: Facts) -> Values | None:
    if _servable_rank(facts) is None or not has_own_factors(facts.config.lora):
        return None
    return {"needs": HONOURS_PATTERNS}


RULES = (
    Rule(
        code=Code.RANK_TOO_LOW,
        severity=Severity.WARNING,
        subject="rank",
        condition="the adapter holds less (2 bits a trained parameter) than the learned tokens do (1 bit each)",
        message="Raise spec.lora.rank to {enough}, so that the adapter can hold what there is to learn; " + _GUIDE,
        evidence=(
            (
                "Rank {rank} gives {parameters} trained parameters, which hold about {capacity} bits; {tokens} tokens "
                "are learned, about 1 bit each"
            ),
        ),
        source=_CAPACITY,
        rule_of_thumb=True,
        check=_rank_too_low,
    ),
    Rule(
        code=Code.RANK_HIGH,
        severity=Severity.INFO,
        subject="rank",
        condition="rank 64 or more, fewer than 5,000 rows, and room for more than ten times the learned tokens",
        message="A lower spec.lora.rank is likely to learn as much in a smaller adapter; " + _GUIDE,
        evidence=(
            "Rank {rank} holds about {capacity} bits, and {rows} rows have {tokens} learned tokens, about 1 bit each",
        ),
        source=_CAPACITY,
        rule_of_thumb=True,
        check=_rank_high,
    ),
    Rule(
        code=Code.ALPHA_RATIO,
        severity=Severity.INFO,
        subject="alpha",
        condition="alpha / rank is outside of 1 to 2, without rsLoRA",
        message="Set spec.lora.alpha from {rank} to {double}, unless a trial says otherwise: alpha / rank multiplies "
        "all that the adapter adds, much as a learning rate does",
        evidence=("spec.lora.alpha is {alpha} at rank {rank}, a factor of {ratio}",),
        source="Raschka, Practical Tips for Finetuning LLMs Using LoRA (2023)",
        rule_of_thumb=True,
        check=_alpha_ratio,
    ),
    Rule(
        code=Code.ALPHA_RANK_STABILIZED,
        severity=Severity.INFO,
        subject="alpha",
        condition="with rsLoRA, alpha / √rank is above 4",
        message="Set spec.lora.alpha to some {lower}, unless a trial says otherwise: with scaling RankStabilized it is "
        "alpha / √rank that multiplies all that the adapter adds, much as a learning rate does",
        evidence=("spec.lora.alpha is {alpha} at rank {rank}, a factor of {ratio}; it is 2 by default without it",),
        source="Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA (arXiv 2312.03732), for "
        "the factor",
        rule_of_thumb=True,
        check=_alpha_rank_stabilized,
    ),
    Rule(
        code=Code.ALPHA_AT_HIGH_RANK,
        severity=Severity.INFO,
        subject="alpha",
        condition="rank 128 or more with alpha twice as large or more, at a learning rate of 2e-4 or more, without "
        "rsLoRA",
        message="Lower spec.training.learningRate, to {lower} for a start, or set spec.lora.alpha to {rank}: what a "
        "step changes grows with the rank where alpha / rank stays the same",
        evidence=("spec.lora.alpha is {alpha} at rank {rank}, and spec.training.learningRate is {rate}",),
        source=f"{_REGRET}; Raschka (2023), who trained rank 256 with alpha 512",
        rule_of_thumb=True,
        check=_alpha_at_high_rank,
    ),
    Rule(
        code=Code.FEW_LAYERS,
        severity=Severity.INFO,
        subject="layers",
        condition="attention alone, or query and value alone, is adapted",
        message="Set spec.lora.layers to AllLinear, at a lower rank where memory is short: adapters on attention alone "
        "learn less than on all layers, with the same number of parameters too",
        evidence=("Adapted are {layers}, and no module of the MLPs",),
        source=f"{_REGRET}; Dettmers et al., QLoRA, arXiv 2305.14314, section 4",
        rule_of_thumb=False,
        check=_few_layers,
    ),
    Rule(
        code=Code.SERVE_MERGED,
        severity=Severity.WARNING,
        subject="serving",
        condition="vLLM cannot serve the adapter, and no merged model is asked for",
        message="Set spec.output.merge to Both or Merged where vLLM shall serve the result: every server loads a "
        "merged model",
        evidence=("{obstacles}",),
        source="vLLM, vllm/lora/peft_helper.py",
        rule_of_thumb=False,
        check=_serve_merged,
    ),
    Rule(
        code=Code.MAX_LORA_RANK,
        severity=Severity.INFO,
        subject="serving",
        condition="the adapter's largest rank is above vLLM's default of 16",
        message="Start vLLM with --max-lora-rank {flag}, the smallest value that serves this adapter",
        evidence=("The largest rank is {rank}, and vLLM takes {default} without that flag",),
        source="vLLM, vllm/config/lora.py",
        rule_of_thumb=False,
        check=_max_lora_rank,
    ),
    Rule(
        code=Code.RECENT_SERVER,
        severity=Severity.WARNING,
        subject="serving",
        condition="rankPattern or alphaPattern give modules other factors (alpha / rank) than the rest has",
        message="Serve the adapter with {needs} or later: older releases load it and answer wrongly. Patterns that "
        "keep alpha / rank equal do without",
        evidence=("spec.lora.rankPattern and alphaPattern give modules factors of their own",),
        source="trainer-result.md, Serving",
        rule_of_thumb=False,
        check=_recent_server,
    ),
)
