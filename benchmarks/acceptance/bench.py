"""Where checks run: the device, the sizes of their models, and how long they may take."""

import contextlib
import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from benchmarks.acceptance.findings import Check, Finding, Outcome, State

from lora_trainer.errors import one_sentence
from lora_trainer.model.device import Device, choose_device
from lora_trainer.spec.config import DeviceConfig, Precision

_TINY: Mapping[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
_SMALL: Mapping[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "initializer_range": 0.06,
}
_TOKENS: Mapping[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """`tiny` models exercise the code in seconds on a CPU; `ends` is when time is up, by `time.monotonic`."""

    device: Device
    tiny: bool = False
    ends: float = float("inf")

    @property
    def on_gpu(self) -> bool:
        """Whether the device is one."""
        return self.device.torch_device.type == "cuda"

    @property
    def sizes(self) -> dict[str, Any]:
        """Of a small model, as configurations of Transformers name them."""
        return {**(_TINY if self.tiny else _SMALL), **_TOKENS}

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of the rows of a pack, some longer than `window`."""
        return (11, 3, 17, 1, 9) if self.tiny else (700, 3, 1100, 1, 400)

    @property
    def head_dim(self) -> int:
        """Of attention."""
        return int(self.sizes["hidden_size"] // self.sizes["num_attention_heads"])

    @property
    def window(self) -> int:
        """Tokens that attention with a window sees."""
        return 6 if self.tiny else 128

    def computing_in(self, dtype: torch.dtype) -> Device:
        """The device with another type."""
        return replace(self.device, dtype=dtype)


def open_bench(kind: str, *, tiny: bool, ends: float) -> Bench:
    """The GPU, or the CPU where `kind` is `cpu`. Raises `GpuFaultError` and `GpuUnfitError`, in whose sentences a user
    reads why a GPU cannot train."""
    gpus = 0 if kind == "cpu" else 1
    return Bench(device=choose_device(DeviceConfig(gpus=gpus), Precision.AUTO), tiny=tiny, ends=ends)


def run_checks(part: str, checks: Iterable[Check], bench: Bench) -> Iterator[Finding]:
    """Each check in turn. One that raises has failed; what no time is left for has not run."""
    for check in checks:
        started = time.monotonic()
        if started >= bench.ends:
            outcome = Outcome(state=State.NOT_RUN, said="no time is left: raise --minutes")
        else:
            outcome = _outcome(check.run)
        with contextlib.suppress(RuntimeError):
            # After an illegal access every call of CUDA raises, this one too.
            gc.collect()
            bench.device.give_back()
        yield Finding(
            part=part,
            check=check.name,
            state=outcome.state,
            said=outcome.said,
            figures=outcome.figures,
            seconds=time.monotonic() - started,
        )


def _outcome(run: Callable[[], Outcome]) -> Outcome:
    try:
        return run()
    except Exception as error:  # whatever a library or a driver raises is what the acceptance looks for
        return Outcome(state=State.FAILED, said=one_sentence(error)[:300])
