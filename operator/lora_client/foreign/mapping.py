"""From one option of another tool to fields of a LoRAFineTune, by tables of rules."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_client.foreign.elsewhere import SAVES, TEMPLATE
from lora_client.views.changes import decimal_text
from lora_client.views.words import VALUES, known
from lora_trainer.spec.config import LossOn, Packing, Precision
from lora_trainer.spec.template_fields import BUILT_IN

Options = Mapping[str, Any]
NOT_GIVEN = "not given"
MOST_KEPT = 100
_VARIABLE = re.compile(r"\$[\w{(]")
"""Of a shell, in a script."""


@dataclass(slots=True, kw_only=True)
class Conversion:
    """A conversion in the making. `left` are options without a field: name, value, why; `to_fill`: what is missing."""

    tool: str
    options: Options
    fields: dict[str, Any] = field(default_factory=dict)
    mapped: list[tuple[str, str]] = field(default_factory=list)
    left: list[tuple[str, str, str]] = field(default_factory=list)
    to_fill: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)

    def get(self, name: str, default: Any = None) -> Any:
        """An option's value, which counts as read."""
        self.seen.add(name)
        value = self.options.get(name, default)
        return default if value is None else value

    def set(self, path: str, value: Any, *names: str) -> None:
        """A field, and the options that it comes from; one that was not given is the tool's default."""
        self.fields[path] = value
        self.seen.update(names)
        given = [name for name in names if self.options.get(name) is not None and name not in self.asked]
        self.mapped.append((", ".join(given) or f"default of {self.tool}", path))

    def ask(self, path: str, name: str, why: str) -> None:
        """An option whose value is none of the field's: its owner has to fill one in. Once for each option."""
        self.seen.add(name)
        if name not in self.asked:
            value = self.options[name]
            self.to_fill.append(f"{path}: {name} is {_short(value)}, {variable(value) or why}")
            self.asked.add(name)

    def leave(self, name: str, why: str) -> None:
        """An option that has no field here."""
        self.seen.add(name)
        if self.options.get(name) is not None and name not in self.asked:
            self.left.append((name, _short(self.options[name]), why))

    def unsaid(self, name: str, why: str) -> None:
        """An option that was not given, and what that comes to."""
        self.left.append((name, NOT_GIVEN, why))

    def number(self, name: str, path: str, default: int | None = None) -> None:
        """A whole number."""
        value = self.get(name, default)
        if value is None:
            return
        number = decimal_text(value)
        if number is None or "." in number:
            self.ask(path, name, "which is not a whole number")
        else:
            self.set(path, int(number), name)

    def decimal(self, name: str, path: str, default: float | None = None) -> None:
        """A number with a fraction, which is text here."""
        value = self.get(name, default)
        if value is None:
            return
        number = decimal_text(value)
        if number is None:
            self.ask(path, name, "which is not a number")
        else:
            self.set(path, number, name)

    def amount(self, name: str, path: str, default: float) -> float:
        """A number that a rule computes with."""
        number = decimal_text(self.get(name, default))
        if number is None:
            self.ask(path, name, "which is not a number")
        return default if number is None else float(number)

    def count(self, name: str, path: str, default: int) -> int:
        """A whole number from 1 on that a rule computes with."""
        number = _whole(self.get(name, default))
        if number is None:
            self.ask(path, name, "which is not a whole number from 1 on")
        return number or default

    def choice(self, name: str, path: str, default: str | None = None) -> None:
        """A word of the tool's for one of ours."""
        value = self.get(name, default)
        if value is None:
            return
        ours = known(f"spec.{path}", value)
        if ours is None:
            self.ask(path, name, f"which is none of {', '.join(sorted({*VALUES[f'spec.{path}'].values()}))}")
        else:
            self.set(path, ours, name)

    def truth(self, name: str, default: bool = False) -> bool:
        """A switch."""
        value = self.get(name, default)
        return value if isinstance(value, bool) else str(value).lower() in ("true", "1", "yes", "auto", "full")


def quantization(c: Conversion, *implied: str) -> None:
    """Four bits with their type, eight, or the base in full precision; by TRL's names, those of PEFT's example, or an
    option with which four bits are `implied`."""
    names = ("load_in_4bit", "load_in_8bit", "use_4bit_quantization", "use_8bit_quantization", "bnb_4bit_quant_type")
    four = bool(implied) or c.truth("load_in_4bit") or c.truth("use_4bit_quantization")
    eight = c.truth("load_in_8bit") or c.truth("use_8bit_quantization")
    kind = str(c.get("bnb_4bit_quant_type", "nf4")).upper()
    value = (kind if kind in ("NF4", "FP4") else "NF4") if four else "INT8" if eight else "None"
    c.set("quantization", value, *implied, *names)
    for name, why in (
        ("bnb_4bit_use_double_quant", "four bits are always doubly quantized here"),
        ("use_bnb_nested_quant", "four bits are always doubly quantized here"),
        ("use_nested_quant", "four bits are always doubly quantized here"),
        ("bnb_4bit_compute_dtype", "training.precision decides in what is computed"),
        ("bnb_4bit_quant_storage", "how shards are stored is decided here"),
    ):
        c.leave(name, why)


