"""The health check that docs/operate.md gives to Argo CD, run as Argo CD runs it, over every state of a run."""

from collections.abc import Mapping
from typing import Any

import pytest
from lupa.lua51 import LuaRuntime
from tests.unit.builders import make_manifest
from tests.unit.gitops_page import HEALTH, argo_check
from tests.unit.reached import every_state, waiting

from lora_operator.decide.states import Group, group_of
from lora_operator.model.conditions import condition_in

STATES = dict(every_state())


def checked(status: Mapping[str, Any] | None, generation: int = 1) -> tuple[str, str]:
    """Health and message of a run with this status: in Lua 5.1, with the libraries that Argo CD loads."""
    lua = LuaRuntime()
    for library in ("string", "math", "io", "debug", "python"):
        lua.globals()[library] = None
    manifest = make_manifest(status=status)
    manifest["metadata"]["generation"] = generation
    lua.globals().obj = lua.table_from(manifest, recursive=True)
    health = lua.execute(argo_check())
    return health.status, health.message


@pytest.mark.parametrize("name", STATES)
def test_argo_cd_is_told_how_each_state_is(name: str) -> None:
    """By its group, with its reason and message."""
    status = STATES[name]
    group = group_of(status)
    assert group is not None
    state = condition_in(status, "Complete")
    assert checked(status) == (HEALTH[group][0], f"{state['reason']}: {state['message']}")


def test_every_group_has_a_health_and_is_among_the_states() -> None:
    """None is left out of what is tried."""
    assert {group_of(status) for status in STATES.values()} == set(Group) == set(HEALTH)


def test_what_the_operator_has_not_seen_yet_progresses() -> None:
    """No status, the definition's default, or one that speaks of an earlier spec."""
    expected = ("Progressing", "Waiting for the operator")
    default = {"conditions": [{"type": "Complete", "status": "Unknown", "reason": "Pending", "message": "?"}]}
    assert checked(None) == checked(default) == checked(STATES["Failed-OOMKilled"], generation=2) == expected
    assert checked(waiting()) != expected
