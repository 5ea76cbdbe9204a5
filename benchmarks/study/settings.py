"""What the study varies: one factor at a time from a base."""

from dataclasses import dataclass, replace

from lora_trainer.spec.config import Layers, LoraConfig, Quantization, TrainingConfig

SEEDS = (1, 2, 3)
BATCH = 8
"""Rows of a step: half of the default, for the same reason as the rate."""
LEARNING_RATE = 1e-3
"""The upper end of what the guide allows, since a thousand rows give few steps: 125 of 8 rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table; what is not said is the base's."""

    name: str
    title: str
    rank: int = 16
    alpha: int = 32
    layers: Layers = Layers.ALL_LINEAR
    quantization: Quantization = Quantization.NONE
    dropout: float = 0.0
    epochs: float = 1.0
    learning_rate: float = LEARNING_RATE

    @property
    def lora(self) -> LoraConfig:
        """The adapter."""
        return LoraConfig(rank=self.rank, alpha=self.alpha, layers=self.layers, dropout=self.dropout)

    def training(self, seed: int) -> TrainingConfig:
        """Its training; the seed draws the adapter's start, the order of rows and what dropout drops."""
        return TrainingConfig(
            epochs=self.epochs, learning_rate=self.learning_rate, effective_batch_size=BATCH, seed=seed
        )


BASE = Setting(name="base", title="base: rank 16, alpha 32, all linear layers, 1 epoch")
SETTINGS = (
    BASE,
    Setting(name="rank-4", title="rank 4, alpha 8", rank=4, alpha=8),
    Setting(name="rank-64", title="rank 64, alpha 128", rank=64, alpha=128),
    Setting(name="alpha-rank", title="alpha = rank (16)", alpha=16),
    Setting(name="query-value", title="query and value alone", layers=Layers.QUERY_VALUE),
    Setting(name="attention", title="attention alone", layers=Layers.ATTENTION),
    Setting(name="nf4", title="NF4", quantization=Quantization.NF4),
    Setting(name="dropout", title="dropout 0.05", dropout=0.05),
    Setting(name="epochs-2", title="2 epochs", epochs=2.0),
    Setting(name="epochs-3", title="3 epochs", epochs=3.0),
)
UNTRAINED = (
    replace(BASE, name="untrained", title="untrained", epochs=0.0),
    replace(BASE, name="untrained-nf4", title="untrained, NF4", epochs=0.0, quantization=Quantization.NF4),
)
RATES = (
    replace(BASE, name="rate-2e-4", title="learning rate 2e-4, the default", learning_rate=2e-4),
    replace(BASE, name="rate-5e-4", title="learning rate 5e-4", learning_rate=5e-4),
)
"""Beside the study: how much the base's rate decides. They come last."""
ALL = (*UNTRAINED, *SETTINGS, *RATES)
