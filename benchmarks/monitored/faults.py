"""What makes each alert of the chart fire: how what targets expose is changed, from one moment on."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What targets expose from then on. `path` is a pattern of their paths, and `instead` makes a value of the moment
    of the fault, in seconds since 1970. The condition of the alert holds `holds_after_s` later."""

    path: str
    found: bytes
    instead: Callable[[float], bytes]
    holds_after_s: float = 0.0


def _value(series: bytes) -> bytes:
    """A pattern of the lines with such a series, up to their value."""
    return rb"(?m)^(" + series + rb") \S+$"


def _given(value: str) -> Callable[[float], bytes]:
    return lambda _: rb"\g<1> " + value.encode()


def _ago(seconds: float) -> Callable[[float], bytes]:
    return lambda at_s: rb"\g<1> %d" % (at_s - seconds)


_OPERATOR, _RUNS, _DCGM, _KUBELET = "/operator", "/run-.*", "/dcgm", "/kubelet"
_LABELS = rb"\{.*\}"
_ENDED = rb'lorafinetune_state\{group="Succeeded",(.*),state="Succeeded"\}'
_TRAINS = rb'lorafinetune_state\{group="Running",(.*),state="Training"\}'

# An average over 15 minutes falls below 5 % when no more than 3 of its 60 samples are of a GPU that was busy.
_GPU_IDLE_S = 57 * 15

FAULTS: Mapping[str, Sequence[Fault]] = {
    "LoRAOperatorWatchStale": [
        Fault(
            path=_OPERATOR,
            found=_value(rb"lora_operator_watch_last_event_timestamp_seconds" + _LABELS),
            instead=_ago(601),
        )
    ],
    "LoRAOperatorReconcileErrors": [
        Fault(path=_OPERATOR, found=_value(rb'lora_operator_reconcile_total\{result="error"\}'), instead=_given("20"))
    ],
    "LoRAOperatorNamespaceLeftOut": [
        Fault(
            path=_OPERATOR,
            found=rb"\Z",
            instead=lambda _: b'lora_operator_left_out_namespace{namespace="team-left"} 1\n',
        )
    ],
    "LoRAFineTuneStuckPending of group Waiting": [
        Fault(
            path=_OPERATOR,
            found=_TRAINS,
            instead=lambda _: rb'lorafinetune_state{group="Waiting",\g<1>,state="Unschedulable"}',
        )
    ],
    "LoRAFineTuneStuckPending of group Held": [
        Fault(
            path=_OPERATOR,
            found=_value(rb"lorafinetune_state_since_timestamp_seconds" + _LABELS),
            instead=_ago(86_401),
        )
    ],
    "LoRAFineTuneStalled": [
        Fault(path=_RUNS, found=_value(rb"lora_training_heartbeat_timestamp_seconds"), instead=_ago(2401))
    ],
    "LoRAFineTuneNonFiniteLoss": [
        Fault(path=_RUNS, found=_value(rb"lora_training_nonfinite_values_total"), instead=_given("5"))
    ],
    "LoRAFineTuneCheckpointStale": [
        Fault(path=_RUNS, found=_value(rb"lora_training_unsaved_seconds"), instead=_given("1801"))
    ],
    "LoRAFineTuneRestartLoop": [
        Fault(
            path=_OPERATOR,
            found=_value(rb'lorafinetune_retries_total\{kind="used",.*\}'),
            instead=_given("5"),
        )
    ],
    "LoRAFineTuneFailureRatio": [
        Fault(
            path=_OPERATOR,
            found=_ENDED,
            instead=lambda _: rb'lorafinetune_state{group="Failed",\g<1>,state="StorageFull"}',
        ),
        # More ended within six hours than this fleet's 8 of all namespaces.
        Fault(path=_OPERATOR, found=_value(rb"lorafinetune_completed_timestamp_seconds" + _LABELS), instead=_ago(60)),
    ],
    "LoRAFineTuneMemoryNearLimit of memory gpu": [
        Fault(path=_RUNS, found=_value(rb"lora_training_gpu_memory_peak_bytes" + _LABELS), instead=_given("2.34e+10"))
    ],
    "LoRAFineTuneMemoryNearLimit of memory pod": [
        Fault(path=_KUBELET, found=_value(rb"container_memory_rss" + _LABELS), instead=_given(f"{15.9 * _GIB:.0f}"))
    ],
    "LoRAFineTuneGPUIdle": [
        Fault(
            path=_DCGM,
            found=_value(rb"DCGM_FI_DEV_GPU_UTIL" + _LABELS),
            instead=_given("0"),
            holds_after_s=_GPU_IDLE_S,
        )
    ],
    "LoRAFineTuneGPUXid": [Fault(path=_DCGM, found=_value(rb"DCGM_FI_DEV_XID_ERRORS" + _LABELS), instead=_given("79"))],
}
"""By alert, and where two rules have one name, by the label that tells them apart. Those of an operator that ends or
restarts are beside them: a whole target is gone then."""


# Of the fleet's healthy runs one in a hundred finds no node, and some have failed by their loss, which fires by itself.
_WELL = {
    rb'\{group="Waiting",(.*),state="Unschedulable"\}': rb'{group="Held",\g<1>,state="Queued"}',
    rb'state="LossDiverged"': rb'state="StorageFull"',
}


def healthy(text: bytes) -> bytes:
    """What a target exposes without those of the fleet's runs that alerts are for."""
    for found, instead in _WELL.items():
        text = re.sub(found, instead, text)
    return text


def altered(text: bytes, path: str, at_s: float) -> bytes:
    """What the target of a path exposes in place of `text` when all faults began at a moment."""
    for faults in FAULTS.values():
        for fault in faults:
            if re.fullmatch(fault.path, path):
                text = re.sub(fault.found, fault.instead(at_s), text)
    return text
