"""The objects of a run as manifests: pure, the same input gives the same bytes."""
