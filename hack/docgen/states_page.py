"""docs/states.md: states, reasons and conditions, from the operator's own tables."""

from collections.abc import Iterable, Iterator

from docgen.state_tables import CONDITIONS, STEPS, USUAL_WAY, Statement
from docgen.text import code, table
from docgen.vocabulary import VOCABULARY
from lora_operator.decide.states import ENDS, STATES, Group
from lora_trainer.spec.reasons import Reason

_HEAD = """\
<!-- Generated from state_tables.py, vocabulary.py and decide/states.py: edit them, then run `make docs`. -->
# States, conditions and reasons

`kubectl get lft` shows the state of a run in the column STATE. The state is the reason of the condition `Complete`.
`kubectl describe lft NAME` shows all conditions and an Event for each change of the state. Events and metric labels use
the same reasons. [When it fails](when-it-fails.md) goes by symptom. [`lora explain NAME`](client.md) shows what
Jobs, pods and queue say; an administrator's `lora-operator explain NAMESPACE/NAME` in [the operator's
pod](operations.md#why-does-this-run-wait) also shows what the operator plans.

## States

"""
_STEPS_NOTE = """
No other steps between the boxes exist: the tests check every step that they see against this table. States that last
shorter than the operator takes to look may be skipped. Within a box the state may change in any order; in Running
the arrows are the usual way. A run that has *Succeeded* or *Failed* never changes its state again.

"""
_BOX_ROWS = {
    Group.WAITING: (
        "No pod trains yet, or no longer: one is being started, or the reason names what blocks it.",
        "that is fixed; waiting uses no retry",
    ),
    Group.HELD: (
        "The run is suspended by you, a queue or another client. It has no pod and no GPU.",
        "it is resumed or admitted",
    ),
    Group.RUNNING: ("The preflight or, on every node, the trainer runs.", "its work is done, or it fails"),
    Group.RETRYING: (
        "A pod failed or was evicted. A new one resumes from the last checkpoint.",
        "the new pod runs or, after an eviction, is made",
    ),
    Group.FAILING: ("The last pod failed for good. Its Job reports that within seconds.", "the Job is failed"),
    Group.SUCCEEDED: ("The adapter is verified and published.", "never"),
    Group.FAILED: ("The run is over without an adapter.", "never"),
}
_SMALL = 6
_BOXES = {
    "every unfinished state": frozenset().union(*(STATES[group] for group in Group if group not in ENDS)),
    "every state of *Held*": STATES[Group.HELD],
    "every state of *Failed*": STATES[Group.FAILED],
}


def render() -> str:
    """The whole page."""
    return _HEAD + _diagram() + _STEPS_NOTE + _boxes() + _reasons() + _conditions()


def _diagram() -> str:
    """Each group is a box of its states; an arrow for each step between groups. Ends are shown once, not per reason."""
    lines = ["```mermaid", "stateDiagram-v2"]
    for group in Group:
        if group in ENDS:
            continue
        lines.append(f"    state {group.value} {{")
        shown = [group] if group is Group.FAILING else _ordered(STATES[group])
        lines += [f"        {_node(group, name)}" for name in shown]
        way = USUAL_WAY if group is Group.RUNNING else ()
        lines += [f"        {group.value}_{before.value} --> {group.value}_{after.value}" for before, after in way]
        lines.append("    }")
    lines += [f"    {_end(a)} --> {b.value}: {why}" for a, steps in STEPS.items() for b, why in steps.items()]
    lines += [f"    {group.value} --> [*]" for group in Group if group in ENDS]
    return "\n".join([*lines, "```", ""])


def _boxes() -> str:
    return table(["box", "it means", "ends when"], [[group.value, *_BOX_ROWS[group]] for group in Group]) + "\n"


def _node(group: Group, name: str) -> str:
    """A reason may stand in two boxes, and Mermaid knows a state by its id."""
    return (
        f'state "any reason of Failed" as {group.value}_any'
        if name == group
        else f'state "{name}" as {group.value}_{name}'
    )


def _end(group: Group | None) -> str:
    return "[*]" if group is None else group.value


def _reasons() -> str:
    """Every reason once: the boxes in which it is a state, or the conditions that alone have it."""
    rows = [[code(reason.value), ", ".join(_where(reason)), *VOCABULARY[reason]] for reason in Reason]
    return "## Reasons\n\n" + table(["reason", "state of, or condition", "it means", "what to do"], rows)


def _where(reason: Reason) -> Iterator[str]:
    boxes = [group.value for group in Group if group is not Group.FAILING and reason in STATES[group]]
    yield from boxes or [code(kind.value) for kind, cases in CONDITIONS.items() if reason in _of(cases)] or ["an Event"]


def _of(cases: Iterable[Statement]) -> frozenset[Reason]:
    return frozenset().union(*(case.reasons for case in cases))


def _conditions() -> str:
    """A row for each status of a condition; many reasons are named by their boxes."""
    rows = [
        [code(kind.value), code(case.status), case.meaning, _named(case.reasons)]
        for kind, cases in CONDITIONS.items()
        for case in cases
    ]
    note = "\n`lastTransitionTime` changes only when the status does.\n\n"
    return "\n## Conditions\n" + note + table(["condition", "status", "it means", "reasons"], rows)


def _named(reasons: frozenset[Reason]) -> str:
    boxes, rest = [], reasons
    for name, members in _BOXES.items() if len(reasons) > _SMALL else ():
        if members <= reasons and members & rest:
            boxes.append(name)
            rest -= members
    return ", ".join([*boxes, *(code(reason.value) for reason in _ordered_reasons(rest))])


def _ordered(reasons: Iterable[Reason]) -> list[str]:
    return [reason.value for reason in _ordered_reasons(reasons)]


def _ordered_reasons(reasons: Iterable[Reason]) -> list[Reason]:
    return sorted(reasons, key=list(Reason).index)
