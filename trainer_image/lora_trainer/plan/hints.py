"""The table of all rules of advice, and what they say before and after a training, in which words. docs/states.md
has when each is given, and by which source.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from lora_trainer.plan import hint_checks as checks
from lora_trainer.plan.architecture import ModelArchitecture
from lora_trainer.plan.hint_checks import Columns, Facts, Values, facts_before
from lora_trainer.spec.advice import Advice, Code, Severity
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.preflight import Preflight
from lora_trainer.spec.run_plan import RunPlan

MOST = 16
"""Pieces of advice that a status has room for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`check` finds the values of both sentences where there is something to say: `message` is what to do, `evidence`
    what was seen. One that is `at_end` is asked when the training is over alone."""

    code: Code
    severity: Severity
    check: Callable[[Facts], Values | None]
    message: str
    evidence: str
    at_end: bool = False


_TABLE = (
    Rule(
        code=Code.RANK_TOO_LOW,
        severity=Severity.WARNING,
        check=checks.rank_too_low,
        message="Raise spec.lora.rank, adapt more layers, or take a larger model or fewer tokens: rank {enough} would "
        "hold what there is to learn; as a guide, 16 suffices for most runs, and 64 or more for code, recall or more "
        "than 50,000 rows",
        evidence="Rank {rank} gives {parameters} trained parameters, which hold about {capacity} bits; {tokens} tokens "
        "are learned, about 1 bit each",
    ),
    Rule(
        code=Code.ALPHA_RATIO,
        severity=Severity.INFO,
        check=checks.alpha_ratio,
        message="Set spec.lora.alpha from {rank} to {double}, unless a trial says otherwise: alpha / rank multiplies "
        "all that the adapter adds, much as a learning rate does",
        evidence="spec.lora.alpha is {alpha} at rank {rank}, a factor of {ratio}",
    ),
    Rule(
        code=Code.ALPHA_AT_HIGH_RANK,
        severity=Severity.INFO,
        check=checks.alpha_at_high_rank,
        message="Lower spec.training.learningRate, to {lower} for a start, or set spec.lora.alpha to {rank}: what a "
        "step changes grows with the rank where alpha / rank stays the same",
        evidence="spec.lora.alpha is {alpha} at rank {rank}, and spec.training.learningRate is {rate}",
    ),
    Rule(
        code=Code.FEW_LAYERS,
        severity=Severity.INFO,
        check=checks.few_layers,
        message="Set spec.lora.layers to AllLinear, without targetModules, at a lower rank where memory is short: "
        "adapters on attention alone learn less than on all layers, with the same number of parameters too",
        evidence="Adapted are {layers}, and no module of the MLPs",
    ),
    Rule(
        code=Code.SEVERAL_EPOCHS,
        severity=Severity.INFO,
        check=checks.several_epochs,
        message="Try one epoch first, and more data rather than more epochs: further passes over the same rows often "
        "make the result worse on others. spec.training.evalSteps with earlyStoppingPatience keeps the best adapter",
        evidence="The run sees each row {epochs} times",
    ),
    Rule(
        code=Code.MANY_DUPLICATES,
        severity=Severity.INFO,
        check=checks.many_duplicates,
        message="Remove copies from the data set, unless they are meant to count more: they act like further epochs "
        "over these rows alone",
        evidence="Of {rows} rows {duplicates} are copies of others",
    ),
    Rule(
        code=Code.STILL_IMPROVING,
        severity=Severity.INFO,
        check=checks.still_improving,
        at_end=True,
        message="Train on more data rather than for more epochs: the held-out loss was still falling at the end",
        evidence="From step {step} to {steps} the held-out loss fell by {difference} nats; the whole improvement is "
        "known to ± {error}",
    ),
    Rule(
        code=Code.HELD_OUT_LOSS_ROSE,
        severity=Severity.WARNING,
        check=checks.held_out_loss_rose,
        at_end=True,
        message="Set spec.training.earlyStoppingPatience, which would have kept the better adapter of step {step}, or "
        "train for fewer steps",
        evidence="From step {step} to {steps} the held-out loss rose by {difference} nats; the whole improvement is "
        "known to ± {error}",
    ),
    Rule(
        code=Code.LARGE_BATCH,
        severity=Severity.INFO,
        check=checks.large_batch,
        message="Lower spec.training.effectiveBatchSize to {smaller}: adapters learn less from large batches than "
        "whole models do, whatever their rank",
        evidence="spec.training.effectiveBatchSize is {batch}",
    ),
    Rule(
        code=Code.LEARNING_RATE,
        severity=Severity.WARNING,
        check=checks.learning_rate,
        message="Set spec.training.learningRate from 0.00005 to 0.001, 0.0002 for a start, and half of that from rank "
        "128 on: adapters take about ten times the rate of a whole model, less leaves them untrained, and more makes "
        "the loss diverge",
        evidence="spec.training.learningRate is {rate}",
    ),
    Rule(
        code=Code.QUANTIZATION_NOT_NEEDED,
        severity=Severity.INFO,
        check=checks.quantization_not_needed,
        message="Set spec.quantization to Auto or None: the base fits in 16 bits, which is as good and no slower",
        evidence="By the plan {quantization} takes {slower} more time than 16 bits, which take {peak} of {memory}",
    ),
    Rule(
        code=Code.QUANTIZATION_WOULD_FIT,
        severity=Severity.WARNING,
        check=checks.quantization_would_fit,
        message="Set spec.quantization to Auto or NF4, with which the run fits the GPU",
        evidence="By the plan the run takes {needed} of {memory}, and {peak} in NF4",
    ),
    Rule(
        code=Code.COLUMNS_NOT_READ,
        severity=Severity.WARNING,
        check=checks.columns_not_read,
        message="Map {columns} in spec.dataset.columns, or write what is in there into the columns that are read, or "
        "set spec.dataset.format to {format} to leave it out",
        evidence="Auto reads the columns {read}, but not {columns}",
    ),
    Rule(
        code=Code.ROWS_CUT,
        severity=Severity.WARNING,
        check=checks.rows_cut,
        message="Raise spec.training.maxSequenceLength, where the model takes longer rows, or split or shorten them: "
        "what is cut off is not learned, the end of an answer above all",
        evidence="Rows with more than {length} tokens: {cut}, which lose {tokens} tokens in all",
    ),
    Rule(
        code=Code.FEW_HELD_OUT_ROWS,
        severity=Severity.WARNING,
        check=checks.few_held_out_rows,
        message="Hold out more rows by spec.dataset.validationFraction and maxValidationRows, or in validationUri: "
        "over few of them an improvement of a few per cent cannot be distinguished from chance",
        evidence="Held-out rows: {rows}",
    ),
    Rule(
        code=Code.POD_MEMORY,
        severity=Severity.WARNING,
        check=checks.pod_memory,
        message="Give the pods {least} or more with spec.resources.memory in a new LoRAFineTune: the kernel kills a "
        "pod that takes more than its limit, and what it did since its last checkpoint is lost",
        evidence="resources.memory is {given}, and the plan estimates {needed}",
    ),
    Rule(
        code=Code.CLAIM_SIZE,
        severity=Severity.INFO,
        check=checks.claim_size,
        message="See that PersistentVolumeClaim {claim} has {needed} free for each run of this kind that trains at a "
        "time",
        evidence="A checkpoint takes {checkpoint}, and {count} of them are there at a time, beside the result",
    ),
    Rule(
        code=Code.SERVE_MERGED,
        severity=Severity.WARNING,
        check=checks.serve_merged,
        message="Set spec.output.merge to Both or Merged if vLLM is to serve the result, or merge it with lora-trainer "
        "merge where the run's base is divided over GPUs: every server loads a merged model",
        evidence="{obstacles}",
    ),
    Rule(
        code=Code.MODULES_NOT_ADAPTED,
        severity=Severity.WARNING,
        check=checks.modules_not_adapted,
        message="Name their weights in spec.lora.targetParameters to adapt them, too, in a plain LoRA without dropout "
        "on GPUs that hold the whole base each; no preset has what is no linear module, or what PEFT takes by its "
        "name for experts or for a kernel's weights",
        evidence="Not adapted in a model of the kind {kind}: {left}",
    ),
    Rule(
        code=Code.LANGUAGE_MODEL_ALONE,
        severity=Severity.INFO,
        check=checks.language_model_alone,
        message="Nothing is to be done: rows of text train nothing else",
        evidence="The model of the kind {kind} takes more than text, and its language model ({part}) alone is adapted",
    ),
)
RULES: Mapping[Code, Rule] = {rule.code: rule for rule in _TABLE}
"""Every rule, in the order of the codes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """A piece of advice in words: what to do, and what was seen."""

    code: Code
    severity: Severity
    message: str
    evidence: str

    @property
    def line(self) -> str:
        """Both, as one line."""
        return f"{self.message} ({self.evidence})"


