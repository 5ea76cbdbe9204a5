"""Options of the other tools that no field replaces: what they set is decided elsewhere here, or not offered."""

from collections.abc import Mapping

OWN = "is decided here"
PLACE = "output.uri says where the result goes"
SCALE = "how several GPUs share the work is decided here, by resources.gpus and nodes"
LAUNCHED = (
    "lora convert --gpus says on how many GPUs of a node the tool was started; for several nodes, set resources.nodes "
    "and multiply training.effectiveBatchSize by it"
)
LOG = "every step is recorded here"
SAVES = "checkpoint.intervalSteps counts steps, and intervalSeconds the time between two"
SPEED = "fast paths are taken here where they prove themselves on the device"
HUB = "output.uri: hf://organisation/name publishes there"
ALWAYS = "is always so here"
UNSAFE = "code of a model's repository is never run here"
ABSENT = "is not offered"
FORMAT = "training.kernels and the plan decide this here"
TEMPLATE = "the model's own chat template is used; dataset.chatTemplate names another"
NO_FIELD: Mapping[str, str] = {
    "output_dir": PLACE,
    "overwrite_output_dir": PLACE,
    "hub_model_id": HUB,
    "push_to_hub": HUB,
    "hub_strategy": HUB,
    "logging_steps": LOG,
    "logging_strategy": LOG,
    "logging_first_step": LOG,
    "plot_loss": "curves are always drawn here",
    "save_steps": SAVES,
    "save_strategy": SAVES,
    "saves_per_epoch": SAVES,
    "save_only_model": SAVES,
    "save_safetensors": ALWAYS,
    "deepspeed": SCALE,
    "fsdp": SCALE,
    "fsdp_config": SCALE,
    "ddp_timeout": SCALE,
    "ddp_find_unused_parameters": SCALE,
    "dataloader_num_workers": OWN,
    "dataset_num_proc": OWN,
    "preprocessing_num_workers": OWN,
    "per_device_eval_batch_size": OWN,
    "eval_batch_size": OWN,
    "group_by_length": "rows are packed here",
    "tf32": OWN,
    "attn_implementation": SPEED,
    "use_flash_attention_2": SPEED,
    "flash_attn": SPEED,
    "flash_attention": SPEED,
    "xformers_attention": SPEED,
    "sdp_attention": SPEED,
    "use_liger_kernel": SPEED,
    "enable_liger_kernel": SPEED,
    "use_unsloth": SPEED,
    "torch_compile": SPEED,
    "torch_dtype": "training.precision decides in what is computed",
    "dtype": "training.precision decides in what is computed",
    "trust_remote_code": UNSAFE,
    "resume_from_checkpoint": "a run resumes automatically; resumeFrom continues from another one",
    "auto_resume_from_checkpoints": "a run resumes automatically",
    "run_name": "metadata.name is the run's name",
    "remove_unused_columns": ALWAYS,
    "do_train": ALWAYS,
    "do_eval": "held-out rows are always evaluated here",
    "neftune_noise_alpha": "noise on embeddings is not offered",
    "adam_beta1": "the betas of Adam are 0.9 and 0.999",
    "adam_beta2": "the betas of Adam are 0.9 and 0.999",
    "adam_epsilon": "the epsilon of Adam is 1e-8",
    "lr_scheduler_kwargs": "the schedules have no further options",
    "loraplus_lr_ratio": "LoRA+ is not offered",
    "use_cache": ALWAYS,
    **dict.fromkeys(("num_processes", "nproc_per_node", "num_gpus"), LAUNCHED),
    **dict.fromkeys(("num_machines", "nnodes", "num_nodes"), LAUNCHED),
    **dict.fromkeys(("accelerate_config", "config_file", "use_deepspeed", "deepspeed_config_file", "use_fsdp"), SCALE),
    **dict.fromkeys(("main_process_ip", "main_process_port", "machine_rank", "multi_gpu", "rdzv_backend"), SCALE),
    **dict.fromkeys(("master_addr", "master_port", "node_rank", "rdzv_endpoint", "rdzv_id", "standalone"), SCALE),
    **dict.fromkeys(("launcher", "accelerate", "no_accelerate"), SCALE),
    "hub_private_repo": HUB,
    "log_level": LOG,
    "save_first_step": SAVES,
    "dataset_processes": OWN,
    "dataset_streaming": OWN,
    "s2_attention": SPEED,
    "flex_attention": SPEED,
    "use_flash_attn": SPEED,
    "use_reentrant": "how activations are recomputed is decided here",
    "eval_table_size": "held-out rows are scored by their loss alone",
    "eval_table_max_new_tokens": "held-out rows are scored by their loss alone",
    "eval_max_new_tokens": "held-out rows are scored by their loss alone",
    "strict": ALWAYS,
    "debug": OWN,
    "local_rank": SCALE,
    "metric_for_best_model": "the lowest held-out loss is the best",
    "load_best_model_at_end": "earlyStoppingPatience takes the best",
    "inference_mode": OWN,
    "fan_in_fan_out": OWN,
    "peft_version": OWN,
    "auto_mapping": OWN,
    "ensure_weight_tying": OWN,
    "megatron_core": SCALE,
    "megatron_config": SCALE,
    "layers_pattern": "layers are counted in the model's own list of them",
    "peft_layers_pattern": "layers are counted in the model's own list of them",
    "lora_bias": "biases are not trained",
    "layer_replication": ABSENT,
    "loftq_config": ABSENT,
    "eva_config": ABSENT,
    "corda_config": ABSENT,
    "arrow_config": ABSENT,
    "use_qalora": ABSENT,
    "qalora_group_size": ABSENT,
    "alora_invocation_tokens": ABSENT,
    "trainable_token_indices": ABSENT,
}
"""For any of the tools: the reason that is given."""
