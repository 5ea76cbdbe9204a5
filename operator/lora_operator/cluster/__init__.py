"""The API server, Kueue and the training pods: requests, and what the operator remembers of their answers."""
