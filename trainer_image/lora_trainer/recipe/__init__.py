"""A run, top-down: what is found out before it (`preflight`), its inputs (`inputs`), the training (`run`)."""
