"""The wait before anything is listed: for the definition without an end, for an API server that is silent with one."""

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from tests.unit.builders import CONFIG

from lora_operator.cluster.api import UnreachableError
from lora_operator.controller import checks as module
from lora_operator.controller.checks import NoDefinitionError, prepare
from lora_operator.controller.supervision import OperatorFailedError

if TYPE_CHECKING:
    from lora_operator.cluster.lease import Election
    from lora_operator.controller.operator import Operator

MISSING = NoDefinitionError("The cluster does not know lorafinetunes")
SILENT = UnreachableError("GET /apis: no answer")


class Wait:
    """The answers of one API server after the other, and a clock that moves while the operator sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Exception | None) -> None:
        self.now_s, self.answers = 100.0, list(answers)
        self.operator = SimpleNamespace(config=CONFIG, api=None, hindrance="")
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        monkeypatch.setattr(module, "asyncio", SimpleNamespace(sleep=self.sleep))
        monkeypatch.setattr(module, "check_definition", self.check)
        monkeypatch.setattr(module, "_find_out", self.check)
        monkeypatch.setattr(module, "check_lease", self.check_lease)

    async def check(self, _: object) -> None:
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer

    async def check_lease(self, *_: object) -> None:
        pass

    async def sleep(self, _: float) -> None:
        self.now_s += 60

    async def end(self) -> None:
        await prepare(cast("Operator", self.operator), cast("Election", SimpleNamespace(namespace="", name="")))


async def test_a_silent_moment_after_a_long_wait_for_the_definition_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The API server answered a moment ago, though the process began long before."""
    wait = Wait(monkeypatch, *[MISSING] * 5, SILENT, None)
    await wait.end()
    assert wait.answers == []


async def test_an_api_server_that_stays_silent_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the process starts it again, and sees that it does not get on."""
    wait = Wait(monkeypatch, *[SILENT] * 5)
    with pytest.raises(OperatorFailedError, match="does not answer"):
        await wait.end()
    assert len(wait.answers) == 1
