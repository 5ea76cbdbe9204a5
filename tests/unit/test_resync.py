"""The lists of every few minutes, and what becomes of one that fails."""

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, cast

import pytest

from lora_operator.cluster.api import Api, ApiError, UnreachableError
from lora_operator.cluster.kueue import Kueue
from lora_operator.running.resync import resync

if TYPE_CHECKING:
    from lora_operator.cluster.reflector import Reflector


class NoKueue(Kueue):
    """Never there, or nobody says so."""

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__()
        self._failure = failure

    async def has_changed(self, api: Api) -> bool:
        """It stays away."""
        if self._failure is not None:
            raise self._failure
        return False


class Kind:
    """What is followed of a kind: lists, of which some fail."""

    def __init__(self, *failures: Exception | None) -> None:
        self.path = "/jobs"
        self.behind_for_s: float | None = None
        self.lists = 0
        self._failures = list(failures)

    async def list(self) -> str:
        """One of them."""
        self.lists += 1
        failure = self._failures.pop(0) if self._failures else None
        if failure is not None:
            raise failure
        return "9"


class OverError(Exception):
    """The test has seen enough."""


def run(
    *kinds: Kind,
    interval_s: float = 35,
    kueue: Kueue | None = None,
    sleep: Callable[[float], Coroutine[Any, Any, None]],
    after: Callable[[], None] = lambda: None,
) -> Coroutine[Any, Any, None]:
    reflectors = [cast("Reflector", kind) for kind in kinds]
    return resync(cast("Api", None), kueue or NoKueue(), reflectors, interval_s=interval_s, after=after, sleep=sleep)


def pauses(most: int, seen: list[float], then: Callable[[int], None] = lambda _: None) -> Any:
    """Sleep that takes no time, so often."""

    async def sleep(seconds: float) -> None:
        if len(seen) == most:
            raise OverError
        seen.append(seconds)
        then(len(seen))

    return sleep


@pytest.mark.parametrize("failure", [UnreachableError("reset"), ApiError(403, "Forbidden", "no right")])
async def test_a_kind_that_cannot_be_listed_holds_up_no_other(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """The next time all is well: only then is what has gone forgotten."""
    broken, fine, worked = Kind(failure), Kind(), list[int]()
    with pytest.raises(OverError):
        await run(broken, fine, interval_s=10, sleep=pauses(2, []), after=lambda: worked.append(fine.lists))
    assert (broken.lists, fine.lists, worked) == (2, 2, [2])
    assert caplog.messages == [f"the resync failed and is tried again in 10 s: /jobs: {failure}"]


async def test_an_api_server_that_does_not_say_whether_there_is_kueue_is_asked_again() -> None:
    """It is in trouble, and so would the lists be."""
    kind, worked = Kind(), list[int]()
    kueue = NoKueue(UnreachableError("reset"))
    with pytest.raises(OverError):
        await run(kind, interval_s=10, kueue=kueue, sleep=pauses(2, []), after=lambda: worked.append(1))
    assert (kind.lists, worked) == (0, [])


async def test_an_api_server_that_is_in_the_past_is_asked_again_soon() -> None:
    """A watch that had to be listed anew has found out, long before the next resync."""
    kind, seen = Kind(), list[float]()

    def fall_behind(count: int) -> None:
        kind.behind_for_s = 0.0 if count >= 2 else None

    with pytest.raises(OverError):
        await run(kind, sleep=pauses(3, seen, fall_behind))
    assert (seen, kind.lists) == ([10, 10, 10], 2)


async def test_the_whole_interval_lies_between_two_lists_of_the_present() -> None:
    """Waited for in parts."""
    kind, seen = Kind(), list[float]()
    with pytest.raises(OverError):
        await run(kind, sleep=pauses(8, seen))
    assert (seen, kind.lists) == ([10, 10, 10, 5] * 2, 2)
