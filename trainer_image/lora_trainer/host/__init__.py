"""The processes around a run: the supervisor, its stages, what they tell and log."""
