"""The main memory that making a merged model takes.

It is made a tensor at a time, but for what the base's files hold otherwise than the model does: experts, which are
stacked when they are read, other matrices of a few kinds, and embeddings that are tied there and were trained apart.
That is merged with the whole model in memory. All bytes are measured on models with random weights of some 300 MB in
16 bits, by `benchmarks/merge_memory.py`.
"""

from lora_trainer.contract.config import Merge, MergePrecision, TrainConfig
from lora_trainer.contract.fit.memory import CPU_LIBRARIES
from lora_trainer.contract.fit.names import matches
from lora_trainer.contract.fit.shape import Shape

CONVERTED = frozenset({"hrm_text", "lara_mini", "minimax_m3_vl", "molmo2", "sarvam_moe"})
"""Of the kinds that Transformers 5.24 loads as a language model those whose files have linear modules stacked."""
_OF_A_MIXTURE = {MergePrecision.AUTO: 5.5, MergePrecision.FP32: 10.5}
"""Bytes for each parameter of the base: experts in fp32 for the sum, stacked, and one by one for the files. What else
is stacked is taken for as much."""
_READ_IN_FP32, _OF_TIED = 4, 12
"""Bytes for each parameter of the base, and more for each of embeddings that were trained apart."""


def merge_memory(config: TrainConfig, parameters: int, shape: Shape | None = None) -> int:
    """Bytes of main memory for the merge of a base of so many `parameters`; 0 where that takes a tensor at a time.

    Without its `shape` nobody knows whether embeddings are tied.
    """
    if config.output.merge is Merge.ADAPTER:
        return 0
    precision = config.output.merge_precision
    if config.lora.target_parameters or (shape is not None and shape.family in CONVERTED):
        return CPU_LIBRARIES + int(_OF_A_MIXTURE[precision] * parameters)
    if shape is None or not _trains_tied(config, shape):
        return 0
    whole = _READ_IN_FP32 * parameters if precision is MergePrecision.FP32 else 0
    return CPU_LIBRARIES + whole + _OF_TIED * shape.embeddings[1]


def _trains_tied(config: TrainConfig, shape: Shape) -> bool:
    ends = (shape.embeddings[0], shape.head[0])
    return shape.head[1] == 0 and any(matches(end, name) for end in ends for name in config.lora.modules_to_save)
