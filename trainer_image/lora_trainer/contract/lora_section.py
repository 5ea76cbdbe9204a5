"""`spec.lora` of a manifest: defaults, bounds, and the combinations that make no sense."""

from lora_trainer.contract.config import Init, Layers, LoraConfig, Quantization, Scaling, Variant
from lora_trainer.contract.fields import Reader

LARGEST_RANK = 1024
LARGEST_ALPHA = 4096
LARGEST_LAYER_INDEX = 1023


def read_lora(section: Reader, *, strict: bool) -> LoraConfig:
    """The adapter's configuration; what is wrong is added to the section's problems."""
    rank = section.integer("rank", 16, 1, LARGEST_RANK) or 16
    targets = section.texts("targetModules")
    if targets and section.get("layers") is not None:
        section.complain("targetModules", list(targets), "must not be set together with layers: remove one of the two")
    layers = None if targets else section.choice("layers", Layers.ALL_LINEAR, Layers)
    section.seen.add("layers")
    dropout = section.decimal("dropout", 0.0, rule="at least 0 and less than 1", low=0, high=1, open_high=True)
    config = LoraConfig(
        rank=rank,
        alpha=section.integer("alpha", 2 * rank, 1, LARGEST_ALPHA) or 2 * rank,
        layers=layers,
        target_modules=targets,
        exclude_modules=section.texts("excludeModules"),
        layer_indices=tuple(sorted(set(section.integers("layerIndices", 0, LARGEST_LAYER_INDEX)))),
        dropout=dropout or 0.0,
        scaling=section.choice("scaling", Scaling.CLASSIC, Scaling),
        variant=section.choice("variant", Variant.LORA, Variant),
        init=section.choice("init", Init.DEFAULT, Init),
        rank_pattern=section.numbers("rankPattern", 1, LARGEST_RANK),
        alpha_pattern=section.numbers("alphaPattern", 1, LARGEST_ALPHA),
        modules_to_save=section.texts("modulesToSave"),
        target_parameters=section.texts("targetParameters"),
    )
    _check_combinations(section, config)
    section.finish(strict=strict)
    return config


def _check_combinations(section: Reader, config: LoraConfig) -> None:
    if config.variant is Variant.DORA and config.target_parameters:
        rule = "must be LoRA with targetParameters: DoRA needs the weight of a linear module; remove one of the two"
        section.complain("variant", config.variant.value, rule)
    if config.init.changes_base and config.variant is Variant.DORA:
        rule = "must be Default or Gaussian with variant DoRA: the result could not be converted to a plain adapter"
        section.complain("init", config.init.value, rule)
    if config.init.changes_base and config.target_parameters:
        rule = (
            "must be Default or Gaussian with targetParameters: the start values are computed for linear modules only"
        )
        section.complain("init", config.init.value, rule)
    if config.dropout > 0 and config.target_parameters:
        section.complain(
            "dropout", str(config.dropout), "must be 0 with targetParameters: their inputs are not dropped"
        )


def check_quantized(section: Reader, config: LoraConfig, quantization: Quantization) -> None:
    """PiSSA and OLoRA take the base's main directions out of its weights, which must not be quantized for it; with
    `Auto` they are not."""
    if config.init.changes_base and quantization not in {Quantization.NONE, Quantization.AUTO}:
        rule = (
            f"must be Default or Gaussian with quantization {quantization.value}: PiSSA and OLoRA rewrite the base "
            "weights, which 4- and 8-bit storage does not allow"
        )
        section.complain("init", config.init.value, rule)
