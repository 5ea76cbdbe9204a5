"""A second attempt at what fetches from a network, which fails for a moment now and then."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from localcluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable

    from localcluster.console import Console

Result = TypeVar("Result")


def twice(act: Callable[[], Result], console: Console) -> Result:
    """Do it once more after a ClusterError: Go, Buildah and pip keep what they fetched, so what is wrong fails soon."""
    try:
        return act()
    except ClusterError as error:
        console.say(f"   {error} Once more, since what is fetched may have been cut off.")
        return act()
