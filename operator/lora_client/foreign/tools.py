"""The options of TRL's scripts, of Axolotl and of LLaMA-Factory, each by a table of its own.

The names and defaults are those of their sources: trl/trainer/sft_config.py and model_config.py, and Transformers'
TrainingArguments below; PEFT's LoraConfig and examples/sft/train.py; src/axolotl/utils/schemas and
src/axolotl/core/builders/base.py; src/llamafactory/hparams.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lora_client.foreign import adapted, addresses, tracking
from lora_client.foreign import mapping as m
from lora_client.foreign.elsewhere import ALWAYS, FORMAT, HUB, NO_FIELD, OWN, PLACE, SPEED, TEMPLATE
from lora_client.foreign.mapping import Conversion
from lora_client.views.words import known

_OF_PEFT = frozenset({"peft_type", "r", "target_modules"})
"""Options of scripts that use PEFT's LoraConfig without TRL's switch for it."""
_MODEL_CONFIG: Mapping[str, Any] = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
_LORA_CONFIG: Mapping[str, Any] = {"lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0}
_PEFT_EXAMPLE: Mapping[str, Any] = {
    "lora_r": 64,
    "lora_alpha": 16,
    "lora_dropout": 0.1,
    "lora_target_modules": "q_proj,k_proj,v_proj,o_proj,down_proj,up_proj,gate_proj",
}


def trl(c: Conversion, gpus: int | None) -> None:
    """TRL's `trl sft` and scripts with `SFTConfig`, `ModelConfig` and PEFT's `LoraConfig`."""
    base = "base_model_name_or_path"
    addresses.model(c, base if base in c.options and "model_name_or_path" not in c.options else "model_name_or_path")
    addresses.dataset(c, "dataset_name", c.get("dataset_name"))
    if c.get("dataset_train_split", "train") != "train":
        c.set("dataset.split", str(c.get("dataset_train_split")), "dataset_train_split")
    by_peft = bool(_OF_PEFT & c.options.keys())
    silent = _PEFT_EXAMPLE if c.truth("use_peft_lora") else _LORA_CONFIG if by_peft else _MODEL_CONFIG
    c.number("lora_r" if "lora_r" in c.options else "r", "lora.rank", silent["lora_r"])
    c.number("lora_alpha", "lora.alpha", silent["lora_alpha"])
    c.decimal("lora_dropout", "lora.dropout", silent["lora_dropout"])
    adapts = c.truth("use_peft") or c.truth("use_peft_lora") or by_peft
    _full(c, "use_peft", adapts)
    if str(c.get("peft_type", "LORA")).upper() != "LORA":
        c.leave("peft_type", "LoRA is what is trained")
    _trl_targets(c, adapts, silent)
    adapted.modules(c, _prefixed(c, "modules_to_save"), "lora.modulesToSave")
    adapted.modules(c, "exclude_modules", "lora.excludeModules")
    adapted.layers(c, "layers_to_transform")
    adapted.patterns(c)
    adapted.modules(c, _prefixed(c, "target_parameters"), "lora.targetParameters")
    m.variants(c, "use_dora", "use_rslora")
    _init(c, "init_lora_weights")
    m.quantization(c)
    _trl_held_out(c)
    if c.get("dataset_text_field", "text") != "text":
        c.set("dataset.columns", {"text": str(c.get("dataset_text_field"))}, "dataset_text_field")
    lengths = ("max_length", "max_seq_length", "max_seq_len")
    given = next((name for name in lengths if name in c.options), "")
    if given and c.options[given] is None:
        c.to_fill.append(f"training.maxSequenceLength: {given} is null, no limit: write the tokens of the longest row")
        given = ""
    _trainer(c, gpus, max_length=given or lengths[0], length=1024, rate=2e-5)
    m.packing(c, "packing")
    m.only_loss(c, "assistant_only_loss", "completion_only_loss")
    if "training.lossOn" not in c.fields:
        why = "TRL then learns whole conversations, as training.lossOn: All does, and of pairs the completions alone"
        c.unsaid("assistant_only_loss", why)
    tracking.report(c)
    if adapts:
        c.leave("use_peft", ALWAYS)
        c.leave("use_peft_lora", ALWAYS)
    for name, why in (
        ("lora_task_type", "causal language models are what is trained"),
        ("task_type", "causal language models are what is trained"),
        ("bias", "biases are not trained"),
        ("dataset_config", "subsets of a data set on the Hub cannot be chosen"),
        ("datasets", "a run has one data set, which dataset.uri names"),
        ("dataset_kwargs", OWN),
        ("eos_token", "the model's own template says where an answer ends"),
        ("pad_token", OWN),
        ("padding_free", "rows are packed here"),
        ("packing_strategy", "rows are packed whole here"),
        ("chat_template_path", "copy the file into a ConfigMap, dataset.chatTemplate: configmap://name/key"),
        ("chat_template_format", TEMPLATE),
        ("add_special_tokens", OWN),
        ("append_concat_token", OWN),
        ("splits", "dataset.split names the rows to learn, dataset.validationUri those that are held out"),
        ("eval_packing", OWN),
    ):
        c.leave(name, why)


def _trl_held_out(c: Conversion) -> None:
    on_the_hub = addresses.address(c.get("dataset_name")).startswith("hf://")
    if str(c.get("eval_strategy", c.get("evaluation_strategy", "no"))).lower() in ("no", "false"):
        c.set("dataset.validationFraction", "0", "eval_strategy", "evaluation_strategy")
        c.leave("dataset_test_split", "no rows are held out")
    elif c.get("dataset_test_split") in ("test", "validation") and on_the_hub:
        addresses.validation(c, "dataset_test_split", c.get("dataset_name"))
    else:
        why = "some rows of dataset.uri are held out; dataset.validationUri names others, of a split test or validation"
        c.leave("dataset_test_split", why)


def _prefixed(c: Conversion, name: str) -> str:
    """TRL's name of an option, else PEFT's."""
    return f"lora_{name}" if f"lora_{name}" in c.options else name


def _trl_targets(c: Conversion, adapts: bool, silent: Mapping[str, Any]) -> None:
    names = ("lora_target_modules", "target_modules")
    given = next((name for name in names if c.get(name) is not None), "")
    if given:
        adapted.targets(c, given)
    elif names[0] in silent:
        c.set("lora.targetModules", silent[names[0]].split(","))
    elif adapts:
        c.set("lora.layers", "QueryValue")
        c.unsaid(names[0], "QueryValue is PEFT's default for Llama, Mistral and Qwen2; some other models have another")


def _full(c: Conversion, name: str, adapts: bool) -> None:
    """Full fine-tuning, which nothing here is."""
    why = "this is full fine-tuning, and becomes LoRA here: check training.learningRate and lora.rank"
    if adapts:
        return
    if c.get(name) is None:
        c.unsaid(name, why)
    else:
        c.leave(name, why)


_KINDS = ("falcon", "llama", "mistral", "qwen")


def axolotl(c: Conversion, gpus: int | None) -> None:
    """Axolotl's YAML."""
    addresses.model(c, "base_model")
    _axolotl_data(c)
    c.number("lora_r", "lora.rank")
    c.number("lora_alpha", "lora.alpha")
    c.decimal("lora_dropout", "lora.dropout", 0.0)
    everything = c.truth("lora_target_linear")
    adapted.targets(c, "lora_target_modules", everything="lora_target_linear" if everything else "")
    if everything:
        c.leave("lora_target_modules", "lora_target_linear takes all")
    elif c.get("lora_target_modules") is None:
        c.unsaid("lora_target_modules", "Axolotl has no default: lora.layers has its own")
    adapted.modules(c, "lora_modules_to_save", "lora.modulesToSave")
    adapted.modules(c, "lora_target_parameters", "lora.targetParameters")
    adapted.layers(c, "peft_layers_to_transform")
    m.variants(c, "peft_use_dora", "peft_use_rslora")
    _init(c, "peft_init_lora_weights")
    m.quantization(c, *(["adapter"] if c.get("adapter") == "qlora" else []))
    _full(c, "adapter", c.get("adapter") in ("lora", "qlora"))
    m.length(c, "num_epochs", default=1)
    c.choice("optimizer", "training.optimizer", "adamw_torch_fused")
    c.choice("lr_scheduler", "training.schedule", "cosine")
    c.decimal("learning_rate", "training.learningRate")
    for name, path in (
        ("lora_r", "lora.rank"),
        ("lora_alpha", "lora.alpha"),
        ("learning_rate", "training.learningRate"),
    ):
        if c.get(name) is None:
            c.unsaid(name, f"Axolotl has no default: {path} has its own")
    m.batch(c, "micro_batch_size", gpus, default=1, per_gpu="batch_size")
    m.warmup(c) if {"warmup_steps", "warmup_ratio"} & c.options.keys() else None
    c.number("sequence_len", "training.maxSequenceLength", 512)
    m.packing(c, "sample_packing")
    m.loss_on(c, "train_on_inputs")
    m.held_out(c, "val_set_size")
    _axolotl_held_out(c)
    m.chat_template(c, "chat_template")
    _common(c)
    tracking.wandb(c)
    tracking.mlflow(c)
    for name, why in (
        ("model_type", "the kind of model is read from its configuration"),
        ("tokenizer_type", "the tokenizer is read from its configuration"),
        *((f"is_{kind}_derived_model", "the kind of model is read from its configuration") for kind in _KINDS),
        ("base_model_config", "the kind of model is read from its configuration"),
        ("special_tokens", "the tokenizer's own tokens are used"),
        ("tokens", "no tokens are added"),
        ("dataset_prepared_path", "encoded rows are kept beside the checkpoints"),
        ("lora_fan_in_fan_out", OWN),
        ("pad_to_sequence_len", "rows are packed here"),
        ("eval_sample_packing", OWN),
        ("evals_per_epoch", "training.evalSteps says how often"),
        ("lora_model_dir", "resumeFrom continues from another run"),
        ("lora_mlp_kernel", SPEED),
        ("lora_qkv_kernel", SPEED),
        ("lora_o_kernel", SPEED),
        ("loss_watchdog_threshold", "a loss that diverges always ends the run"),
        ("loss_watchdog_patience", "a loss that diverges always ends the run"),
        ("plugins", "there are none"),
        ("wandb_entity", "the key in tracking.secretRef decides"),
        ("wandb_watch", OWN),
        ("wandb_name", "metadata.name is the run's name"),
        ("wandb_run_id", "metadata.name is the run's name"),
        ("wandb_log_model", PLACE),
        ("mlflow_tracking_uri", "the operator's configuration has the server's address"),
        ("mlflow_run_name", "metadata.name is the run's name"),
        ("hf_mlflow_log_artifacts", PLACE),
    ):
        c.leave(name, why)


