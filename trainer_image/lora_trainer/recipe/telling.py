"""What a run tells, beside what every training does: advice, where it begins, and curves that go on from there."""

from collections.abc import Callable

from lora_trainer.artifact.curve_records import MetricsFile
from lora_trainer.contract.advice.facts import Facts, LeftAlone
from lora_trainer.contract.summary import ResolvedRun
from lora_trainer.model.device import Device
from lora_trainer.ranks.reports import Reporter
from lora_trainer.recipe.advising import advise_before
from lora_trainer.result.export import versions
from lora_trainer.training.evaluate import Evaluation
from lora_trainer.training.narrator import Narrator
from lora_trainer.training.resume import Saved


class Teller(Narrator):
    """Of a run with these `facts`, which is to `start` at a checkpoint, None for the beginning. Advice is given where
    this process `speaks` for the others."""

    def __init__(
        self,
        reporter: Reporter,
        device: Device,
        curves: MetricsFile,
        peak_share: float | None,
        *,
        facts: Callable[[ResolvedRun, LeftAlone], Facts],
        start: Saved | None,
        held_out_digest: str | None,
        speaks: bool,
    ) -> None:
        super().__init__(reporter, device, curves, peak_share)
        self._facts = facts
        self._start = start
        self._held_out_digest = held_out_digest
        self._speaks = speaks

    def adapted(self, resolved: ResolvedRun, left_alone: LeftAlone) -> None:
        """See `Listener`."""
        advise_before(self._facts(resolved, left_alone), speaks=self._speaks)
        super().adapted(resolved, left_alone)
        self._curves.begin((self._start and self._start.resumed_step) or 0)

    def begins(self, resolved: ResolvedRun, before: Evaluation, *, step: int) -> None:
        """See `Listener`."""
        super().begins(resolved, before, step=step)
        if self._start is not None:
            self._start.log_start()
            self._start.warn_of_changes(resolved, versions(resolved))
            self._start.warn_of_split(self._held_out_digest)
            self._reporter.progress(**self._start.progress())
