"""From one option of another tool to fields of a LoRAFineTune, by tables of rules."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_client.foreign.elsewhere import SAVES, TEMPLATE
from lora_client.views.changes import decimal_text
from lora_client.views.words import is_file, known
from lora_trainer.contract.config import LossOn, Packing, Precision
from lora_trainer.contract.template_fields import BUILT_IN

Options = Mapping[str, Any]
MISSING_MODEL = "hf://organisation/model"
MISSING_DATASET = "hf://organisation/data-set"
NOT_GIVEN = "not given"
MOST_KEPT = 100


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

    def get(self, name: str, default: Any = None) -> Any:
        """An option's value, which counts as read."""
        self.seen.add(name)
        value = self.options.get(name, default)
        return default if value is None else value

    def set(self, path: str, value: Any, *names: str) -> None:
        """A field, and the options that it comes from; one that was not given is the tool's default."""
        self.fields[path] = value
        given = [name for name in names if self.options.get(name) is not None]
        self.mapped.append((", ".join(given) or f"default of {self.tool}", path))

    def leave(self, name: str, why: str) -> None:
        """An option that has no field here."""
        self.seen.add(name)
        if self.options.get(name) is not None:
            self.left.append((name, _short(self.options[name]), why))

    def unsaid(self, name: str, why: str) -> None:
        """An option that was not given, and what that comes to."""
        self.left.append((name, NOT_GIVEN, why))

    def number(self, name: str, path: str, default: int | None = None) -> None:
        """A whole number."""
        value = self.get(name, default)
        if value is None:
            return
        try:
            self.set(path, int(float(str(value))), name)
        except ValueError:
            self.leave(name, "is not a number")

    def decimal(self, name: str, path: str, default: float | None = None) -> None:
        """A number with a fraction, which is text here."""
        value = self.get(name, default)
        if value is None:
            return
        number = decimal_text(value)
        if number is None:
            self.leave(name, "is not a number")
        else:
            self.set(path, number, name)

    def choice(self, name: str, path: str, default: str | None = None) -> None:
        """A word of the tool's for one of ours."""
        value = self.get(name, default)
        if value is None:
            return
        ours = known(f"spec.{path}", value)
        if ours is None:
            self.leave(name, f"{path} has no such value")
        else:
            self.set(path, ours, name)

    def truth(self, name: str, default: bool = False) -> bool:
        """A switch."""
        value = self.get(name, default)
        return value if isinstance(value, bool) else str(value).lower() in ("true", "1", "yes", "auto", "full")


def quantization(c: Conversion) -> None:
    """Four bits with their type, eight, or the base in full precision; by TRL's names or those of PEFT's example."""
    names = ("load_in_4bit", "load_in_8bit", "use_4bit_quantization", "use_8bit_quantization", "bnb_4bit_quant_type")
    four = c.truth("load_in_4bit") or c.truth("use_4bit_quantization")
    eight = c.truth("load_in_8bit") or c.truth("use_8bit_quantization")
    kind = str(c.get("bnb_4bit_quant_type", "nf4")).upper()
    value = (kind if kind in ("NF4", "FP4") else "NF4") if four else "INT8" if eight else "None"
    c.set("quantization", value, *names)
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
    steps = c.get("max_steps")
    if steps is not None and int(float(str(steps))) > 0:
        c.set("training.maxSteps", int(float(str(steps))), "max_steps")
        c.leave(epochs, "max_steps decides the length")
    else:
        c.decimal(epochs, "training.epochs", default)


