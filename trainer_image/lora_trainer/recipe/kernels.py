"""Which fast paths a run takes: chosen once, by all its processes, and kept with its checkpoints."""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping

from lora_trainer.contract.config import Kernels
from lora_trainer.data.store import Examples
from lora_trainer.data.tokens import Example
from lora_trainer.model.device import Device
from lora_trainer.model.fast_paths import ALL, MOST_TOKENS, TIMED_TOKENS, Chosen, Verdict, prove
from lora_trainer.model.loading import Adapted
from lora_trainer.model.repaying import TOO_SHORT, Passes
from lora_trainer.ranks.collectives import Ranks
from lora_trainer.training.batches import Batch, collate

log = logging.getLogger(__name__)


def choose_kernels(
    wanted: Kernels,
    adapted: Adapted,
    examples: Examples,
    device: Device,
    ranks: Ranks,
    *,
    packed: bool,
    kept: Chosen | None,
    tokens: int = 0,
    passes: int = 0,
    step: int = 0,
) -> Chosen:
    """Install the fast paths that prove themselves on every process; all of these call it, and find the same. `tokens`
    are those of the run's micro-batches, of which each process computes so many `passes`; where that is not said,
    nothing is compiled.

    `kept` are those of the checkpoint that the run goes on from, which is after `step`; None without one. They are not
    timed again, nor are others taken: a run is to go on with the numbers that it began with.
    """
    if wanted is Kernels.REFERENCE:
        log.info("kernels: plain PyTorch alone, as training.kernels asks for")
        return Chosen()
    pack = collate(_first_rows(examples, device, packed=packed), device.torch_device, packed=packed)
    sized = _of_size(examples, device, tokens, packed=packed) if kept is None else None
    at_size = None if sized is None else sized.arguments
    paths = [path for path in ALL if (not path.compiled or passes if kept is None else path.name in kept.taken)]
    run = Passes(count=passes, agreed=lambda refusal: _first(refusal, ranks))
    prove_one = functools.partial(prove, timed=kept is None, at_size=at_size, passes=run)
    found = (prove_one(path, adapted.model, adapted.head, pack.arguments, device) for path in paths)
    verdicts = {verdict.path.name: _agreed(verdict, ranks) for verdict in found}
    chosen = _fresh(verdicts) if kept is None else _kept(verdicts, kept, step)
    for sentence in chosen.left_out if kept is None else chosen.left_out[len(kept.left_out) :]:
        log.warning("kernel left out: %s", sentence)
    log.info("kernels: %s", ", ".join(chosen.taken) or "plain PyTorch alone")
    return chosen


def _first_rows(examples: Examples, device: Device, *, packed: bool) -> list[Example]:
    """Rows of a pack of so many tokens as a comparison takes; one row where they are not packed."""
    return list(_filled(examples if packed else [examples[0]], MOST_TOKENS[device.torch_device.type]))


def _of_size(examples: Examples, device: Device, tokens: int, *, packed: bool) -> Batch | None:
    """The rows again and again, as many as the run's micro-batches have, and no more than times need; None where a
    comparison of numbers takes as many."""
    kind = device.torch_device.type
    most = min(tokens, TIMED_TOKENS[kind])
    if most <= MOST_TOKENS[kind]:
        return None
    first = list(_filled([examples[0]], most))
    rows = list(_filled(itertools.cycle(examples), most)) if packed else first * (most // first[0].length)
    return collate(rows, device.torch_device, packed=packed)


def _filled(rows: Iterable[Example], room: int) -> Iterator[Example]:
    """Rows of so many tokens, the last one cut."""
    for row in rows:
        yield row.first(room)
        room -= row.length
        if room < 2:
            return


def _first(refusal: str | None, ranks: Ranks) -> str | None:
    """What one process refuses, all leave out."""
    return next((one for one in ranks.gather(refusal, str | None) if one is not None), None)


def _agreed(verdict: Verdict, ranks: Ranks) -> Verdict:
    """The verdict of all processes. Where it is taken, it is installed."""
    refusal = _first(verdict.refusal, ranks)
    for module in verdict.modules if refusal is None else ():
        verdict.path.install(module)
    return dataclasses.replace(verdict, refusal=refusal)


def _fresh(verdicts: Mapping[str, Verdict]) -> Chosen:
    refused = {name: verdict.refusal for name, verdict in verdicts.items() if verdict.refusal is not None}
    untried = {name: reason for name, reason in refused.items() if reason.startswith(TOO_SHORT)}
    for name, reason in untried.items():
        log.info("kernel not tried: %s: %s", name, reason)
    left_out = tuple(f"{name}: {reason}" for name, reason in refused.items() if name not in untried)
    return Chosen(taken=_taken(verdicts), left_out=left_out)


def _kept(verdicts: Mapping[str, Verdict], kept: Chosen, step: int) -> Chosen:
    taken = _taken(verdicts)
    reasons = {name: verdict.refusal for name, verdict in verdicts.items()}
    lost = [
        f"{name}: {reasons.get(name) or 'there is none for this model here'}; it was taken up to step {step}"
        for name in kept.taken
        if name not in taken
    ]
    return Chosen(taken=taken, left_out=(*kept.left_out, *lost), changed_step=step if lost else kept.changed_step)


def _taken(verdicts: Mapping[str, Verdict]) -> tuple[str, ...]:
    return tuple(name for name, verdict in verdicts.items() if verdict.modules and verdict.refusal is None)
