"""What the demo says at the end. Pure functions that return text."""

from collections.abc import Sequence
from typing import Any


def losses(status: dict[str, Any]) -> str:
    """Return loss before and after with standard errors, and how the adapter was verified."""
    results, dataset = status["results"], status.get("dataset", {})
    rows = f"{dataset.get('validationSamples', '')} held-out rows".strip()
    if not results.get("heldOut", True):
        rows = "training rows (none were held out)"
    before, after = float(results["evalLossBefore"]), float(results["evalLossAfter"])
    verification = results.get("verification", {})
    lines = [
        f"Loss on {rows}, in nats per token (± standard error):",
        f"  base model    {before:.3f} ± {float(results['evalLossBeforeStandardError']):.3f}",
        f"  with adapter  {after:.3f} ± {float(results['evalLossAfterStandardError']):.3f}",
        f"  improvement   {before - after:.3f} ± {float(results['improvementStandardError']):.3f}",
    ]
    if verification:
        lines.append(
            f"  A fresh process loaded the written adapter onto the untouched base model and measured "
            f"{float(verification['loss']):.3f}: verified."
        )
    return "\n".join(lines)


def whereabouts(artifact: dict[str, Any], folder: str | None) -> str:
    """Return where the adapter lies: on its claim and, on a local cluster, in a folder of this machine."""
    mebibytes = int(artifact.get("sizeBytes", 0)) / 2**20
    lines = [f"Adapter: {artifact['uri']}  ({mebibytes:.1f} MiB, {artifact.get('digest', 'no digest')})"]
    if folder is not None:
        lines.append(f"  here:  {folder}")
    return "\n".join(lines)


def next_steps(
    artifact: dict[str, Any], folder: str | None, *, model: str, name: str, namespace: str, first: Sequence[str] = ()
) -> str:
    """Return commands for this adapter: ask it, copy it, look closer, serve it; each works after those above it.

    `first` are the lines without which this shell does not reach the cluster. `model` is a folder or a Hub name.
    """
    copy = f"build/{name}"
    place = folder or copy
    revision = "" if model.startswith("/") else f" --revision {artifact['baseRevision']}"
    lines = [
        "Next:",
        *first,
        "  # ask base model and adapter; copy the adapter here, its digest checked",
        f'  .venv/bin/lora ask {name} "Do you sell umbrellas?" -n {namespace}',
        f"  .venv/bin/lora pull {name} {copy} -n {namespace}",
        "  # look closer",
        f"  kubectl -n {namespace} describe lft {name}",
        f"  kubectl -n {namespace} get lft {name} -o yaml",
        "  # serve it on a GPU",
        f"  vllm serve {model}{revision} {artifact['serving']} --lora-modules {name}={place}",
        "  # use it in Python; make venv installs what .venv/bin/python needs for it",
        "  from peft import PeftModel",
        "  from transformers import AutoModelForCausalLM",
        f'  base = AutoModelForCausalLM.from_pretrained("{model}")',
        f'  model = PeftModel.from_pretrained(base, "{place}")',
    ]
    return "\n".join(lines)


def shell(kubeconfig: str, programs: str) -> list[str]:
    """Return the line after which kubectl and lora mean a local cluster."""
    return [
        "  # kubectl and lora for this cluster, in this shell",
        f"  export KUBECONFIG={kubeconfig} PATH={programs}:$PATH",
    ]
