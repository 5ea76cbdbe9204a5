"""One run for a person: what it is, how it stands, what it found, what to do next."""

from collections.abc import Iterator
from datetime import datetime

from lora_client.views.resources import (
    Object,
    age,
    message,
    name_of,
    namespace_of,
    part,
    result,
    since,
    state,
    text,
    waiting_for,
)
from lora_client.views.uses import is_merged, uses
from lora_operator.model.wording import advice_lines, byte_size

_UNSAID = {"None": "unquantized", "Auto": "quantization Auto"}
"""Values that need their field's name beside them."""


def summary(resource: Object, now: datetime) -> list[str]:
    """The whole status as lines."""
    return [
        *_head(resource, now),
        *_progress(resource, now),
        *losses(resource),
        *_artifact(resource),
        *advice_lines(part(resource, "status").get("advice"), message(resource)),
    ]


def _head(resource: Object, now: datetime) -> Iterator[str]:
    yield f"{namespace_of(resource)}/{name_of(resource)}: {state(resource)}, {age(resource, now)} old"
    for sentence in dict.fromkeys((message(resource), waiting_for(resource, now).partition(": ")[2])):
        if sentence:
            yield f"  {sentence}"
    for field in ("model", "dataset", "output"):
        yield f"  {field:<10}{text(resource, 'spec', field, 'uri')}"
    resolved, spec = part(resource, "status", "resolved"), part(resource, "spec", "lora")
    rank, alpha = resolved.get("rank", spec.get("rank")), resolved.get("alpha", spec.get("alpha"))
    shown = [f"rank {rank}"] if rank else []
    shown += [f"alpha {alpha}"] if alpha else []
    held = str(resolved.get("quantization", ""))
    shown += [_UNSAID.get(held, held)] if held else []
    shown += [str(resolved[key]) for key in ("computeDtype", "device") if resolved.get(key)]
    if shown:
        yield f"  {'adapter':<10}{', '.join(shown)}"


def _progress(resource: Object, now: datetime) -> Iterator[str]:
    progress = part(resource, "status", "progress")
    if not progress or result(resource):
        return
    parts = [f"step {progress['steps']}" if "steps" in progress else "", *speed(progress)]
    yield f"  {'progress':<10}{', '.join(filter(None, parts))}"
    if progress.get("lastUpdateTime"):
        yield f"  {'':<10}as of {since(str(progress['lastUpdateTime']), now)} ago"


def speed(progress: Object) -> list[str]:
    """Loss, held-out loss, tokens per second, time left, peak memory: those that are known."""
    forms = (
        ("loss", "loss {}"),
        ("evalLoss", "held-out loss {}"),
        ("tokensPerSecond", "{} tokens/s"),
        ("eta", "{} left"),
        ("peakMemory", "peak memory {}"),
    )
    return [form.format(progress[key]) for key, form in forms if progress.get(key)]


def losses(resource: Object) -> list[str]:
    """Loss before and after with standard errors, and the verification; nothing before there are results."""
    results = part(resource, "status", "results")
    if "evalLossBefore" not in results or "evalLossAfter" not in results:
        return []
    count = text(resource, "status", "dataset", "validationSamples")
    rows = f"{count} held-out rows".strip() if results.get("heldOut", True) else "training rows (none were held out)"
    before, after = float(results["evalLossBefore"]), float(results["evalLossAfter"])
    lines = [
        f"Loss on {rows}, in nats per token (± standard error):",
        f"  base model    {with_error(before, results.get('evalLossBeforeStandardError'))}",
        f"  with adapter  {with_error(after, results.get('evalLossAfterStandardError'))}",
        f"  improvement   {with_error(before - after, results.get('improvementStandardError'))}",
    ]
    verified = part(results, "verification").get("loss")
    if verified:
        lines.append(
            f"  A fresh process loaded the adapter onto the base model and measured {float(verified):.3f}: verified."
        )
    return lines


def with_error(value: float, error: object) -> str:
    """A loss and its standard error where there is one."""
    return f"{value:.3f}" + (f" ± {float(str(error)):.3f}" if error else "")


def _artifact(resource: Object) -> Iterator[str]:
    artifact = part(resource, "status", "artifact")
    if not artifact.get("uri"):
        return
    size = artifact.get("sizeBytes")
    facts = [byte_size(size)] if isinstance(size, int) else []
    what = "Merged model" if is_merged(resource) else "Adapter"
    yield f"{what}: {artifact['uri']} ({', '.join([*facts, str(artifact.get('digest', 'no digest'))])})"
    yield f"  {uses(resource)}"
