"""docs/what-happens.md: what the operator does when, from the docstrings of its rules."""

import inspect

from docgen.text import table
from lora_operator.decide.decide import RULES

_HEAD = """\
<!-- Generated from the rules in decide/decide.py: edit their docstrings, then run `make docs`. -->
# What happens when

After every change the operator goes through this table from top to bottom. The first rule that applies decides: which
objects to create, change and delete, the status, its Events, and when to look again. So a run that is being deleted is
never started again, and a stored verdict never changes.

To see which rule applies to a run now, call `lora-operator explain NAMESPACE/NAME` in
[the operator's pod](operate.md#why-does-this-run-wait).

"""


def render() -> str:
    """The whole page."""
    rows = [(str(number), f"`{rule.__name__}`", _said(rule)) for number, rule in enumerate(RULES, start=1)]
    return _HEAD + table(("", "Rule", "When it applies, and what follows"), rows)


def _said(rule: object) -> str:
    return " ".join((inspect.getdoc(rule) or "").split())