def _axolotl_data(c: Conversion) -> None:
    entries = c.get("datasets") or [{}]
    first, *others = entries if isinstance(entries, list) else [{}]
    addresses.dataset(c, "datasets[0].path", first.get("path"))
    if first.get("split", "train") != "train":
        c.set("dataset.split", str(first["split"]), "datasets")
    kind = first.get("type")
    if isinstance(kind, str):
        ours = known("spec.dataset.format", kind.partition(".")[0].partition(":")[0])
        if ours:
            c.set("dataset.format", ours, "datasets")
        else:
            c.left.append(("datasets[0].type", kind, "the columns decide; dataset.format and columns name them"))
    elif kind is not None:
        c.left.append(
            ("datasets[0].type", "a prompt of its own", "dataset.columns and chatTemplate name columns and form")
        )
    if first.get("field_messages", "messages") != "messages":
        c.set("dataset.columns", {"messages": str(first["field_messages"])}, "datasets")
    for key in first.keys() - {"path", "split", "type", "field_messages"}:
        c.left.append((f"datasets[0].{key}", str(first[key])[:60], "rows are read by dataset.format and columns"))
    for number, other in enumerate(others, 1):
        c.left.append((f"datasets[{number}]", str(other.get("path")), "a run has one data set: join them beforehand"))
    c.leave("shuffle_merged_datasets", "rows are always shuffled, by training.seed")


