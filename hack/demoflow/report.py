"""What the demo says at the end. Pure functions that return text."""

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


def next_steps(artifact: dict[str, Any], folder: str | None, *, model: str, name: str, namespace: str) -> str:
    """Return commands for this adapter: use it, serve it, look closer, clean up. `model` is a folder or a Hub name."""
    place = folder or "./adapter"
    revision = "" if model.startswith("/") else f" --revision {artifact['baseRevision']}"
    lines = ["Next:"]
    if folder is None:
        lines.append(f"  copy it from the claim to {place} first, with a pod that mounts the claim")
    lines += [
        "  # use it in Python",
        "  from peft import PeftModel",
        "  from transformers import AutoModelForCausalLM",
        f'  base = AutoModelForCausalLM.from_pretrained("{model}")',
        f'  model = PeftModel.from_pretrained(base, "{place}")',
        "  # serve it on a GPU",
        f"  vllm serve {model}{revision} {artifact['serving']} --lora-modules {name}={place}",
        "  # look closer",
        f"  kubectl -n {namespace} describe lft {name}",
        f"  kubectl -n {namespace} get lft {name} -o yaml",
    ]
    return "\n".join(lines)
