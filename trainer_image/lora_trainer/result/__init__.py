"""What a run leaves: the adapter, its card and curves, merged models, and their verification."""
