"""The verbs of the client: each reads or changes the cluster and prints."""
