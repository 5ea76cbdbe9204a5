"""The form of what a run leaves: files and their digests, the manifest, the records of its curve.

Standard library only: the supervisor publishes without loading PyTorch.
"""
