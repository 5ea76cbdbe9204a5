"""The operator with a handler more, which does what handlers must not do with LoRAFineTunes of certain names.

It is registered with kopf as the operator's own are, and raises, is slow, or never ends.
"""

import asyncio
import sys
from typing import Any

import kopf

from lora_operator.__main__ import main
from lora_operator.controller import handlers
from lora_operator.controller.operator import Operator

RAISES, SLOW, NEVER_ENDS = "raises", "slow", "never-ends"
SLOW_S = 0.5
BOOM = "boom: it cannot be taken in"

_take_in = Operator.take_in


def _take_in_or_raise(self: Operator, kind: str | None, document: Any) -> None:
    if document["metadata"]["name"] == RAISES:
        raise ValueError(BOOM)
    _take_in(self, kind, document)


@kopf.on.event("lora-operator.io", "v1alpha1", "lorafinetunes")
async def dawdle(name: str, **_: Any) -> None:
    """Take longer than events take to come, or for ever, whoever wants it to end."""
    if name == SLOW:
        await asyncio.sleep(SLOW_S)
    while name == NEVER_ENDS:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue


if __name__ == "__main__":
    Operator.take_in = _take_in_or_raise  # type: ignore[method-assign]
    assert handlers.bring is not None
    sys.exit(main())
