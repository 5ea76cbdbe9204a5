"""Advice about the adapter: its rank, alpha and layers, and who can serve it."""

import math
from collections.abc import Iterator
from dataclasses import replace

from lora_trainer.contract.advice.codes import Code, Severity
from lora_trainer.contract.advice.facts import Facts
from lora_trainer.contract.advice.rule import Rule, Values, count, number
from lora_trainer.contract.config import Layers, LoraConfig, Merge, Scaling, TrainConfig
from lora_trainer.contract.fit.adapter import AdapterError, plan_adapter
from lora_trainer.contract.fit.names import in_preset, matches
from lora_trainer.contract.fit.shape import Shape
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
_HOLDS = "the adapter can hold what there is to learn"
_GUIDE = (
    "as a guide, 4 to 8 suffice for style or fewer than 5,000 rows, 16 to 32 for following instructions, 64 to 128 for "
    "code, recall or more than 50,000 rows, 256 and more for deep specialization"
)
_ATTENTION_ALONE = "adapters on attention alone learn less than on all layers, with the same number of parameters too"
_REGRET = "Schulman et al., LoRA Without Regret (Thinking Machines, 2025)"
_CAPACITY = f"{_REGRET}; 2 bits a parameter: Allen-Zhu and Li, arXiv 2404.05405"


def _capacity(facts: Facts) -> tuple[int, int] | None:
    """Bits that the adapter holds, and that the learned tokens do."""
    if facts.rows is None or facts.trainable_parameters is None:
        return None
    return _BITS_A_PARAMETER * facts.trainable_parameters, _BITS_A_TOKEN * facts.rows.learned


def _rank_too_low(facts: Facts) -> Values | None:
    lora, bits = facts.config.lora, _capacity(facts)
    if bits is None or bits[0] >= bits[1] or lora.rank >= LARGEST_RANK or facts.trainable_parameters is None:
        return None
    values = {
        "rank": str(lora.rank),
        "parameters": count(facts.trainable_parameters),
        "capacity": count(bits[0]),
        "tokens": count(bits[1]),
    }
    few = _few_layers(facts) is not None and facts.shape is not None
    wide = replace(lora, layers=Layers.ALL_LINEAR, target_modules=()) if few else lora
    held = {rank: _held(facts, replace(wide, rank=rank)) for rank in _ranks(facts, wide, also_present=few)}
    highest = max((rank for rank, most in held.items() if most is not None), default=lora.rank)
    enough = next((rank for rank, most in held.items() if most is not None and most >= bits[1]), None)
    instead = {"layers": f"AllLinear{_instead(facts)}"} if few else {}
    if enough is None:
        return {**values, "highest": f"{highest}{' on all layers' if few else ''}"}
    return {**values, **instead, **({"enough": str(enough)} if enough > lora.rank else {})}


def _ranks(facts: Facts, lora: LoraConfig, *, also_present: bool) -> Iterator[int]:
    """Ranks that may be advised: the usual ones above the present one, of which no server refuses what it takes now."""
    if also_present:
        yield lora.rank
    adapter_alone = facts.config.output.merge is Merge.ADAPTER and not any(obstacles(traits_of(lora)))
    for rank in _RANKS:
        if rank > lora.rank and not (adapter_alone and any(obstacles(traits_of(replace(lora, rank=rank))))):
            yield rank


def _held(facts: Facts, lora: LoraConfig) -> float | None:
    """Bits that another adapter holds; None where the model cannot have it. By the ranks alone where its layers are not
    known."""
    if facts.shape is None:
        capacity = _capacity(facts)
        return None if capacity is None else capacity[0] * lora.rank / max(1, facts.config.lora.rank)
    try:
        return float(_BITS_A_PARAMETER * plan_adapter(lora, facts.shape).parameters)
    except AdapterError:
        return None


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
    values = {"rank": str(lora.rank), "double": str(2 * lora.rank), "alpha": str(lora.alpha)}
    values["ratio"] = number(lora.alpha / max(1, lora.rank))
    # Twice a high rank is advised against at such a rate.
    return {**values, "same": str(lora.rank)} if grows_with_rank(facts.config) else values


def grows_with_rank(config: TrainConfig) -> bool:
    """Whether alpha twice the rank would make steps too large, at that rank and rate."""
    classic = config.lora.scaling is Scaling.CLASSIC
    return classic and config.lora.rank >= _RANK_THAT_SCALES and config.training.learning_rate >= _ITS_RATE


