"""Advice about rows, and about what of a model the adapter leaves alone."""

from collections.abc import Iterator, Mapping

from lora_trainer.contract.advice.codes import Code, Severity
from lora_trainer.contract.advice.facts import Facts
from lora_trainer.contract.advice.rule import Rule, Values, count
from lora_trainer.contract.config import DatasetFormat, Variant

FEW_ROWS = 20
"""Losses over fewer held-out rows have standard errors that are themselves uncertain; that of one row is unknown."""
_CHANCE = "over few held-out rows an improvement of a few per cent cannot be distinguished from chance"
_OF_PROMPTS = frozenset({"context", "input"})
_OF_ANSWERS = frozenset({"answer", "completion", "label", "output", "response", "summary", "target"})
_CONTENT = _OF_PROMPTS | _OF_ANSWERS | {"system", "system_prompt"}
"""Names of columns that rows are hardly meant to be learned without."""
_NO_PRESET = "they are not linear modules, so no preset has them"
_MANY_DUPLICATES = 0.05
_FEW_PER_CENT = 0.03
_LONGEST_LIST = 160
_SHOWN = 0.001
_SPLIT_ROWS = (
    "Split or shorten the long rows, or take a model with more than its {positions} positions: what is cut off is not "
    "learned, the end of an answer above all"
)
_RAISE_IN_BOUNDS = (
    "Raise spec.training.maxSequenceLength to {to} at most, for which the model has positions, or split or shorten the "
    "long rows: what is cut off is not learned, the end of an answer above all"
)


def _rows_cut(facts: Facts) -> Values | None:
    if facts.rows is None or facts.rows.cut <= 0:
        return None
    length = facts.config.training.max_sequence_length
    found = {"cut": count(facts.rows.cut), "tokens": count(facts.rows.cut_tokens), "length": str(length)}
    if facts.positions is None:
        return found
    return found | {"to" if length < facts.positions.most else "positions": str(facts.positions.most)}


def _dated_template(facts: Facts) -> Values | None:
    return None if facts.rows is None or facts.rows.day is None else {"day": facts.rows.day.isoformat()}


def _many_duplicates(facts: Facts) -> Values | None:
    if facts.rows is None:
        return None
    rows = facts.rows.training + facts.rows.held_out
    if rows <= 0 or facts.rows.duplicates < _MANY_DUPLICATES * rows:
        return None
    return {"duplicates": count(facts.rows.duplicates), "rows": count(rows)}


def _few_held_out_rows(facts: Facts) -> Values | None:
    if facts.rows is None:
        return None
    rows, ended = facts.rows.held_out, facts.ended
    if ended is None or not ended.held_out or rows < FEW_ROWS:
        return {"rows": count(rows), **_more_held_out(facts, rows)} if rows < FEW_ROWS else None
    smallest = 2 * ended.improvement_standard_error
    if not ended.loss_before > 0 or not smallest > _FEW_PER_CENT * ended.loss_before:
        return None
    values = {"rows": count(rows), "smallest": f"{smallest:.3g}", "share": f"{smallest / ended.loss_before:.1%}"}
    return {**values, **_more_held_out(facts, rows)}


def _more_held_out(facts: Facts, rows: int) -> Values:
    """What keeps the held-out rows few, where it is not the share of them."""
    dataset = facts.config.dataset
    if dataset.max_validation_rows is not None and rows >= dataset.max_validation_rows:
        return {"most": str(dataset.max_validation_rows)}
    return {} if dataset.validation_uri is None else {"held_out": _clipped(dataset.validation_uri)}


def _held_out_rows_learned_before(facts: Facts) -> Values | None:
    if facts.rows is None or not facts.rows.learned_before > 0 or facts.config.resume_from is None:
        return None
    share = facts.rows.learned_before
    shown = f"about {share:.1%}" if share >= _SHOWN else f"less than {_SHOWN:.1%}"
    return {"share": shown, "run": _clipped(facts.config.resume_from)}


def _columns_not_read(facts: Facts) -> Values | None:
    """Of rows that nobody named a format or columns for; conversations are complete in themselves."""
    columns, dataset = facts.columns, facts.config.dataset
    chosen = dataset.columns or dataset.format is not DatasetFormat.AUTO
    if columns is None or chosen or columns.format is DatasetFormat.MESSAGES:
        return None
    content = [name for name in columns.unread if name.lower() in _CONTENT]
    if not content:
        return None
    found = {
        "columns": _clipped(" and ".join(content)),
        "read": _clipped(" and ".join(columns.read.values())),
        "format": columns.format.value,
    }
    mapping = _with_content(columns.read, content[0])
    return found | {"column": content[0], "mapping": mapping} if mapping else found


