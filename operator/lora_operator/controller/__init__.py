"""The process: watches, the queue and its workers, leadership, logs, metrics and the command that explains a run."""
