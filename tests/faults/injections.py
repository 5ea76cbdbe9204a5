"""What the fault proxy can do to a request or to a watch, and to which of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from tests.faults.calls import Call


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The server refuses; with `retry_after_s` it asks to be left alone for so long."""

    code: int
    reason: str
    message: str = "injected"
    retry_after_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Instead:
    """Another document than the server's, or a refusal; where it is None the server answers."""

    document: Callable[[Call], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay:
    """The request reaches the server late."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """The request waits until its client is gone: never forwarded, or `answered` and the answer kept back.

    With `FaultProxy.let_go` it goes on instead.
    """

    answered: bool


@dataclass(frozen=True, slots=True)
class LostAnswer:
    """The server does what it was asked for, and the connection breaks before its answer."""


@dataclass(frozen=True, slots=True)
class Reset:
    """The connection breaks: before a request is forwarded, or in the middle of a watch."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A watch ends in good order, as servers end it now and then."""


@dataclass(frozen=True, slots=True)
class HalfDocument:
    """A watch ends in the middle of an event."""


@dataclass(frozen=True, slots=True)
class Freeze:
    """No byte of a watch comes any more, and the connection stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchError:
    """An event of type ERROR, after which the server ends the watch."""

    code: int
    reason: str


StreamFault = Reset | Cut | HalfDocument | Freeze | WatchError
RequestFault = Answer | Instead | Delay | Hold | LostAnswer | Reset


@dataclass(kw_only=True)
class Rule:
    """A fault for calls like `what` (`create jobs`, `watch *`, `*`) and, for changes, `about` one LoRAFineTune.

    `skip` calls are let through first, then every `every`-th is hit, `times` in all; None is for ever. `where` may look
    closer. A fault of streams hits a watch as soon as it begins. Calls for the operator's Lease are hit by a rule that
    names `leases` alone.
    """

    fault: RequestFault | StreamFault
    what: str = "*"
    about: str = "*"
    where: Callable[[Call], bool] = lambda _: True
    skip: int = 0
    every: int = 1
    times: int | None = None
    hits: int = 0
    _seen: int = field(default=0, repr=False)
    _lifted: bool = field(default=False, repr=False)

    def lift(self) -> None:
        """It acts no more."""
        self._lifted = True

    def takes(self, call: Call) -> bool:
        """Whether it acts on this call; counts it."""
        named = call.resource != "leases" or "leases" in self.what
        if self._lifted or not (named and fnmatchcase(call.what, self.what) and fnmatchcase(call.about, self.about)):
            return False
        if isinstance(self.fault, StreamFault) and not isinstance(self.fault, Reset) and not call.is_watch:
            return False
        if not self.where(call):
            return False
        self._seen += 1
        if self.times is not None and self.hits >= self.times:
            return False
        if self._seen <= self.skip or (self._seen - self.skip - 1) % self.every:
            return False
        self.hits += 1
        return True
