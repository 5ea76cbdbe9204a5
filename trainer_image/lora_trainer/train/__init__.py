"""A training: its session, its steps, what watches over them, and what survives them."""
