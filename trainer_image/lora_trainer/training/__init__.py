"""The optimizer steps, what watches over them, and what survives them."""
