"""Rows of a pack, in ten architectures: each gives what it gives alone, and sees nothing of the others."""

import copy
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from benchmarks.acceptance.bench import Bench
from benchmarks.acceptance.comparing import compared, wider
from benchmarks.acceptance.findings import Check, Outcome, judged
from benchmarks.acceptance.models import random_model

from lora_trainer.model.attention import positions, sequence_lengths
from lora_trainer.model.device import Device
from lora_trainer.model.fast import VARLEN, compute_with, isolate, usable


def kinds(bench: Bench) -> Mapping[str, Mapping[str, Any]]:
    """The architectures, and what their configurations have beside the common sizes."""
    heads = {"head_dim": bench.head_dim}
    windowed = {**heads, "sliding_window": bench.window}
    sizes = bench.sizes
    gpt2 = {
        "n_embd": sizes["hidden_size"],
        "n_layer": sizes["num_hidden_layers"],
        "n_head": sizes["num_attention_heads"],
        "n_positions": sizes["max_position_embeddings"],
    }
    return {
        "llama": {},
        "qwen2": {},
        "qwen3": heads,
        "mistral": {"sliding_window": bench.window},
        "gemma2": {**windowed, "head_dim": 4 * bench.head_dim, "attn_logit_softcapping": 2.0},
        "gemma3_text": windowed,
        "phi": {},
        "gpt2": gpt2,
        "gpt_oss": {**windowed, "num_local_experts": 4, "num_experts_per_tok": 4, "rope_scaling": None},
        # As Granite's own. The default of 1 lets each token look at one other alone, and rounding choose which.
        "granite": {"logits_scaling": 4.0, "attention_multiplier": 1 / bench.head_dim},
    }


def checks(bench: Bench) -> Iterator[Check]:
    """Two of each architecture."""
    for kind, options in kinds(bench).items():
        yield Check(name=f"{kind}: as alone", run=partial(_as_alone, bench, kind, options))
        yield Check(name=f"{kind}: sees no other", run=partial(_isolated, bench, kind, options))


def _as_alone(bench: Bench, kind: str, options: Mapping[str, Any]) -> Outcome:
    """Logits and gradients of a pack, and of rows one by one, against rows one by one in the next wider type."""
    device = bench.device
    model = random_model(kind, {**bench.sizes, **options}, device).eval()
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    right = copy.deepcopy(plain).to(wider(device.dtype))
    # The other ways to compute experts know no fp64.
    right.set_experts_implementation("eager")
    if not isolate(model):
        return judged(False, "rows cannot be packed")
    entries = [entry for entry in usable(model, device, packed=True) if entry is VARLEN]
    compute_with(model, entries, device)
    ids = _ids(bench)
    pieces = [(model, _packed(bench, model, ids, device)), (plain, _alone(bench, plain, ids, device))]
    pieces.append((right, _alone(bench, right, ids, bench.computing_in(torch.float32))))
    found, usual, wanted = ((logits.detach(), _gradient(owner, logits)) for owner, logits in pieces)
    said = VARLEN.name if entries else "row by row"
    return compared(found, usual, wanted, names=("logits", "gradient"), dtype=device.dtype, said=said)


def _isolated(bench: Bench, kind: str, options: Mapping[str, Any]) -> Outcome:
    """No gradient of the last row's logits at the other rows; and other rows beside it change nothing."""
    device, last = bench.device, bench.lengths[-1]
    model = random_model(kind, {**bench.sizes, **options}, device).eval()
    if not isolate(model):
        return judged(False, "rows cannot be packed")
    compute_with(model, [entry for entry in usable(model, device, packed=True) if entry is VARLEN], device)
    ids, seen = _ids(bench), []

    def keep(_module: object, _inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    handle = model.get_input_embeddings().register_forward_hook(keep)
    found = _packed(bench, model, ids, device)[-last:]
    handle.remove()
    torch.autograd.backward(found.float().square().sum())
    gradient = torch.as_tensor(seen[0].grad)
    leaked = float(gradient[0, :-last].abs().max())
    others = torch.cat([(ids[:, :-last] + 1) % bench.sizes["vocab_size"], ids[:, -last:]], dim=1)
    with torch.no_grad():
        beside = _packed(bench, model, others, device)[-last:]
    spread = found.detach().std()
    change = float((beside - found.detach()).abs().mean() / spread)
    said = f"gradient at other rows {leaked:g}, change of logits beside other rows {change:.1e} of their spread"
    return judged(leaked == 0 and change <= 0.02, said, leaked=leaked, change=change)


def _ids(bench: Bench) -> torch.Tensor:
    device = bench.device.torch_device
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, bench.sizes["vocab_size"], (1, sum(bench.lengths)), generator=generator).to(device)


def _packed(bench: Bench, model: Any, ids: torch.Tensor, device: Device) -> torch.Tensor:
    with device.autocast():
        places = positions(bench.lengths, ids.device)
        rows = sequence_lengths(bench.lengths, ids.device)
        found: torch.Tensor = model(input_ids=ids, position_ids=places, segments=rows, use_cache=False).logits[0]
    return found


def _alone(bench: Bench, model: Any, ids: torch.Tensor, device: Device) -> torch.Tensor:
    with device.autocast():
        rows = torch.split(ids, list(bench.lengths), 1)
        return torch.cat([model(input_ids=row, use_cache=False).logits[0] for row in rows])


def _gradient(model: Any, logits: torch.Tensor) -> torch.Tensor:
    """Of all weights, by a loss that takes in every logit."""
    weights = torch.linspace(-1, 1, logits.numel(), device=logits.device, dtype=torch.float64).view_as(logits)
    torch.autograd.backward((logits * weights.to(logits.dtype)).sum())
    return torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None])