def precision(c: Conversion) -> None:
    """bf16 where the GPU has it is Auto here."""
    bf16, fp16 = c.get("bf16"), c.get("fp16")
    if str(bf16).lower() == "auto" or (bf16 is None and fp16 is None):
        return
    if c.truth("bf16"):
        c.set("training.precision", Precision.BF16.value, "bf16")
    elif c.truth("fp16"):
        c.set("training.precision", Precision.FP16.value, "fp16")
    else:
        c.set("training.precision", Precision.FP32.value, "bf16", "fp16")


def length(c: Conversion, epochs: str, *, default: float) -> None:
    """`max_steps` above 0 wins over epochs."""
    steps = int(c.amount("max_steps", "training.maxSteps", 0))
    if steps > 0:
        c.set("training.maxSteps", steps, "max_steps")
        c.leave(epochs, "max_steps decides the length")
    else:
        c.decimal(epochs, "training.epochs", default)


def batch(c: Conversion, micro: str, gpus: int | None, *, default: int, per_gpu: str = "") -> None:
    """What is computed at a time, on all GPUs, before the weights move. `gpus` is what --gpus says, if it does.
    `per_gpu` is an option with the batch of one GPU, in the place of the steps that are accumulated."""
    names = (micro, "gradient_accumulation_steps", *([per_gpu] if per_gpu else []))
    size = c.count(micro, "training.microBatchSize", default)
    accumulation = c.count(names[1], "training.effectiveBatchSize", 1)
    if per_gpu and c.get(names[1]) is None:
        accumulation = max(1, c.count(per_gpu, "training.effectiveBatchSize", size) // size)
    each, nodes, launched = (gpus, 1, ()) if gpus is not None else _launched(c)
    c.set("training.effectiveBatchSize", size * accumulation * max(1, each) * nodes, *names, *launched)
    c.set("training.microBatchSize", size, micro)
    c.fields["resources.gpus"] = each
    if gpus is not None:
        c.mapped.append(("--gpus", "resources.gpus"))
    elif launched:
        c.set("resources.gpus", each, *launched)
    else:
        c.to_fill.append(
            "training.effectiveBatchSize: it counts one GPU; where the tool was started on more, name them with --gpus"
        )
    if nodes > 1:
        c.set("resources.nodes", nodes, launched[-1])


def launched(c: Conversion) -> tuple[int, int]:
    """GPUs of a node and nodes by the options of a launcher; no GPUs where it names none."""
    each, nodes, names = _launched(c)
    return (each if names else 0), nodes


def _launched(c: Conversion) -> tuple[int, int, tuple[str, ...]]:
    """GPUs of a node, nodes, and the options of a launcher that say so: torchrun, accelerate, deepspeed. Accelerate
    counts the processes of all nodes."""
    name, count = _count(c, "nproc_per_node", "num_processes", "num_gpus")
    if not count:
        return 1, 1, ()
    places, nodes = _count(c, "nnodes", "num_machines", "num_nodes")
    nodes = nodes or 1
    each = max(1, count // nodes) if name == "num_processes" else count
    return each, nodes, (name, places) if places else (name,)


def _count(c: Conversion, *names: str) -> tuple[str, int]:
    """The first option that is a number above 0. A launcher's last option holds the name of the script, too."""
    for name in names:
        value = c.options.get(name)
        text = str(value[0] if isinstance(value, list) and value else value)
        if text.isdecimal() and int(text):
            c.seen.add(name)
            return name, int(text)
        if variable(text):
            c.ask("training.effectiveBatchSize", name, "")
    return "", 0


def warmup(c: Conversion) -> None:
    """A share of the steps; so many steps, which win, are one only where their number is known."""
    steps, most = c.amount("warmup_steps", "training.warmupRatio", 0), c.fields.get("training.maxSteps")
    if steps <= 0:
        ratio = decimal_text(c.get("warmup_ratio", 0))
        if ratio is None:
            c.ask("training.warmupRatio", "warmup_ratio", "which is not a number")
        else:
            c.set("training.warmupRatio", ratio, "warmup_ratio", "warmup_steps")
        return
    c.leave("warmup_ratio", "warmup_steps decides")
    if steps < 1:
        c.set("training.warmupRatio", decimal_text(steps), "warmup_steps")
    elif most:
        c.set("training.warmupRatio", decimal_text(round(min(1.0, int(steps) / most), 6)), "warmup_steps")
    else:
        c.ask("training.warmupRatio", "warmup_steps", "a number of steps: write its share of all steps")


def checkpointing(c: Conversion, name: str = "gradient_checkpointing") -> None:
    """Activations computed anew, in whatever way, or not; where nothing is said, the plan decides here."""
    if c.get(name) is not None:
        path = "training.activationCheckpointing"
        c.set(path, known(f"spec.{path}", c.get(name)) or "Full", name)
    c.leave("gradient_checkpointing_kwargs", "how activations are recomputed is decided here")


def loss_on(c: Conversion, name: str) -> None:
    """Whether prompts are learned, too."""
    if c.get(name) is not None:
        c.set("training.lossOn", (LossOn.ALL if c.truth(name) else LossOn.COMPLETION).value, name)


def only_loss(c: Conversion, *names: str) -> None:
    """Whether only answers are learned, by options of which one is enough."""
    given = [name for name in names if c.get(name) is not None]
    if given:
        only = any(c.truth(name) for name in given)
        c.set("training.lossOn", (LossOn.COMPLETION if only else LossOn.ALL).value, *given)


def held_out(c: Conversion, name: str) -> None:
    """A share of the rows; from 1 on the tools take it for their number."""
    if c.amount(name, "dataset.validationFraction", 0) < 1:
        c.decimal(name, "dataset.validationFraction", 0)
    else:
        c.leave(name, "is a number of rows: dataset.validationFraction is their share, maxValidationRows the most")


def packing(c: Conversion, name: str) -> None:
    """Rows one after the other; here they never see each other, and a batch counts them rather than what holds them."""
    if c.get(name) is None:
        return
    c.set("training.packing", (Packing.ENABLED if c.truth(name) else Packing.DISABLED).value, name)
    if c.truth(name):
        size, most = c.fields["training.effectiveBatchSize"], c.fields.get("training.maxSequenceLength")
        packs = f"packs, {size} a step{f', of up to {most} tokens' if most else ''}"
        c.to_fill.append(
            f"training.effectiveBatchSize: with {name}, {c.tool} counts {packs}; here it is rows: multiply it by the "
            "rows of a pack"
        )


def variants(c: Conversion, dora: str, rslora: str) -> None:
    """DoRA and rsLoRA."""
    if c.truth(dora):
        c.set("lora.variant", "DoRA", dora)
    if c.truth(rslora):
        c.set("lora.scaling", "RankStabilized", rslora)


def saving(c: Conversion) -> None:
    """How often states are saved and how many are kept; epochs are nothing that a checkpoint counts here."""
    c.leave("save_strategy", SAVES)
    steps = _whole(c.get("save_steps"))
    if steps and str(c.get("save_strategy", "steps")).lower() == "steps":
        c.set("checkpoint.intervalSteps", steps, "save_steps")
    else:
        c.leave("save_steps", SAVES)
    if kept := _whole(c.get("save_total_limit")):
        c.set("checkpoint.keep", min(kept, MOST_KEPT), "save_total_limit")
    else:
        c.leave("save_total_limit", f"checkpoint.keep is a whole number from 1 to {MOST_KEPT}")


def _whole(value: object) -> int | None:
    """A whole number from 1 on, None for anything else."""
    text = str(value).removesuffix(".0")
    return int(text) if text.isdecimal() and int(text) else None


def chat_template(c: Conversion, name: str) -> None:
    """One that is built in here, too, by its name."""
    built_in = {ours.lower(): ours for ours in BUILT_IN}
    ours = built_in.get(str(c.get(name, "")).lower())
    if ours:
        c.set("dataset.chatTemplate", ours, name)
    else:
        c.leave(name, TEMPLATE)


def manifest(c: Conversion, name: str) -> dict[str, Any]:
    """The resource, its fields in the definition's order of sections."""
    order = ("model", "dataset", "lora", "quantization", "training", "resources", "output", "checkpoint", "tracking")
    fields = {"output.uri": f"pvc://adapters/{name}", **c.fields}
    spec: dict[str, Any] = {}
    for path in sorted(fields, key=lambda path: order.index(path.partition(".")[0])):
        section, _, leaf = path.partition(".")
        if leaf:
            spec.setdefault(section, {})[leaf] = fields[path]
        else:
            spec[section] = fields[path]
    return {
        "apiVersion": "lora-operator.io/v1alpha1",
        "kind": "LoRAFineTune",
        "metadata": {"name": name},
        "spec": spec,
    }


def variable(value: object) -> str:
    """What is said of a variable of a shell, alone or among others; empty for any other value."""
    return "a variable of the shell" if _VARIABLE.search(str(value)) else ""


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
