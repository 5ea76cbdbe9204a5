"""Where models, data and results lie, here and elsewhere, and the form of what a run leaves there.

What has the files' form in it (`sealed`, `manifest`, `tensor_files`, the records) is the standard library's alone:
the supervisor publishes without loading PyTorch.
"""
