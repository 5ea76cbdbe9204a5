"""The trainer: one run from base model and data set to a verified LoRA adapter."""