def _with_content(read: Mapping[str, str], name: str) -> str:
    """The mapping under which a column is read beside the others; empty where no role of one format is left for it."""
    if "text" in read and name.lower() in _OF_ANSWERS:
        return f"prompt to {read['text']} and completion to {name}"
    if name.lower() == "system_prompt" and not {"text", "system"} & read.keys():
        return f"system to {name}"
    asked, answer = read.get("prompt", read.get("instruction")), read.get("completion", read.get("output"))
    if asked and answer and name.lower() in _OF_PROMPTS and not {"input", "tools"} & read.keys():
        return f"instruction to {asked}, input to {name} and output to {answer}"
    return ""


def _experts_not_adapted(facts: Facts) -> Values | None:
    if facts.left_alone is None or not facts.left_alone.experts:
        return None
    needs = ", ".join(_for_experts(facts))
    return {
        "experts": _clipped(facts.left_alone.experts),
        **({"names": _clipped(names)} if (names := ", ".join(_expert_names(facts))) else {}),
        **({"needs": needs} if needs else {}),
    }


def _expert_names(facts: Facts) -> tuple[str, ...]:
    """What the experts' matrices are called, from within a layer on."""
    layers = () if facts.shape is None else facts.shape.layers
    return tuple(
        dict.fromkeys(
            one.name
            for layer in layers
            for one in layer.stacks
            if "experts" in one.name and not one.name.endswith("_bias")
        )
    )


def _for_experts(facts: Facts) -> Iterator[str]:
    """What adapters on experts cannot go with, as it would have to be."""
    lora = facts.config.lora
    if lora.variant is Variant.DORA:
        yield "variant LoRA"
    if lora.dropout > 0:
        yield 'dropout "0"'
    if lora.init.changes_base:
        yield "init Default"
    if facts.plan is not None and facts.plan.sharded:
        yield "GPUs that hold the whole base each"


def _modules_passed_over(facts: Facts) -> Values | None:
    if facts.left_alone is None or not facts.left_alone.passed_over:
        return None
    return {"names": _clipped(facts.left_alone.passed_over), "kind": _clipped(facts.left_alone.kind)}


def _language_model_alone(facts: Facts) -> Values | None:
    if facts.left_alone is None or not facts.left_alone.language_part:
        return None
    return {"part": _clipped(facts.left_alone.language_part), "kind": _clipped(facts.left_alone.kind)}


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST_LIST else text[: _LONGEST_LIST - 1] + "…"


