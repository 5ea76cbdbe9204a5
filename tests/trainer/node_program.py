"""A stand-in for the stage `train` on one of several nodes: joins the others, and with HELD computes from then on until
it is ended, without asking for them."""

import os
import sys
import time

import torch

from lora_trainer.distributed.group import join
from lora_trainer.distributed.parent import end_with_parent
from lora_trainer.distributed.reports import Reporter, open_report
from lora_trainer.host.guard import guarded, leave
from lora_trainer.spec.progress import Phase


def _work(reporter: Reporter) -> None:
    with join(torch.device("cpu"), 300) as ranks:
        reporter.phase(Phase.TRAINING)
        if "HELD" in os.environ:
            time.sleep(3600)
        ranks.barrier()


def main() -> int:
    """What the stage does around its own work."""
    end_with_parent()
    torch.set_num_threads(1)
    reporter = Reporter(open_report(sys.argv[sys.argv.index("--report") + 1]))
    return guarded(lambda: _work(reporter), reporter)


if __name__ == "__main__":
    leave(main(), os.environ)
