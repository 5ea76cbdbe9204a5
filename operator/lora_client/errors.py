"""What the client reports instead of a traceback: one sentence with what to type next."""

FAILED = 1
"""The exit status of every failure, wrong arguments included, as kubectl's."""
INTERRUPTED = 130


class ClientError(Exception):
    """A failure; the text is one sentence, or one for each problem on a line of its own."""
