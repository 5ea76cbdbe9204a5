"""Where the time of a step goes, by the profiler: parts by the kind of kernel, and the share without any."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

_PARTS: Mapping[str, str] = {
    "attention": r"flash|fmha|attention|sdpa",
    "dequantization": r"dequant|quantize|kgemm_4bit|kDequant",
    "matrix products": r"gemm|nvjet|cutlass|xmma|cublas|addmm|::mm|bmm|matmul|linear",
    "optimizer": r"multi_tensor|adam|l2norm|lpnorm",
    "copies": r"memcpy|memset|copy_|cat",
    "reductions": r"reduce|::sum|norm|softmax|nll",
}
"""Patterns of kernels' names, the first that fits; all others are element by element."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A kernel's name, its start and its end, in microseconds."""

    name: str
    start: float
    end: float


def part_of(name: str) -> str:
    """Which part of a step a kernel belongs to."""
    return next((part for part, words in _PARTS.items() if re.search(words, name, re.IGNORECASE)), "element by element")


def parts(intervals: Iterable[Interval]) -> dict[str, float]:
    """Share of all kernels' time by part, the largest first."""
    spent: dict[str, float] = {}
    for one in intervals:
        spent[part_of(one.name)] = spent.get(part_of(one.name), 0.0) + one.end - one.start
    total = sum(spent.values())
    return {part: time / total for part, time in sorted(spent.items(), key=lambda item: -item[1])}


def idle_share(intervals: Iterable[Interval]) -> float:
    """Share of the time from the first kernel to the last in which none runs; 0 for none."""
    ordered = sorted(intervals, key=lambda one: one.start)
    busy, end = 0.0, ordered[0].start if ordered else 0.0
    for one in ordered:
        busy += max(0.0, one.end - max(end, one.start))
        end = max(end, one.end)
    whole = end - ordered[0].start if ordered else 0.0
    return 1 - busy / whole if whole else 0.0


def profiled(step: Callable[[], None], device: torch.device) -> list[Interval]:
    """The kernels of one call on a GPU, the outermost operations of PyTorch on a CPU."""
    on_gpu = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=kinds, acc_events=True) as found:
        step()
        if on_gpu:
            torch.cuda.synchronize(device)
    counts = _is_kernel if on_gpu else _is_outermost
    events: Iterable[Any] = found.events() or ()
    return [
        Interval(name=event.name, start=event.time_range.start, end=event.time_range.end)
        for event in events
        if counts(event) and event.time_range.end > event.time_range.start
    ]


def _is_kernel(event: Any) -> bool:
    return bool(event.device_type.name == "CUDA" and not event.is_user_annotation)


def _is_outermost(event: Any) -> bool:
    parent = event.cpu_parent
    return bool(event.name.startswith("aten::") and not (parent and parent.name.startswith("aten::")))
