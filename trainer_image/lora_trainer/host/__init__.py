"""The processes around a run: the supervisor, its stages and its trackers, and the folder that they share."""
