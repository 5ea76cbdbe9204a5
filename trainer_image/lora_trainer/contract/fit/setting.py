"""How a run computes, as far as memory and time depend on it."""

from dataclasses import dataclass

from lora_trainer.contract.config import ActivationCheckpointing, Optimizer, Quantization


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a run computes. `tokens` has a micro-batch at most, `row` the longest row; `learned` is the share of tokens
    that is learned. `recompute` says that activations are recomputed, with `selective` those of MLPs alone; `packs`
    that one kernel computes attention over packed rows; `processes` over how many the layers are divided, 1 for not;
    `communicators` are NCCL's; `evaluated` is the longest row that is evaluated.

    The last three are other programs', whose published runs are reproduced with them: `saves_inputs` that quantized
    modules keep their inputs (bitsandbytes of 2023), `double_quantized` False that scales of 4-bit weights stay fp32
    (the libraries' default), `fused_loss` False that all logits exist at once.
    """

    quantization: Quantization
    recompute: bool
    tokens: int
    row: int
    packs: bool = True
    cpu: bool = False
    fp32: bool = False
    dropout: bool = False
    dora: bool = False
    optimizer: Optimizer = Optimizer.ADAMW
    learned: float = 1.0
    processes: int = 1
    communicators: int = 0
    selective: bool = False
    evaluated: int = 0
    saves_inputs: bool = False
    double_quantized: bool = True
    fused_loss: bool = True

    @property
    def whole_layers(self) -> bool:
        """Whether layers keep their inputs alone."""
        return self.recompute and not self.selective

    @property
    def manner(self) -> ActivationCheckpointing:
        """How it recomputes."""
        return ActivationCheckpointing.of(recompute=self.recompute, selective=self.selective)

    @property
    def size(self) -> int:
        """Bytes of a value of the compute type."""
        return 4 if self.fp32 else 2

    @property
    def is_4bit(self) -> bool:
        """Whether linear weights have four bits."""
        return self.quantization in {Quantization.NF4, Quantization.FP4}

    @property
    def stream_size(self) -> int:
        """Bytes of a value of the residual stream. DoRA's lengths are fp32, and PEFT's quantized modules leave in fp32
        what they make so, where a GPU's autocast is on."""
        wide = self.dora and self.quantization is not Quantization.NONE and not self.cpu
        return 4 if wide else self.size

    @property
    def widened(self) -> bool:
        """Whether a GPU's autocast computes in fp32 what needs it; a CPU's leaves that in 16 bits."""
        return not (self.cpu or self.fp32)
