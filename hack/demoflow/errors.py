"""The demo's own failure."""


class DemoError(Exception):
    """One sentence for the person at the terminal: what failed, why, and what to do."""
