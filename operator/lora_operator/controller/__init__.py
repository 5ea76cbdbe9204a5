"""The process: watches, the queue and its workers, leadership, logs and metrics."""
