"""What a run takes, before a GPU is asked for: pure functions of the standard library, over the contract alone.

shapes      a base model by its configuration: layers, linear modules, experts, embeddings
families    from `config.json` to a shape, and all else that is known of a family by its name
adapter     which modules a run adapts, with which ranks, and how many parameters these have
memory      bytes by part at the peak of the training, of the merge, and on a claim
speed       floating-point operations, and seconds at a share of a device's peak
choice      quantization and recomputation: what fits, and the fastest of it
planning    the plan of a run on its device, and all other settings there
remedies    what would make a run fit that does not
hints       what would make a run, or the next one, go better: the table (docs/states.md explains it)
hint_checks what is known of a run, and whether a rule of the table holds
answer      all of a plan that `lora-trainer plan` shows
show        the same as tables, JSON and YAML
limits      the constants that trainer and estimate share

GPUs by name are in `contract.gpus`, since a manifest is read by them.
"""
