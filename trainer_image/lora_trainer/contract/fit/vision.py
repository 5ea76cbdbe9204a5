"""Vision towers whose parameters a configuration tells."""

from lora_trainer.contract.fit.reading import Values

_WIDEST = 2**20


def tower(values: Values, hidden: int) -> int | None:
    """Parameters of the tower and of what leads from it to the language model, whose width is `hidden`; None where
    they are not known. Raises `ShapeError`."""
    vision = values.child("vision_config")
    if vision is None or values.text("model_type", default="") != "gemma3":
        return None
    # SigLIP (arXiv 2303.15343), then Gemma 3's norm and projection.
    width = vision.number("hidden_size", high=_WIDEST, default=768)
    mlp = vision.number("intermediate_size", high=_WIDEST, default=3072)
    layers = vision.number("num_hidden_layers", high=1024, default=12)
    patch = vision.number("patch_size", high=1024, default=16)
    image = vision.number("image_size", high=2**16, default=224)
    channels = vision.number("num_channels", high=64, default=3)
    one = 4 * (width + 1) * width + (width + 1) * mlp + (mlp + 1) * width + 4 * width
    embeddings = (channels * patch**2 + 1) * width + (image // patch) ** 2 * width
    # Pools by the attention of one learned query: a layer with one norm less.
    head = one - 2 * width + width if vision.flag("vision_use_head", default=True) else 0
    return embeddings + layers * one + head + 2 * width + width + width * hidden
