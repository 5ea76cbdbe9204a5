"""Statuses held against the tables of states, steps and conditions, whatever a model world did to the run."""

from collections.abc import Iterable, Mapping
from typing import Any

from docgen.state_tables import CONDITIONS, STEPS, Statement
from lora_operator.decide.states import Group, group_of
from lora_operator.model.conditions import Type


def contradictions(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What the tables do not foresee in the step from one status to the next, a sentence each; none where all is well.

    A status without a state, which a foreign writer may have left too, is the beginning, like the definition's default.
    """
    found = [
        f"{c['type']}={c['status']} with {c['reason']} is not in the table of conditions"
        for c in _conditions(after)
        if c["type"] in CONDITIONS and not any(_covers(case, c) for case in CONDITIONS[Type(c["type"])])
    ]
    was, now = group_of(before), group_of(after)
    allowed = STEPS[was] if was else {Group.WAITING, *STEPS[None], *STEPS[Group.WAITING]}
    if now is not None and now is not was and now not in allowed:
        found.append(f"{was or 'the beginning'} to {now} is not in the table of steps")
    return found


def _covers(case: Statement, condition: Mapping[str, Any]) -> bool:
    return case.status == condition["status"] and condition["reason"] in case.reasons


def _conditions(status: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return (c for c in status.get("conditions") or () if isinstance(c, Mapping))