def _axolotl_held_out(c: Conversion) -> None:
    entries = c.get("test_datasets")
    if not isinstance(entries, list) or not entries:
        return
    first, *others = entries
    addresses.validation(c, "test_datasets[0].path", first.get("path"), "val_set_size")
    for key in first.keys() - {"path"}:
        if key != "split" or first[key] not in ("test", "validation"):
            c.left.append((f"test_datasets[0].{key}", str(first[key])[:60], "held-out rows are read as the others are"))
    for number, other in enumerate(others, 1):
        c.left.append((f"test_datasets[{number}]", str(other.get("path")), "dataset.validationUri is one data set"))


def llama_factory(c: Conversion, gpus: int | None) -> None:
    """LLaMA-Factory's YAML."""
    addresses.model(c, "model_name_or_path")
    addresses.dataset(c, "dataset", c.get("dataset"))
    c.number("lora_rank", "lora.rank", 8)
    c.number("lora_alpha", "lora.alpha", 2 * int(c.fields.get("lora.rank", 8)))
    c.decimal("lora_dropout", "lora.dropout", 0.0)
    c.get("lora_target")
    adapted.targets(c, "lora_target", everything="" if "lora_target" in c.options else "lora_target")
    adapted.modules(c, "additional_target", "lora.modulesToSave")
    m.variants(c, "use_dora", "use_rslora")
    if c.truth("pissa_init"):
        c.set("lora.init", "PiSSA", "pissa_init")
    bits = str(c.get("quantization_bit", ""))
    c.set("quantization", {"4": "NF4", "8": "INT8"}.get(bits, "None"), "quantization_bit")
    if str(c.get("quantization_type", "nf4")).lower() == "fp4" and bits == "4":
        c.set("quantization", "FP4", "quantization_type")
    if bits not in ("", "4", "8"):
        c.leave("quantization_bit", "a base is stored in 4 or 8 bits, or as it is")
    if c.get("quantization_method", "bnb") not in ("bnb", "bitsandbytes"):
        c.leave("quantization_method", "bitsandbytes is what quantizes")
    m.held_out(c, "val_size")
    if c.get("eval_dataset"):
        addresses.validation(c, "eval_dataset", c.get("eval_dataset"), "val_size")
    m.chat_template(c, "template")
    _trainer(c, gpus, max_length="cutoff_len", length=2048, rate=5e-5)
    m.packing(c, "neat_packing" if c.truth("neat_packing") or "packing" not in c.options else "packing")
    m.loss_on(c, "train_on_prompt")
    if c.truth("disable_gradient_checkpointing"):
        c.set("training.activationCheckpointing", "None", "disable_gradient_checkpointing")
    tracking.report(c)
    c.get("stage")
    if c.get("finetuning_type", "lora") != "lora":
        c.leave("finetuning_type", "lora is what is trained")
    for name, why in (
        ("max_samples", "all rows are trained on: shorten the data set, or set training.maxSteps"),
        ("dataset_dir", "dataset.uri is an address"),
        ("overwrite_cache", OWN),
        ("tokenized_path", "encoded rows are kept beside the checkpoints"),
        ("mask_history", "training.lossOn says what is learned"),
        ("double_quantization", "four bits are always doubly quantized here"),
        ("pissa_iter", "the main directions are computed exactly"),
        ("pissa_convert", "the result is always a plain adapter"),
        ("create_new_adapter", "resumeFrom continues from another run"),
        ("adapter_name_or_path", "resumeFrom continues from another run"),
        ("packing", "neat_packing decides"),
        ("neat_packing", "packed rows never see each other here"),
        ("upcast_layernorm", FORMAT),
        ("pure_bf16", FORMAT),
        ("use_unsloth_gc", FORMAT),
        ("use_reentrant_gc", FORMAT),
        ("use_llama_pro", "LLaMA Pro is not offered"),
        ("use_galore", "GaLore is not offered"),
        ("use_badam", "BAdam is not offered"),
    ):
        if name not in c.seen:
            c.leave(name, why)


