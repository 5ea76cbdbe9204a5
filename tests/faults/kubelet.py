"""An operator that is started again whenever it ends, as a kubelet does it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from tests.component.patience import DEADLINE_S, eventually
from tests.component.stage import Stage

if TYPE_CHECKING:
    from tests.component.operator_process import OperatorProcess

T = TypeVar("T")


class KeptAlive:
    """The operator of a stage with its restarts."""

    def __init__(self, stage: Stage, **start: Any) -> None:
        self._stage = stage
        self._start = start
        self.operator: OperatorProcess = stage.start(**start)
        self.restarts = 0

    def eventually(self, look: Callable[[], T | None], what: str, *, deadline_s: float = DEADLINE_S) -> T:
        """As `stage.eventually`, with the operator kept alive meanwhile."""

        def look_after() -> T | None:
            if self.operator.process.poll() is not None:
                assert self.operator.process.returncode == 1, self.operator.text()[-4000:]
                self.restarts += 1
                self.operator = self._stage.start(wait=False, **self._start)
            return look()

        try:
            return eventually(look_after, what, deadline_s=deadline_s)
        except AssertionError as error:
            error.add_note(self.operator.text()[-6000:])
            raise
