"""The table of all rules of advice, and what they say before and after a training, in which words."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from lora_trainer.contract.advice import Advice, Code, Severity
from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.preflight import Preflight
from lora_trainer.contract.run_plan import RunPlan
from lora_trainer.plan import hint_checks as checks
from lora_trainer.plan.families import Positions
from lora_trainer.plan.hint_checks import Columns, Facts, Values, facts_before
from lora_trainer.plan.shapes import Shape

MOST = 16
"""Pieces of advice that a status has room for."""
_REGRET = "Schulman et al., LoRA Without Regret (Thinking Machines, 2025)"
_RASCHKA = "Raschka, Practical Tips for Finetuning LLMs Using LoRA (2023)"
_COCHRAN = "Cochran, Sampling Techniques, 3rd ed., section 6.4"
_HOLDS = "the adapter can hold what there is to learn"
_MULTIPLIES = "unless a trial says otherwise: alpha / rank multiplies all that the adapter adds"
_ALL_LINEAR = (
    "at a lower rank where memory is short: adapters on attention alone learn less than on all layers, with the same "
    "number of parameters too"
)
_PASSES = (
    "and more data rather than more epochs: further passes over the same rows often make the result worse on others. "
    "spec.training.evalSteps with earlyStoppingPatience keeps the best adapter"
)
_BATCHES = "adapters learn less from large batches than whole models do, whatever their rank"
_RATES = (
    "adapters take about ten times the rate of a whole model, less leaves them untrained, and more makes the loss "
    "diverge"
)
_CUT = "what is cut off is not learned, the end of an answer above all"
_CHANCE = "over few held-out rows an improvement of a few per cent cannot be distinguished from chance"
_KILLED = "the kernel kills a pod that takes more than its limit, and what it did since its last checkpoint is lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a code is about. `condition` says in words when `check` finds something: the values of its sentences.

    `needs` are the parts of `Facts`, beside the configuration, without which it finds nothing. `remedies` say what to
    do, `evidence` what was seen: of several sentences the first whose values are all there counts. `rule_of_thumb` is
    one that no source proves for every run.
    """

    code: Code
    severity: Severity
    subject: str
    condition: str
    needs: tuple[str, ...] = ()
    check: Callable[[Facts], Values | None]
    remedies: tuple[str, ...]
    evidence: tuple[str, ...]
    source: str
    rule_of_thumb: bool

    @property
    def at_end(self) -> bool:
        """Whether it is asked when the training is over alone."""
        return "ended" in self.needs


