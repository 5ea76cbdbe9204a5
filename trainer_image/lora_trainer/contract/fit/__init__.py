"""What a run takes, before a GPU is asked for: pure functions of the standard library.

shape     a base model by its configuration: layers, linear modules, experts, embeddings
families  from `config.json` to a shape
adapter   which modules a run adapts, with which ranks, and how many parameters these have
memory    bytes by part, at the peak of the training
pod       bytes of main memory, the merge included (merging)
speed     floating-point operations, and seconds at a share of a device's peak
devices   GPUs by name, with memory, peak and bandwidth
choice    quantization and recomputation: what fits, and the fastest of it
options   all of these on a device, for a table
by_weights what can be said without the layers
limits    the constants that trainer and estimate share
"""