def _trainer(c: Conversion, gpus: int | None, *, max_length: str, length: int, rate: float) -> None:
    """Options of the TrainingArguments of Transformers, on which TRL and LLaMA-Factory rest."""
    m.length(c, "num_train_epochs", default=3)
    c.choice("optim", "training.optimizer", "adamw_torch_fused")
    c.choice("lr_scheduler_type", "training.schedule", "linear")
    c.decimal("learning_rate", "training.learningRate", rate)
    m.batch(c, "per_device_train_batch_size", gpus, default=8)
    m.warmup(c)
    c.number(max_length, "training.maxSequenceLength", length)
    _common(c)


def _common(c: Conversion) -> None:
    c.decimal("weight_decay", "training.weightDecay", 0.0)
    if c.amount("max_grad_norm", "training.maxGradNorm", 1.0) > 0:
        c.decimal("max_grad_norm", "training.maxGradNorm", 1.0)
    else:
        # Which switches clipping off there; here the largest norm that there is does.
        c.set("training.maxGradNorm", "1000", "max_grad_norm")
    c.number("seed", "training.seed", 42)
    m.precision(c)
    m.checkpointing(c)
    held_out = c.fields.get("dataset.validationFraction") != "0"
    if not held_out:
        c.leave("eval_steps", "no rows are held out")
    elif c.amount("eval_steps", "training.evalSteps", 0) >= 1:
        c.number("eval_steps", "training.evalSteps")
    else:
        c.leave("eval_steps", "training.evalSteps counts steps")
    c.leave("eval_strategy", "training.evalSteps says how often")
    c.leave("evaluation_strategy", "training.evalSteps says how often")
    if "training.evalSteps" in c.fields:
        c.number("early_stopping_patience", "training.earlyStoppingPatience")
    else:
        c.leave("early_stopping_patience", "needs training.evalSteps, and rows that are held out")
    m.saving(c)
    published = addresses.address(c.get("hub_model_id"))
    c.leave("hub_model_id", f"output.uri: {published} publishes there" if published else HUB)


