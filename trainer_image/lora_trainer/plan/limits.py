"""Constants of the trainer that an estimate has to know: both take them from here."""

TOKEN_BUDGET = 4096
"""Most tokens of a micro-batch, padding included, where `training.microBatchSize` is absent and no plan says what fits
the GPU; and of an evaluation."""

LARGEST_TOKEN_BUDGET = 16384
"""The most that a plan takes where the GPU has room. With more, nothing is gained: on every GPU that is known unpacking
4-bit weights takes less than a hundredth of the time by then, and reading 16-bit ones none."""

CPU_TOKEN_BUDGET = 768
"""The same on a CPU, which is as fast with fewer: its caches hold the activations, and memory is saved."""

MOST_LOGITS = {"cpu": 2**23, "cuda": 2**27}
"""How many logits exist at once: on a GPU 512 MiB of them in fp32, on a CPU as many as stay in its last cache."""

CHECKPOINTING_FROM_PARAMETERS = 1_000_000_000
"""From this size on, a GPU of which nothing is known recomputes activations instead of keeping them: up to half
more time, far less memory."""

WEIGHTS_SHARE = 0.75
"""Most of a device's memory that weights may take where no plan fits, or there is none; the rest is for activations,
logits and the adapter's state."""

LARGEST_UNQUANTIZED_SHARE = 0.5
"""Of a quantized model's weights. Experts are not quantized: where they are most of it, the model stays as large."""

FIT_SHARE = 0.9
"""Most of a device's memory that an estimate may take to count as fitting: the allocator's fragments need room."""

CONTEXT_BYTES = 750_000_000
"""CUDA's context, workspaces of cuBLAS and the allocator's rounding, a rule of thumb."""

NCCL_BYTES = 700_000_000
"""Buffers of one of NCCL's communicators: 544 MiB between two A100, 688 MiB between more (NVIDIA/nccl issue 964); by
its maintainers more for faster links, and no more from two nodes on (issue 986). A rule of thumb."""