def batch(c: Conversion, micro: str, gpus: int | None, *, default: int) -> None:
    """What is computed at a time, on all GPUs, before the weights move. `gpus` is what --gpus says, if it does."""
    size = int(c.get(micro, default))
    # Axolotl takes the number for one GPU instead of the steps.
    accumulation = int(c.get("gradient_accumulation_steps", max(1, int(c.get("batch_size", size)) // size)))
    names = (micro, "gradient_accumulation_steps", "batch_size")
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
    return "", 0


def warmup(c: Conversion) -> None:
    """A share of the steps; so many steps, which win, are one only where their number is known."""
    steps, most = float(str(c.get("warmup_steps", 0))), c.fields.get("training.maxSteps")
    if steps <= 0:
        ratio = decimal_text(c.get("warmup_ratio", 0))
        if ratio is None:
            c.leave("warmup_ratio", "is not a number")
        else:
            c.set("training.warmupRatio", ratio, "warmup_ratio", "warmup_steps")
        return
    c.leave("warmup_ratio", "warmup_steps decides")
    if steps < 1:
        c.set("training.warmupRatio", decimal_text(steps), "warmup_steps")
    elif most:
        c.set("training.warmupRatio", decimal_text(round(min(1.0, int(steps) / most), 6)), "warmup_steps")
    else:
        c.leave("warmup_steps", "is a share here, training.warmupRatio: divide it by the number of steps")


def checkpointing(c: Conversion, name: str = "gradient_checkpointing") -> None:
    """Activations computed anew, or not; where nothing is said, the plan decides here."""
    if c.get(name) is not None:
        c.set("training.activationCheckpointing", "Full" if c.truth(name) else "None", name)
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
    if float(str(c.get(name, 0))) < 1:
        c.decimal(name, "dataset.validationFraction", 0)
    else:
        c.leave(name, "is a number of rows: dataset.validationFraction is their share, maxValidationRows the most")


def packing(c: Conversion, name: str) -> None:
    """Rows one after the other; here they never see each other, and a batch counts them rather than what holds them."""
    if c.get(name) is None:
        return
    c.set("training.packing", (Packing.ENABLED if c.truth(name) else Packing.DISABLED).value, name)
    if c.truth(name):
        size = c.fields["training.effectiveBatchSize"]
        c.to_fill.append(
            f"training.effectiveBatchSize: with {name}, {c.tool} counts packs, {size} a step, of up to "
            f"{c.fields['training.maxSequenceLength']} tokens; here it is rows: multiply it by the rows of a pack"
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


def validation(c: Conversion, name: str, value: object, *fractions: str) -> None:
    """A data set of held-out rows, which takes the place of a share of the others."""
    for fraction in fractions:
        c.leave(fraction, f"{name} says what is held out")
    c.mapped[:] = [pair for pair in c.mapped if pair[1] != "dataset.validationFraction"]
    c.fields.pop("dataset.validationFraction", None)
    dataset(c, name, value, "dataset.validationUri")


def model(c: Conversion, name: str) -> None:
    """A name on the Hub; a folder has to come onto a claim first."""
    value = str(c.get(name, ""))
    revisions = ("model_revision", "revision_of_model", "revision")
    revision = next((c.get(one) for one in revisions if c.get(one)), None)
    if on_the_hub(value):
        ending = f"@{revision}" if revision and revision != "main" else ""
        c.set("model.uri", f"hf://{value}{ending}", name, *revisions)
        return
    c.fields["model.uri"] = MISSING_MODEL
    c.to_fill.append(
        f"model.uri: {name} is {value}, which is not a name on the Hub: copy it to a claim, pvc://claim/path"
        if value
        else f"model.uri: {name} is missing: write the model's address"
    )


def dataset(c: Conversion, name: str, value: object, path: str = "dataset.uri") -> None:
    """A name on the Hub; a file has to come to where pods see it."""
    text = str(value or "")
    if is_file(text) and "://" not in text:
        wanted = f"the file {text}: copy it to a claim, pvc://claim/path, or into a ConfigMap, configmap://name/key"
    elif on_the_hub(text):
        c.fields[path] = f"hf://{text}"
        c.mapped.append((name, path))
        return
    else:
        wanted = f"{text}, which is not a name on the Hub" if text else "missing"
        wanted += ": write hf://, s3://, pvc://claim/path or configmap://name/key"
    c.fields[path] = MISSING_DATASET
    c.to_fill.append(f"{path}: {name} is {wanted}")


def on_the_hub(name: str) -> bool:
    """Whether a name is organisation/repository rather than a path."""
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~")) and "." not in parts[0]


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


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
