"""A run, top-down: its inputs into the cache (`prepare`), then the training (`train`)."""
