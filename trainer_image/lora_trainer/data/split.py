"""Which rows are held out, decided by what they hold: neither order nor number of files plays a part."""

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
"""Hashes of the contents of rows."""


def held_out(keys: Keys, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which rows are held out: `fraction` of them, rounded, drawn by seed and content.

    Rows of equal content go to the same side: a copy of a training row among the held-out rows would flatter. Where the
    last one to be drawn has copies, these come on top. At least one row is left to train on.
    """
    wanted = round(len(keys) * fraction)
    drawn = _mixed(keys, seed)
    ordered = np.sort(drawn)
    ends = ordered[1:] != ordered[:-1]
    if wanted == 0 or not ends.any():
        return np.zeros(len(keys), np.bool_)
    # Where a distinct content ends: the first one with enough rows up to it, else the last but one.
    enough = ends[wanted - 1 :]
    end = wanted - 1 + int(enough.argmax()) if enough.any() else len(ends) - 1 - int(ends[::-1].argmax())
    held: NDArray[np.bool_] = drawn <= ordered[end]
    return held


def at_most(keys: Keys, held: NDArray[np.bool_], most: int, seed: int) -> NDArray[np.bool_]:
    """Those of the rows that are `held` out that stay so where `most` of them may; the others go back to the training.

    In the order in which contents were drawn each one stays whose rows still fit, all copies of it together.
    """
    _, contents, sizes = np.unique(_mixed(keys[held], seed), return_inverse=True, return_counts=True)
    fits, left = np.zeros(len(sizes), np.bool_), most
    for content, size in enumerate(sizes.tolist()):
        if size <= left:
            fits[content], left = True, left - size
        if left == 0:
            break
    kept = np.zeros(len(keys), np.bool_)
    kept[held] = fits[contents]
    return kept


def first_drawn(keys: Keys, most: int, seed: int) -> NDArray[np.bool_]:
    """The first `most` rows of a set that is held out as a whole, by seed and content, copies in their order."""
    chosen = np.zeros(len(keys), np.bool_)
    chosen[np.argsort(_mixed(keys, seed), kind="stable")[:most]] = True
    return chosen


def copies(keys: Keys) -> int:
    """How many rows are copies of another one."""
    ordered = np.sort(keys)
    return int(np.count_nonzero(ordered[1:] == ordered[:-1]))


def among(keys: Keys, others: Keys) -> NDArray[np.bool_]:
    """Which of the rows stand among the others, too."""
    return np.isin(keys, others)


def _mixed(keys: Keys, seed: int) -> Keys:
    """Another hash for every seed: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    mixed = keys + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        # In place: of tens of millions of rows each copy takes hundreds of MiB.
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed
