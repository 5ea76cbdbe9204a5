"""The client for people: the commands `lora` and `kubectl lora`, and their Python interface.

from lora_client import LoRAClient
LoRAClient().run(spec).wait().pull()
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_client.errors import ClientError as ClientError
    from lora_client.interface import LoRAClient as LoRAClient
    from lora_client.interface import Run as Run

__all__ = ["ClientError", "LoRAClient", "Run"]


def __getattr__(name: str) -> object:
    # The command line must not pay for what it does not use.
    if name in __all__:
        from lora_client import interface  # noqa: PLC0415

        return getattr(interface, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
