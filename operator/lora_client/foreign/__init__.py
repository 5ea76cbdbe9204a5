"""Configurations of other tools as LoRAFineTunes: what maps, what does not and why. Pure: text in, plain values out."""
