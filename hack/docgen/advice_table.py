"""When each piece of advice is given, and what it rests on: for docs/states.md."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from docgen.text import code, table
from lora_operator.decide import advice as cluster
from lora_trainer.plan.hints import RULES
from lora_trainer.spec.advice import Code, Severity


class Given(NamedTuple):
    """When, and by which source; Markdown."""

    when: str
    source: str


_LORA = "[LoRA Without Regret](https://thinkingmachines.ai/blog/lora/)"
_RASCHKA = "[Raschka](https://magazine.sebastianraschka.com/p/practical-tips-for-finetuning-llms)"
_QLORA = "[QLoRA](https://arxiv.org/abs/2305.14314)"
_SURE = "two standard errors"

ADVICE: Mapping[Code, Given] = {
    Code.RANK_TOO_LOW: Given(
        "the adapter holds less (2 bits per parameter) than the loss tokens (1 bit each)",
        f"{_LORA}; [2 bits](https://arxiv.org/abs/2404.05405)",
    ),
    Code.ALPHA_RATIO: Given("alpha / rank is outside of 1 to 2, without rsLoRA", _RASCHKA),
    Code.ALPHA_AT_HIGH_RANK: Given(
        "rank is at least 128, alpha at least 2 x rank and the learning rate at least 2e-4, without rsLoRA",
        f"{_LORA}; {_RASCHKA}",
    ),
    Code.FEW_LAYERS: Given("only attention is adapted, and a preset would adapt MLPs too", f"{_LORA}; {_QLORA}"),
    Code.SEVERAL_EPOCHS: Given("the run sees its rows more than once", _RASCHKA),
    Code.MANY_DUPLICATES: Given(
        "at least 5 % of the rows are copies", "[Lee et al.](https://arxiv.org/abs/2107.06499)"
    ),
    Code.STILL_IMPROVING: Given(
        "the validation loss, over at least 20 rows, still fell in the last quarter of the steps", _SURE
    ),
    Code.HELD_OUT_LOSS_ROSE: Given(
        "the validation loss, over at least 20 rows, ended above its lowest evaluation", _SURE
    ),
    Code.LARGE_BATCH: Given("`effectiveBatchSize` is above 32 and above the number of processes", _LORA),
    Code.LEARNING_RATE: Given("`learningRate` is below 5e-5 or above 1e-3", _LORA),
    Code.QUANTIZATION_NOT_NEEDED: Given(
        "a quantized base would fit in 16 bits, no slower", "[plan](memory-and-time.md)"
    ),
    Code.QUANTIZATION_WOULD_FIT: Given(
        "the base does not fit in 16 bits, and fits in NF4", "[plan](memory-and-time.md)"
    ),
    Code.COLUMNS_NOT_READ: Given(
        "format `Auto` ignores a column whose name suggests that it is meant to be learned", "[formats](data.md)"
    ),
    Code.ROWS_CUT: Given("rows are longer than `maxSequenceLength` and are truncated", "[data](data.md)"),
    Code.FEW_HELD_OUT_ROWS: Given("the validation set has fewer than 20 rows, or cannot show a change of 3 %", _SURE),
    Code.POD_MEMORY: Given("the pods get less main memory than the plan estimates", "[plan](memory-and-time.md)"),
    Code.CLAIM_SIZE: Given("the run takes 1 GiB or more of its checkpoint PVC", "[plan](memory-and-time.md)"),
    Code.SERVE_MERGED: Given(
        "vLLM cannot serve the adapter, and no merged model is requested", "[serving](use-and-serve.md)"
    ),
    Code.MODULES_NOT_ADAPTED: Given(
        "experts of an MoE, or modules that PEFT cannot adapt, are left out", "[models](models.md)"
    ),
    Code.LANGUAGE_MODEL_ALONE: Given(
        "the base takes more than text, and only its language model is adapted", "[models](models.md)"
    ),
}
"""Every rule of the contract, in the order of its codes."""

_CLUSTER: Mapping[cluster.Code, tuple[str, Severity]] = {
    cluster.Code.NODE_PRESSURE: ("a node short of memory or disk evicted the pod", Severity.WARNING),
    cluster.Code.OFTEN_PREEMPTED: (
        f"the run was taken away {cluster.MANY_PREEMPTIONS} times or more",
        Severity.WARNING,
    ),
    cluster.Code.CLEANUP_REFUSED: ("something refuses the TTL of finished Jobs", Severity.WARNING),
    cluster.Code.IMAGE_CHANGED: ("admission changed the pod's image", Severity.INFO),
}


def render() -> str:
    """The table."""
    return table(("code", "severity", "given when", "basis"), _rows())


def _rows() -> Iterator[tuple[str, str, str, str]]:
    for known in Code:
        yield code(known.value), RULES[known].severity.value, *ADVICE[known]
    for own in cluster.Code:
        when, severity = _CLUSTER[own]
        yield code(own.value), severity.value, when, "the cluster"