def before(
    config: TrainConfig,
    preflight: Preflight | None = None,
    plan: RunPlan | None = None,
    shape: ModelArchitecture | None = None,
    *,
    columns: Columns | None = None,
) -> tuple[Advice, ...]:
    """What can be said before the training, by what is known of it. `shape` is the base's, where its configuration was
    read, `columns` those of the data set."""
    return known_before(facts_before(config, preflight, plan, shape, columns=columns))


def known_before(facts: Facts) -> tuple[Advice, ...]:
    """The same of facts."""
    return _said(facts, (rule for rule in RULES.values() if not rule.at_end))


def after(facts: Facts) -> tuple[Advice, ...]:
    """What can be said after the training, all that could be said before it among it."""
    return _said(facts, RULES.values())


def spoken(advice: Iterable[Advice]) -> tuple[Spoken, ...]:
    """Advice in words, warnings first, each code once, the last one of it. What there are no words for is left out."""
    found = {one.code: one for one in map(_spoken, advice) if one is not None}
    return tuple(sorted(found.values(), key=_place))


def _said(facts: Facts, rules: Iterable[Rule]) -> tuple[Advice, ...]:
    found = ((rule, rule.check(facts)) for rule in rules)
    said = sorted(((rule, values) for rule, values in found if values is not None), key=lambda one: _place(one[0]))
    return tuple(Advice(code=rule.code.value, values=values) for rule, values in said)


def _place(one: Rule | Spoken) -> tuple[int, int]:
    """Warnings come first, so that they are the last to be left out where there is little room."""
    return list(Severity).index(one.severity), list(Code).index(one.code)


def _spoken(advice: Advice) -> Spoken | None:
    rule = next((rule for rule in RULES.values() if rule.code.value == advice.code), None)
    if rule is None:
        return None
    try:
        message, evidence = (form.format_map(advice.values) for form in (rule.message, rule.evidence))
    except KeyError:
        return None
    return Spoken(code=rule.code, severity=rule.severity, message=message, evidence=evidence)