RULES = (
    Rule(
        code=Code.MANY_DUPLICATES,
        severity=Severity.INFO,
        subject="data",
        condition="5 % of the rows or more are copies of other rows",
        message="Remove copies from the data set, unless they are meant to count more: they act like further epochs "
        "over these rows alone",
        evidence=("Of {rows} rows {duplicates} are copies of others",),
        source="Lee et al., Deduplicating Training Data Makes Language Models Better, arXiv 2107.06499",
        rule_of_thumb=True,
        check=_many_duplicates,
    ),
    Rule(
        code=Code.COLUMNS_NOT_READ,
        severity=Severity.WARNING,
        subject="data",
        condition="format Auto leaves out a column of rows that are not conversations, by whose name it may be meant "
        "to be learned: context, input, system, system_prompt, answer, completion, label, output, response, summary or "
        "target",
        message="Write what is in {columns} into the columns that are read, or set spec.dataset.format to {format} to "
        "leave it out",
        special=(
            (
                "Map {mapping} in spec.dataset.columns to learn from {column}, too, if it is text, or set "
                "spec.dataset.format to {format} to leave it out"
            ),
        ),
        evidence=("Auto reads the columns {read}, but not {columns}",),
        source="trainer-data.md, Files and formats",
        rule_of_thumb=True,
        check=_columns_not_read,
    ),
    Rule(
        code=Code.ROWS_CUT,
        severity=Severity.WARNING,
        subject="data",
        condition="rows are longer than spec.training.maxSequenceLength and are cut",
        message="Raise spec.training.maxSequenceLength, or split or shorten the long rows: what is cut off is not "
        "learned, the end of an answer above all",
        special=(_SPLIT_ROWS, _RAISE_IN_BOUNDS),
        evidence=("Rows with more than {length} tokens: {cut}, which lose {tokens} tokens in all",),
        source="trainer-data.md",
        rule_of_thumb=False,
        check=_rows_cut,
    ),
    Rule(
        code=Code.DATED_TEMPLATE,
        severity=Severity.INFO,
        subject="data",
        condition="the chat template writes the date; all rows of a run have the same one",
        message="To have another date, or the same one in several runs, set the template's variable for it, if it has "
        "one, in spec.dataset.templateArguments, such as Llama's date_string",
        evidence=("The chat template writes the date, which is {day} wherever it does",),
        source="trainer-data.md, Chat templates",
        rule_of_thumb=False,
        check=_dated_template,
    ),
    Rule(
        code=Code.FEW_HELD_OUT_ROWS,
        severity=Severity.WARNING,
        subject="data",
        condition="fewer than 20 rows are held out; after the training also where two standard errors of the "
        "improvement are more than 3 % of the loss before it",
        message="Raise spec.dataset.validationFraction, or name rows in spec.dataset.validationUri in place of it: "
        + _CHANCE,
        special=(
            "Raise spec.dataset.maxValidationRows ({most}): " + _CHANCE,
            "Name more rows in spec.dataset.validationUri ({held_out}): " + _CHANCE,
        ),
        evidence=(
            (
                "Held-out rows: {rows}, over which less than {smallest} nats ({share} of the loss) cannot be "
                "distinguished from chance"
            ),
            "Held-out rows: {rows}",
        ),
        source="Two standard errors of the paired difference; Cochran, Sampling Techniques, 3rd ed., section 6.4",
        rule_of_thumb=False,
        check=_few_held_out_rows,
    ),
    Rule(
        code=Code.HELD_OUT_ROWS_LEARNED_BEFORE,
        severity=Severity.WARNING,
        subject="data",
        condition="held-out rows are among the training rows of the run that spec.resumeFrom names, or one before it",
        message="Hold out rows that no run before this one trained on, since the held-out loss flatters otherwise: "
        "those of a spec.dataset.validationUri, or the same as there, by the same data, spec.training.seed, "
        "spec.dataset.validationFraction and maxValidationRows",
        evidence=("Of the held-out rows {share} are among the training rows of {run} or a run before it",),
        source="trainer-data.md, Held-out rows",
        rule_of_thumb=False,
        check=_held_out_rows_learned_before,
    ),
    Rule(
        code=Code.EXPERTS_NOT_ADAPTED,
        severity=Severity.WARNING,
        subject="mixture",
        condition="the base is a mixture of experts, and its experts are not adapted",
        message="Name the experts in spec.lora.targetParameters to adapt them, too: " + _NO_PRESET,
        special=(
            "Name the experts ({names}) in spec.lora.targetParameters, with {needs}, to adapt them, too: " + _NO_PRESET,
            "Name the experts ({names}) in spec.lora.targetParameters to adapt them, too: " + _NO_PRESET,
            "Name the experts in spec.lora.targetParameters, with {needs}, to adapt them, too: " + _NO_PRESET,
        ),
        evidence=("The model is a mixture, whose {experts} are not adapted",),
        source="trainer-model.md",
        rule_of_thumb=False,
        check=_experts_not_adapted,
    ),
    Rule(
        code=Code.MODULES_PASSED_OVER,
        severity=Severity.INFO,
        subject="mixture",
        condition="a preset skips modules that PEFT cannot adapt in a model of that kind",
        message="Nothing is to be done: PEFT takes their names for a mixture's experts or for a kernel's weights",
        evidence=("Modules named {names} are not adapted in a model of the kind {kind}",),
        source="PEFT, peft/utils/transformers_weight_conversion.py",
        rule_of_thumb=False,
        check=_modules_passed_over,
    ),
    Rule(
        code=Code.LANGUAGE_MODEL_ALONE,
        severity=Severity.INFO,
        subject="mixture",
        condition="the base takes more than text, and its language model alone is adapted",
        message="Nothing is to be done: rows of text train nothing else",
        evidence=(
            "The model of the kind {kind} takes more than text, and its language model ({part}) alone is adapted",
        ),
        source="trainer-model.md",
        rule_of_thumb=False,
        check=_language_model_alone,
    ),
)
