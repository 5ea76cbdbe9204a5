"""All rules together: what they say before and after a training, and in which words."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lora_trainer.contract.advice import adapter, data, end, quantization, storage, training
from lora_trainer.contract.advice.codes import Advice, Code, Severity
from lora_trainer.contract.advice.facts import Columns, Ended, Estimate, Facts, facts_before
from lora_trainer.contract.advice.rule import Rule
from lora_trainer.contract.config import TrainConfig
from lora_trainer.contract.fit.positions import Positions
from lora_trainer.contract.fit.shape import Shape
from lora_trainer.contract.preflight import Preflight
from lora_trainer.contract.run_plan import RunPlan

MOST = 16
"""Pieces of advice that a status has room for."""
RULES: Mapping[Code, Rule] = {
    rule.code: rule
    for rule in sorted(
        (
            *adapter.RULES,
            *training.RULES,
            *quantization.RULES,
            *data.RULES,
            *storage.RULES,
            *end.RULES,
        ),
        key=lambda rule: list(Code).index(rule.code),
    )
}
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


def after_divergence(config: TrainConfig, steps: int) -> tuple[Advice, ...]:
    """What is said of a run that ended since its loss diverged, or was no number, over so many steps."""
    ended = Ended(steps=0, loss_before=0.0, improvement_standard_error=0.0, held_out=False, unsteady_steps=steps)
    return _said(_bare(config, ended=ended), (RULES[Code.NOISY_LOSS],))


def of_estimate(config: TrainConfig, estimate: Estimate) -> tuple[Advice, ...]:
    """What is said of how right a plan was."""
    return _said(_bare(config, estimate=estimate), (RULES[Code.ESTIMATE_OFF],))


def spoken(advice: Iterable[Advice]) -> tuple[Spoken, ...]:
    """Advice in words, warnings first, each code once, the last one of it. What there are no words for is left out."""
    found = {one.code: one for one in map(_spoken, advice) if one is not None}
    return tuple(sorted(found.values(), key=_place))


def _bare(config: TrainConfig, *, ended: Ended | None = None, estimate: Estimate | None = None) -> Facts:
    known = facts_before(config, None, None)
    return Facts(config=config, computing=known.computing, ended=ended, estimate=estimate)


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
    message, evidence = _first(rule.messages, advice.values), _first(rule.evidence, advice.values)
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
