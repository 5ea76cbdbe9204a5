"""LoRAFineTunes as the API server stores them, for the client's tests."""

import copy
from typing import Any

Object = dict[str, Any]


def condition(kind: str, status: str, reason: str, message: str = "") -> Object:
    """One condition."""
    return {"type": kind, "status": status, "reason": reason, "message": message}


def resource(name: str = "tone", *, status: Object | None = None, **spec: Any) -> Object:
    """A run of the namespace team-a that began two minutes before `NOW`."""
    base: Object = {
        "model": {"uri": "hf://acme/model", "secretRef": {"name": "hf-token"}},
        "dataset": {"uri": "hf://acme/chats"},
        "lora": {"rank": 16},
        "output": {"uri": f"pvc://adapters/{name}"},
    }
    return {
        "apiVersion": "lora-operator.io/v1alpha1",
        "kind": "LoRAFineTune",
        "metadata": {
            "name": name,
            "namespace": "team-a",
            "uid": "b9d9a9d4-0000-4000-8000-000000000001",
            "creationTimestamp": "2026-11-27T12:00:00Z",
            "resourceVersion": "7",
            "managedFields": [{"manager": "kubectl"}],
        },
        "spec": copy.deepcopy({**base, **spec}),
        "status": status or {},
    }


def training(step: int = 120, loss: str = "1.2345") -> Object:
    """The status of a run that trains."""
    return {
        "conditions": [condition("Complete", "False", "Training", "Step 120/400, about 1h12m to go")],
        "attempt": 1,
        "jobName": "tone-abcde-1",
        "stateSince": "2026-11-27T12:01:00Z",
        "resolved": {"rank": 16, "alpha": 32, "quantization": "NF4", "image": "registry.example/trainer:1"},
        "progress": {
            "phase": "Training",
            "step": step,
            "steps": f"{step}/400",
            "percentage": step // 4,
            "loss": loss,
            "tokensPerSecond": "1234",
            "eta": "1h12m",
            "lastUpdateTime": "2026-11-27T12:01:50Z",
        },
    }


def finished(**results: Any) -> Object:
    """The status of a run that succeeded."""
    measured: Object = {
        "evalLossBefore": "3.0",
        "evalLossBeforeStandardError": "0.1",
        "evalLossAfter": "2.0",
        "evalLossAfterStandardError": "0.08",
        "improvementStandardError": "0.02",
        "heldOut": True,
        "tokensPerSecond": "333",
        "durationSeconds": 12,
        "verification": {"loss": "2.0"},
    }
    return {
        "conditions": [
            condition("Complete", "True", "Succeeded", "The adapter is verified"),
            condition("Failed", "False", "Succeeded"),
        ],
        "attempt": 1,
        "resolved": {
            "rank": 16,
            "alpha": 32,
            "quantization": "None",
            "image": "registry.example/trainer:1",
            "datasetFingerprint": "sha256:b",
            "seed": 42,
            "maxSequenceLength": 2048,
            "lossOn": "Completion",
        },
        "dataset": {"validationSamples": 40},
        "results": {**measured, **results},
        "artifact": {
            "uri": "pvc://adapters/tone/tone-abcde",
            "digest": "sha256:" + "c" * 64,
            "sizeBytes": 4 * 2**20,
            "format": "peft",
            "baseModel": "acme/model",
            "baseRevision": "a" * 40,
            "rank": 16,
            "servable": True,
            "serving": "--enable-lora --max-lora-rank 16",
        },
    }
