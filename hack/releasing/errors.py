"""The one exception of this package that is meant for a person's eyes."""

from localcluster.errors import ClusterError


class ReleaseError(ClusterError):
    """One sentence: what is wrong with the release, and what to do."""
