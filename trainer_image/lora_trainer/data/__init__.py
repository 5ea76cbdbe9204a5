"""Files to rows to samples to token ids."""
