"""The stages of a run, a file each; `order.py` has the list."""