def _alpha_rank_stabilized(facts: Facts) -> Values | None:
    lora, root = facts.config.lora, math.sqrt(max(1, facts.config.lora.rank))
    if lora.scaling is not Scaling.RANK_STABILIZED or lora.alpha <= _MOST_STABILIZED * root:
        return None
    lower = str(max(1, round(_USUAL_FACTOR * root)))
    return {"rank": str(lora.rank), "alpha": str(lora.alpha), "lower": lower, "ratio": f"{lora.alpha / root:.1f}"}


def _alpha_at_high_rank(facts: Facts) -> Values | None:
    lora, rate = facts.config.lora, facts.config.training.learning_rate
    if not grows_with_rank(facts.config) or lora.alpha < 2 * lora.rank:
        return None
    return {"rank": str(lora.rank), "alpha": str(lora.alpha), "rate": number(rate), "lower": number(_ITS_RATE / 2)}


def _few_layers(facts: Facts) -> Values | None:
    lora = facts.config.lora
    if lora.modules_to_save or lora.target_parameters or (facts.shape is not None and not _has_mlps(lora, facts.shape)):
        return None
    if lora.target_modules:
        attention = all(name.rsplit(".", 1)[-1] in _ATTENTION for name in lora.target_modules)
        adapted = ", ".join(lora.target_modules)[:120]
        return {"layers": adapted, "instead": _instead(facts)} if attention else None
    if lora.layers not in {Layers.ATTENTION, Layers.QUERY_VALUE}:
        return None
    return {"layers": lora.layers.value}


def _instead(facts: Facts) -> str:
    return " in place of targetModules" if facts.config.lora.target_modules else ""


def _has_mlps(lora: LoraConfig, shape: Shape) -> bool:
    """Whether `AllLinear` would adapt a module of an MLP; a mixture's experts are none."""
    return any(
        in_preset(name, Layers.MLP)
        and not module.reserved
        and not any(matches(name, one) for one in lora.exclude_modules)
        for index, _, name, module in shape.modules()
        if not lora.layer_indices or index in lora.layer_indices
    )


def _serve_merged(facts: Facts) -> Values | None:
    found = "; ".join(obstacles(traits_of(facts.config.lora)))
    if not found or facts.config.output.merge is not Merge.ADAPTER:
        return None
    if facts.plan is None or not facts.plan.sharded:
        return {"obstacles": found}
    return {"obstacles": found, "divided": str(facts.plan.sharded_over or "several")}


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
        message=f"Raise spec.lora.rank to {{enough}}, so that {_HOLDS}; {_GUIDE}",
        special=(
            "Take a larger model or fewer tokens, since not even rank {highest} holds what there is to learn",
            "Set spec.lora.layers to {layers}, and spec.lora.rank to {enough}, so that " + _HOLDS,
            "Set spec.lora.layers to {layers}, so that " + _HOLDS,
        ),
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
        special=(
            (
                "Set spec.lora.alpha to {same}, unless a trial says otherwise: alpha / rank multiplies all that the "
                "adapter adds, and twice that rank would make large steps at the run's learning rate"
            ),
        ),
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
        condition="attention alone, or query and value alone, is adapted, and a preset would adapt MLPs, too",
        message=f"Set spec.lora.layers to AllLinear, at a lower rank where memory is short: {_ATTENTION_ALONE}",
        special=(
            f"Set spec.lora.layers to AllLinear{{instead}}, at a lower rank where memory is short: {_ATTENTION_ALONE}",
        ),
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
        message="Set spec.output.merge to Both or Merged if vLLM is to serve the result: every server loads a "
        "merged model",
        special=(
            (
                "Merge the result with lora-trainer merge if vLLM is to serve it: every server loads a merged "
                "model, and a run whose base is divided over {divided} GPUs merges none"
            ),
        ),
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
        message="Serve the adapter with {needs} or later: older releases load it and give wrong answers. Patterns that "
        "keep alpha / rank equal do without",
        evidence=("spec.lora.rankPattern and alphaPattern give modules factors of their own",),
        source="trainer-result.md, Serving",
        rule_of_thumb=False,
        check=_recent_server,
    ),
)
