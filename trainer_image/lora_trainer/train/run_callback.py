"""What a run tells, beside what every training does: advice, where it begins, and curves that go on from there."""

from pathlib import Path

from lora_trainer.distributed.collectives import Ranks
from lora_trainer.distributed.reports import Reporter
from lora_trainer.plan.hint_checks import LeftAlone
from lora_trainer.spec.summary import ResolvedRun
from lora_trainer.storage.curve_records import metrics_beside
from lora_trainer.train.account import Account
from lora_trainer.train.advising import advise_before
from lora_trainer.train.evaluate import Evaluation
from lora_trainer.train.reporting import ReportingCallback
from lora_trainer.train.resolve_auto import peak_share
from lora_trainer.train.versions import versions


class RunCallback(ReportingCallback):
    """Of a run whose result grows in a folder; of several processes the first one gives advice."""

    def __init__(self, account: Account, reporter: Reporter, folder: Path, ranks: Ranks) -> None:
        share = peak_share(account.shape, account.device, ranks)
        super().__init__(reporter, account.device, metrics_beside(folder), share)
        self._account = account
        self._ranks = ranks

    def adapted(self, resolved: ResolvedRun, left_alone: LeftAlone) -> None:
        """See `TrainerCallback`."""
        start = self._account.start
        if self._ranks.is_main:
            advise_before(self._account.facts(resolved, left_alone))
        super().adapted(resolved, left_alone)
        self._curves.begin((start and start.resumed_step) or 0)

    def begins(self, resolved: ResolvedRun, before: Evaluation, *, step: int) -> None:
        """See `TrainerCallback`."""
        super().begins(resolved, before, step=step)
        if start := self._account.start:
            start.log_start()
            start.warn_of_changes(resolved, versions(resolved))
            start.warn_of_split(self._account.data.held_out_digest)
            self._reporter.progress(**start.progress())
