"""The result of a run, made and verified: the adapter, its card and curves, merged models."""
