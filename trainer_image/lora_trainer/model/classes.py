"""The class of Transformers that a base model is loaded into, if it writes text from left to right at all."""

from typing import Any

from lora_trainer.errors import ConfigError
from lora_trainer.plan.families import TEXT_ALONE
from lora_trainer.spec.summary import CAUSAL_CLASS

CAUSAL, SEEING = CAUSAL_CLASS, "AutoModelForImageTextToText"


def class_name(configuration: Any, name: str) -> str:
    """Name of the class that people load such a model with: one that also takes images where there is one.

    `name` is the model's, for people. Raises `ConfigError` for what is no causal language model: encoders, encoders
    with a decoder, models of other things.
    """
    from transformers.models.auto import modeling_auto as mappings  # noqa: PLC0415 - takes seconds to import

    kind = type(configuration)
    if getattr(configuration, "is_encoder_decoder", False):
        raise _refusal(configuration, name, "reads its prompt with an encoder")
    if is_seeing(configuration) and kind in mappings.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return CAUSAL if configuration.model_type in TEXT_ALONE else SEEING
    if kind not in mappings.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise _refusal(configuration, name, "has no class of Transformers for that")
    # Encoders are there as decoders, too, which their configuration has to say.
    if kind in mappings.MODEL_FOR_MASKED_LM_MAPPING and not getattr(configuration, "is_decoder", False):
        raise _refusal(configuration, name, "sees the words on both sides of each")
    return CAUSAL


def is_seeing(configuration: Any) -> bool:
    """Whether the language model is one of several parts."""
    return configuration.get_text_config() is not configuration


def auto_class(configuration: Any, name: str) -> Any:
    """The class of that name. Raises as `class_name`."""
    import transformers  # noqa: PLC0415 - as above

    return getattr(transformers, class_name(configuration, name))


def _refusal(configuration: Any, name: str, why: str) -> ConfigError:
    return ConfigError(
        f"model.uri is {name}: its kind {configuration.model_type!r} {why}, so it is not a causal language model, "
        "which writes text from left to right; name one that is, such as Llama, Qwen or Mistral"
    )
