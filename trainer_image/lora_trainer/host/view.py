"""From what the stages of a run report to the one line that a person wants to see of it now."""

from collections.abc import Mapping

from lora_trainer.distributed.activity import Activity
from lora_trainer.distributed.logs import duration
from lora_trainer.distributed.reports import Report
from lora_trainer.host.screen import Line
from lora_trainer.spec.progress import Phase, Progress

_STAGES: Mapping[str, str] = {
    "prepare": "Fetching model and data",
    "train": "Starting the training",
    "verify": "Verifying",
    "merge": "Merging",
    "publish": "Publishing",
    "fetch": "Fetching the result",
}
_PHASES: Mapping[Phase, str] = {
    Phase.STARTING: "Starting the training",
    Phase.PREPARING: "Fetching model and data",
    Phase.LOADING_MODEL: "Loading the model",
    Phase.TRAINING: "Training",
    Phase.CHECKPOINTING: "Saving a checkpoint",
    Phase.EVALUATING: "Evaluating",
    Phase.PUBLISHING: "Writing the result",
}
_NAMED = ("verify", "merge")
"""Stages that read and evaluate rows as the training does, and are to be told from it."""


class View:
    """What is shown of a run. This one shows nothing beside the log."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def take(self, report: Report) -> None:
        """A stage has reported."""


class LiveView(View):
    """`line` follows what it takes; None before it took anything."""

    def __init__(self) -> None:
        self.line: Line | None = None
        self._stage = ""
        self._phase: Phase | None = None

    def stage(self, name: str) -> None:
        """See `View`."""
        self._stage, self._phase = name, None
        self.line = Line(what=_STAGES[name])

    def take(self, report: Report) -> None:
        """See `View`."""
        if report.activity is not None:
            self.hear(report.activity)
        elif report.dataset is not None:
            # What comes behind the rows.
            self.line = Line(what=_PHASES[Phase.LOADING_MODEL])
        elif report.progress is not None:
            self._follow(report.progress)

    def hear(self, activity: Activity) -> None:
        """This process itself, or a stage, is at work."""
        what = activity.what
        what = f"{_STAGES[self._stage]}: {what}" if self._stage in _NAMED else what[:1].upper() + what[1:]
        self.line = Line(what=what, done=activity.done, total=activity.total)

    def _follow(self, progress: Progress) -> None:
        begins = progress.phase is not self._phase
        self._phase = progress.phase
        if progress.phase is Phase.TRAINING and progress.total_steps is not None:
            what = _PHASES[Phase.TRAINING]
            self.line = Line(what=what, done=progress.step, total=progress.total_steps, facts=_facts(progress))
        elif begins:
            # A sign of life within a phase does not replace what is known of it.
            self.line = Line(what=_PHASES[progress.phase])


def _facts(progress: Progress) -> str:
    loss, left, speed = progress.loss, progress.estimated_remaining_seconds, progress.tokens_per_second
    facts = (
        None if loss is None else f"loss {loss:.4f}",
        None if left is None else f"{duration(left)} left",
        None if speed is None else f"{speed:.0f} tokens/s",
    )
    return ", ".join(fact for fact in facts if fact is not None)