_TABLE = (
    Rule(
        code=Code.RANK_TOO_LOW,
        severity=Severity.WARNING,
        subject="rank",
        condition="the adapter holds less (2 bits a trained parameter) than the learned tokens do (1 bit each)",
        needs=("rows", "trainable_parameters"),
        check=checks.rank_too_low,
        remedies=(
            "Take a larger model or fewer tokens, since not even rank {highest} holds what there is to learn",
            "Set spec.lora.layers to {layers}, and spec.lora.rank to {enough}, so that " + _HOLDS,
            "Set spec.lora.layers to {layers}, so that " + _HOLDS,
            (
                f"Raise spec.lora.rank to {{enough}}, so that {_HOLDS}; as a guide, 4 to 8 suffice for style or fewer "
                "than 5,000 rows, 16 to 32 for following instructions, 64 to 128 for code, recall or more than 50,000 "
                "rows, 256 and more for deep specialization"
            ),
        ),
        evidence=(
            (
                "Rank {rank} gives {parameters} trained parameters, which hold about {capacity} bits; {tokens} tokens "
                "are learned, about 1 bit each"
            ),
        ),
        source=f"{_REGRET}; 2 bits a parameter: Allen-Zhu and Li, arXiv 2404.05405",
        rule_of_thumb=True,
    ),
    Rule(
        code=Code.ALPHA_RATIO,
        severity=Severity.INFO,
        subject="alpha",
        condition="alpha / rank is outside of 1 to 2, without rsLoRA",
        check=checks.alpha_ratio,
        remedies=(
            (
                f"Set spec.lora.alpha to {{same}}, {_MULTIPLIES}, and twice that rank would make large steps at the "
                "run's learning rate"
            ),
            f"Set spec.lora.alpha from {{rank}} to {{double}}, {_MULTIPLIES}, much as a learning rate does",
        ),
        evidence=("spec.lora.alpha is {alpha} at rank {rank}, a factor of {ratio}",),
        source=_RASCHKA,
        rule_of_thumb=True,
    ),
    Rule(
        code=Code.ALPHA_AT_HIGH_RANK,
        severity=Severity.INFO,
        subject="alpha",
        condition="rank 128 or more with alpha twice as large or more, at a learning rate of 2e-4 or more, without "
        "rsLoRA",
        check=checks.alpha_at_high_rank,
        remedies=(
            (
                "Lower spec.training.learningRate, to {lower} for a start, or set spec.lora.alpha to {rank}: what a "
                "step changes grows with the rank where alpha / rank stays the same"
            ),
        ),
        evidence=("spec.lora.alpha is {alpha} at rank {rank}, and spec.training.learningRate is {rate}",),
        source=f"{_REGRET}; Raschka (2023), who trained rank 256 with alpha 512",
        rule_of_thumb=True,
    ),
    Rule(
        code=Code.FEW_LAYERS,
        severity=Severity.INFO,
        subject="layers",
        condition="attention alone, or query and value alone, is adapted, and a preset would adapt MLPs, too",
        check=checks.few_layers,
        remedies=(
            f"Set spec.lora.layers to AllLinear{{instead}}, {_ALL_LINEAR}",
            f"Set spec.lora.layers to AllLinear, {_ALL_LINEAR}",
        ),
        evidence=("Adapted are {layers}, and no module of the MLPs",),
        source=f"{_REGRET}; Dettmers et al., QLoRA, arXiv 2305.14314, section 4",
        rule_of_thumb=False,
    ),
    Rule(
        code=Code.SEVERAL_EPOCHS,
        severity=Severity.INFO,
        subject="epochs",
        condition="the run sees its rows more than once",
        check=checks.several_epochs,
        remedies=(
            f"Set spec.training.maxSteps to {{steps}} first, which is one epoch, {_PASSES}",
            f"Try one epoch first, {_PASSES}",
        ),
        evidence=("The run sees each row {epochs} times",),
        source=_RASCHKA,
        rule_of_thumb=True,
    ),
    Rule(
        code=Code.MANY_DUPLICATES,
        severity=Severity.INFO,
        subject="data",
        condition="5 % of the rows or more are copies of other rows",
        needs=("rows",),
        check=checks.many_duplicates,
        remedies=(
            (
                "Remove copies from the data set, unless they are meant to count more: they act like further epochs "
                "over these rows alone"
            ),
        ),
        evidence=("Of {rows} rows {duplicates} are copies of others",),
        source="Lee et al., Deduplicating Training Data Makes Language Models Better, arXiv 2107.06499",
        rule_of_thumb=True,
    ),
    Rule(
        code=Code.STILL_IMPROVING,
        severity=Severity.INFO,
        subject="end of the run",
        condition="the held-out loss at the end is lower than at the last evaluation within three quarters of the "
        "steps, by more than two standard errors of the whole improvement, over 20 rows or more",
        needs=("rows", "ended"),
        check=checks.still_improving,
        remedies=("Train on more data rather than for more epochs: the held-out loss was still falling at the end",),
        evidence=(
            (
                "From step {step} to {steps} the held-out loss fell by {difference} nats; the whole improvement is "
                "known to ± {error}"
            ),
        ),
        source=f"Paired over rows: {_COCHRAN}; more data: Raschka (2023)",
        rule_of_thumb=True,
    ),
    Rule(
        code=Code.HELD_OUT_LOSS_ROSE,
        severity=Severity.WARNING,
        subject="end of the run",
        condition="the held-out loss at the end is higher than at its lowest evaluation, by more than two standard "
        "errors of the whole improvement, over 20 rows or more, and the weights are not those of that one",
        needs=("rows", "ended"),
        check=checks.held_out_loss_rose,
        remedies=(
            (
                "Set spec.training.earlyStoppingPatience, which would have kept the better adapter of step {step}, or "
                "train for fewer steps"
            ),
        ),
        evidence=(
            (
                "From step {step} to {steps} the held-out loss rose by {difference} nats; the whole improvement is "
                "known to ± {error}"
            ),
        ),
        source=f"Paired over rows: {_COCHRAN}",
        rule_of_thumb=True,
    ),
    Rule(
        code=Code.LARGE_BATCH,
        severity=Severity.INFO,
        subject="batch",
        condition="spec.training.effectiveBatchSize is above 32, and above the number of training processes",
        check=checks.large_batch,
        remedies=(
            (
                "Lower spec.training.effectiveBatchSize to {smaller} or less, and microBatchSize ({micro}) to a "
                f"divisor of it: {_BATCHES}"
            ),
            f"Lower spec.training.effectiveBatchSize to {{least}}, a row for each training process: {_BATCHES}",
            f"Lower spec.training.effectiveBatchSize to {{smaller}} or less: {_BATCHES}",
        ),
        evidence=("spec.training.effectiveBatchSize is {batch}",),
        source=_REGRET,
        rule_of_thumb=True,
    ),
    Rule(
        code=Code.LEARNING_RATE,
        severity=Severity.WARNING,
        subject="learning rate",
        condition="spec.training.learningRate is below 5e-5 or above 1e-3",
        check=checks.learning_rate,
        remedies=(
            f"Set spec.training.learningRate from 0.00005 to 0.001, {{start}} for a start at rank {{rank}}: {_RATES}",
            f"Set spec.training.learningRate from 0.00005 to 0.001, 0.0002 for a start: {_RATES}",
        ),
        evidence=("spec.training.learningRate is {rate}",),
        source=_REGRET,
        rule_of_thumb=True,
    ),
    Rule(
        code=Code.QUANTIZATION_NOT_NEEDED,
        severity=Severity.INFO,
        subject="quantization",
        condition="quantization is asked for, and by the plan the base fits the GPU in 16 bits, no slower; a GPU of known "
        "speed",
        needs=("plan",),
        check=checks.quantization_not_needed,
        remedies=("Set spec.quantization to Auto or None: the base fits in 16 bits, which is as good and no slower",),
        evidence=("By the plan {quantization} takes {slower} more time than 16 bits, which take {peak} of {memory}",),
        source="Dettmers et al., QLoRA, arXiv 2305.14314 (equal quality); fit.md (memory and time)",
        rule_of_thumb=False,
    ),
    Rule(
        code=Code.QUANTIZATION_WOULD_FIT,
        severity=Severity.WARNING,
        subject="quantization",
        condition="no quantization is asked for, the plan does not see the base fit in 16 bits, and in NF4 it fits",
        needs=("plan",),
        check=checks.quantization_would_fit,
        remedies=("Set spec.quantization to Auto or NF4, with which the run fits the GPU",),
        evidence=("By the plan the run takes {needed} of {memory}, and {peak} in NF4",),
        source="fit.md",
        rule_of_thumb=False,
    ),
    Rule(
        code=Code.COLUMNS_NOT_READ,
        severity=Severity.WARNING,
        subject="data",
        condition="format Auto leaves out a column of rows that are not conversations, by whose name it may be meant "
        "to be learned: context, input, system, system_prompt, answer, completion, label, output, response, summary or "
        "target",
        needs=("columns",),
        check=checks.columns_not_read,
        remedies=(
            (
                "Map {mapping} in spec.dataset.columns to learn from {column}, too, if it is text, or set "
                "spec.dataset.format to {format} to leave it out"
            ),
            (
                "Write what is in {columns} into the columns that are read, or set spec.dataset.format to {format} to "
                "leave it out"
            ),
        ),
        evidence=("Auto reads the columns {read}, but not {columns}",),
        source="trainer-data.md, Files and formats",
        rule_of_thumb=True,
    ),
    Rule(
        code=Code.ROWS_CUT,
        severity=Severity.WARNING,
        subject="data",
        condition="rows are longer than spec.training.maxSequenceLength and are cut",
        needs=("rows",),
        check=checks.rows_cut,
        remedies=(
            f"Split or shorten the long rows, or take a model with more than its {{positions}} positions: {_CUT}",
            (
                "Raise spec.training.maxSequenceLength to {to} at most, for which the model has positions, or split or "
                f"shorten the long rows: {_CUT}"
            ),
            f"Raise spec.training.maxSequenceLength, or split or shorten the long rows: {_CUT}",
        ),
        evidence=("Rows with more than {length} tokens: {cut}, which lose {tokens} tokens in all",),
        source="trainer-data.md",
        rule_of_thumb=False,
    ),
    Rule(
        code=Code.FEW_HELD_OUT_ROWS,
        severity=Severity.WARNING,
        subject="data",
        condition="fewer than 20 rows are held out; after the training also where two standard errors of the "
        "improvement are more than 3 % of the loss before it",
        needs=("rows",),
        check=checks.few_held_out_rows,
        remedies=(
            f"Raise spec.dataset.maxValidationRows ({{most}}): {_CHANCE}",
            f"Name more rows in spec.dataset.validationUri ({{held_out}}): {_CHANCE}",
            (
                "Raise spec.dataset.validationFraction, or name rows in spec.dataset.validationUri in place of it: "
                f"{_CHANCE}"
            ),
        ),
        evidence=(
            (
                "Held-out rows: {rows}, over which less than {smallest} nats ({share} of the loss) cannot be "
                "distinguished from chance"
            ),
            "Held-out rows: {rows}",
        ),
        source=f"Two standard errors of the paired difference; {_COCHRAN}",
        rule_of_thumb=False,
    ),
    Rule(
        code=Code.POD_MEMORY,
        severity=Severity.WARNING,
        subject="main memory",
        condition="the run gives its pods less main memory than the plan of its own rows estimates",
        needs=("rows", "plan"),
        check=checks.pod_memory,
        remedies=(
            f"Give the pods {{least}} or more with spec.resources.memory in a new LoRAFineTune: {_KILLED}",
            f"Give the pods {{needed}} or more with spec.resources.memory in a new LoRAFineTune: {_KILLED}",
        ),
        evidence=("resources.memory is {given}, and the plan estimates {needed}",),
        source="fit.md, What is counted",
        rule_of_thumb=True,
    ),
    Rule(
        code=Code.CLAIM_SIZE,
        severity=Severity.INFO,
        subject="storage",
        condition="the run saves checkpoints on a claim, and takes 1 GiB of it or more",
        needs=("plan",),
        check=checks.claim_size,
        remedies=(
            (
                "See that PersistentVolumeClaim {claim} has {needed} free for each run of this kind that trains at a "
                "time"
            ),
        ),
        evidence=("A checkpoint takes {checkpoint}, and {count} of them are there at a time, beside the result",),
        source="fit.md, What a claim takes",
        rule_of_thumb=False,
    ),
    Rule(
        code=Code.SERVE_MERGED,
        severity=Severity.WARNING,
        subject="serving",
        condition="vLLM cannot serve the adapter, and no merged model is asked for",
        check=checks.serve_merged,
        remedies=(
            (
                "Merge the result with lora-trainer merge if vLLM is to serve it: every server loads a merged "
                "model, and a run whose base is divided over {divided} GPUs merges none"
            ),
            (
                "Set spec.output.merge to Both or Merged if vLLM is to serve the result: every server loads a "
                "merged model"
            ),
        ),
        evidence=("{obstacles}",),
        source="vLLM, vllm/lora/peft_helper.py",
        rule_of_thumb=False,
    ),
    Rule(
        code=Code.MODULES_NOT_ADAPTED,
        severity=Severity.WARNING,
        subject="mixture",
        condition="the base is a mixture of experts, and its experts are not adapted, or a preset skips modules that "
        "PEFT cannot adapt by their names in a model of that kind",
        needs=("left_alone",),
        check=checks.modules_not_adapted,
        remedies=(
            (
                "Name {named} in spec.lora.targetParameters{others} to adapt them, too, and the weights of {names}: no "
                "preset has them, since the former are not linear modules, and PEFT takes the latter for experts"
            ),
            (
                "Name {named} in spec.lora.targetParameters{others} to adapt them, too: they are not linear modules, "
                "so no preset has them"
            ),
            (
                "Name their weights in spec.lora.targetParameters in a mixture to adapt them, too; else nothing is to "
                "be done: PEFT takes their names for a mixture's experts or for a kernel's weights"
            ),
        ),
        evidence=(
            "The model is a mixture, whose {experts} are not adapted, nor are modules named {names}",
            "The model is a mixture, whose {experts} are not adapted",
            "Modules named {names} are not adapted in a model of the kind {kind}",
        ),
        source="trainer-model.md, Which weights are trained",
        rule_of_thumb=False,
    ),
    Rule(
        code=Code.LANGUAGE_MODEL_ALONE,
        severity=Severity.INFO,
        subject="mixture",
        condition="the base takes more than text, and its language model alone is adapted",
        needs=("left_alone",),
        check=checks.language_model_alone,
        remedies=("Nothing is to be done: rows of text train nothing else",),
        evidence=(
            "The model of the kind {kind} takes more than text, and its language model ({part}) alone is adapted",
        ),
        source="trainer-model.md",
        rule_of_thumb=False,
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
    shape: Shape | None = None,
    positions: Positions | None = None,
    *,
    columns: Columns | None = None,
) -> tuple[Advice, ...]:
    """What can be said before the training, by what is known of it. `shape` and `positions` are the base's, where its
    configuration was read, `columns` those of the data set."""
    return known_before(facts_before(config, preflight, plan, shape, positions, columns=columns))


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
    message, evidence = _first(rule.remedies, advice.values), _first(rule.evidence, advice.values)
    if message is None or evidence is None:
        return None
    return Spoken(code=rule.code, severity=rule.severity, message=message, evidence=evidence)


def _first(forms: Iterable[str], values: Mapping[str, str]) -> str | None:
    return next((text for form in forms if (text := _filled(form, values)) is not None), None)


def _filled(form: str, values: Mapping[str, str]) -> str | None:
    try:
        return form.format_map(values)
    except KeyError:
        return None