def _init(c: Conversion, name: str) -> None:
    value = c.get(name)
    if value is not None and str(value).lower() not in ("true", "default"):
        c.choice(name, "lora.init")


def rest(c: Conversion) -> None:
    """What no rule has read, known to be decided elsewhere or unknown here, and what a rule has read for nothing."""
    said = _names([*(name for name, _, _ in c.left), *c.to_fill])
    fields = {name: field for names, field in c.mapped for name in _names([names])}
    for name, value in c.options.items():
        if name not in c.seen:
            c.leave(name, NO_FIELD.get(name, f"this release knows no such option of {c.tool}"))
        elif name not in said and m.variable(value):
            c.ask(fields.get(name, "spec"), name, "")
        elif name not in said and name not in fields:
            c.leave(name, "needs no field: it is so here, or changes nothing")


def _names(texts: Iterable[str]) -> frozenset[str]:
    """The options in them, each without what is in its brackets."""
    return frozenset(name.partition("[")[0] for text in texts for name in text.replace(",", " ").split())


Tool = Callable[[Conversion, int | None], None]
TOOLS: Mapping[str, tuple[str, Tool]] = {
    "trl": ("PEFT and TRL", trl),
    "axolotl": ("Axolotl", axolotl),
    "llama-factory": ("LLaMA-Factory", llama_factory),
}


def recognised(options: Mapping[str, Any]) -> str:
    """The tool whose options these are."""
    if "base_model" in options:
        return "axolotl"
    if options.keys() & {"finetuning_type", "lora_rank", "lora_target", "cutoff_len"}:
        return "llama-factory"
    return "trl"
