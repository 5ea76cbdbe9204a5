"""The base model in memory, what of it is adapted, and how it computes."""
