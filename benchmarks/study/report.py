"""What the study found: its tables under benchmarks/results, and the picture of docs/hyperparameters.md."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from benchmarks.study.claims import CLAIMS, Claim, judge
from benchmarks.study.compare import Difference, difference, mean_loss
from benchmarks.study.records import Run, by_setting
from benchmarks.study.rows import Kind
from benchmarks.study.settings import BASE, RATES, SEEDS, SETTINGS, UNTRAINED, Setting

_COLUMNS = (
    *("setting", "trained parameters", "seeds", "loss", "recall", "rule"),
    *("difference from the base, all rows", "recall", "rule"),
)
_KINDS: tuple[Kind | None, ...] = (None, "recall", "rule")


def _recorded(runs: Sequence[Run], settings: Sequence[Setting]) -> int:
    return sum(len(by_setting(runs, setting.name).keys() & set(SEEDS)) for setting in settings)


def render(runs: Sequence[Run]) -> str:
    """How many runs there are, the settings, the claims."""
    wanted = len(SETTINGS) * len(SEEDS)
    done, rates, untrained = (_recorded(runs, group) for group in (SETTINGS, RATES, UNTRAINED))
    counted = f"{done} of {wanted} trainings of the settings are recorded, {rates} at other learning rates"
    return "\n".join(
        (
            "# Hyperparameters: results of the study",
            "",
            f"{counted}, and {untrained} models without training.",
            "Losses are nats a learned token on held-out rows. ± is one standard error; **bold** is a difference of",
            "more than two, over at least two seeds.",
            "",
            f"| {' | '.join(_COLUMNS)} |",
            "|---|---|---|---|---|---|---|---|---|",
            *(_row(setting, runs) for setting in (*UNTRAINED, *SETTINGS, *RATES)),
            "",
            "| claim | rows | difference | the study |",
            "|---|---|---|---|",
            *(_claim(claim, runs) for claim in CLAIMS),
            "",
        )
    )


def _row(setting: Setting, runs: Sequence[Run]) -> str:
    own = by_setting(runs, setting.name)
    if not own:
        return f"| {setting.title} | | 0 | | | | not run | | |"
    trained = f"{next(iter(own.values())).trainable_parameters:,}" if setting.epochs else "0"
    losses = [f"{mean_loss(own, kind):.3f}" for kind in _KINDS]
    compared = setting.name != BASE.name and bool(setting.epochs)
    against = [_signed(difference(runs, setting.name, BASE.name, kind) if compared else None) for kind in _KINDS]
    return f"| {setting.title} | {trained} | {len(own)} | {' | '.join((*losses, *against))} |"


def _signed(found: Difference | None) -> str:
    if found is None:
        return ""
    text = f"{found.value:+.3f} ± {found.error:.3f}"
    return f"**{text}**" if found.shown else text


def _claim(claim: Claim, runs: Sequence[Run]) -> str:
    verdict, found = judge(claim, runs)
    return f"| {claim.text} | {claim.kind or 'all'} | {_signed(found)} | {verdict.value} |"


def digest(runs: Sequence[Run]) -> str:
    """Of what the plot was drawn from, which stands in it: a plot of other results shows without drawing it again."""
    return hashlib.sha256("".join(run.to_line() for run in runs).encode()).hexdigest()


def draw(file: Path, runs: Sequence[Run]) -> None:
    """A panel for each kind of rows: differences with one and two standard errors, and each seed's."""
    import matplotlib as mpl  # noqa: PLC0415 - takes a second, which the tables do without
    from matplotlib import pyplot as plt  # noqa: PLC0415

    mpl.use("svg")
    shown = [setting for setting in SETTINGS if setting is not BASE and by_setting(runs, setting.name)]
    # Text as text and the same identifiers each time: a small file, whose changes are those of the numbers.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hyperparameters"}):
        figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
        for axes, kind in zip(panels, _KINDS[1:], strict=True):
            for place, setting in enumerate(shown):
                found = difference(runs, setting.name, BASE.name, kind)
                if found is None:
                    continue
                axes.errorbar(found.value, place, xerr=2 * found.error, color="tab:blue", linewidth=1, capsize=3)
                axes.errorbar(found.value, place, xerr=found.error, fmt="o", color="tab:blue", linewidth=3)
                axes.scatter(found.by_seed, [place + 0.25] * len(found.by_seed), s=10, color="gray")
            axes.axvline(0, color="black", linewidth=0.8)
            axes.set_title(f"{kind} rows")
            axes.grid(axis="x", alpha=0.3)
        figure.supxlabel(
            "held-out loss less that of the base, nats a learned token; left is better\n"
            "bars: one and two standard errors, of rows alone where there is one seed; gray: each seed",
            fontsize="medium",
        )
        panels[0].set_yticks(range(len(shown)), [setting.title for setting in shown])
        panels[0].invert_yaxis()
        figure.savefig(file, metadata={"Date": None, "Description": digest(runs)})
        plt.close(figure)
