"""etcd is restored from a backup under an operator that goes on: what it knows is of a future that never came."""

from pathlib import Path

import pytest
from tests.component.documents import succeeded
from tests.component.patience import eventually
from tests.component.stage import Stage, gone
from tests.faults.backups import back_up, restore
from tests.faults.one_run import begin
from tests.faults.outage import wait_api_server
from tests.faults.proofs import Proofs

# More than a control plane writes by itself while it starts.
CHANGES = 600


@pytest.mark.fault("A21")
def test_a_restored_etcd_ends_the_operator_once_and_what_the_backup_holds_goes_on(
    stage: Stage, faults: Proofs, tmp_path: Path
) -> None:
    """After the backup a run ends, one is deleted and one is created; the restore undoes all three."""
    proxy = stage.proxy()
    first = stage.start(proxy=proxy, staleListSeconds=2, resyncIntervalSeconds=1)
    ended, deleted = begin(stage, "ended"), begin(stage, "deleted")
    for run in (ended, deleted):
        run.running_pod()
    before = faults.remember(ended, deleted)
    back_up(stage, tmp_path / "backup")
    wait_api_server(stage)

    stage.end_pod(ended.pod(), 0, succeeded())
    ended.wait("Complete", "True")
    stage.api.delete(stage.path("lorafinetunes", "deleted"))
    eventually(lambda: gone(stage.api, stage.path("lorafinetunes", "deleted")), "the run is deleted")
    _let_history_pass(stage)
    undone = begin(stage, "undone")
    undone.wait("PodsReady", "False", "VolumeNotReady")
    restore(stage, tmp_path / "backup")
    wait_api_server(stage)

    eventually(lambda: first.process.poll() is not None, "the operator has ended")
    assert first.process.returncode == 1
    faults.saw("A21.ends", text=first.text().splitlines()[-1])
    second = stage.start(proxy=proxy, staleListSeconds=2, resyncIntervalSeconds=1)
    with faults.proving("A21.undone"):
        assert len(proxy.made("create jobs", about="undone")) == 1
        assert gone(stage.api, stage.path("lorafinetunes", "undone"))
        assert len(stage.objects("jobs")) == 2
    new = begin(stage, "new")
    new.running_pod()
    for name in ("A21.pods", "A21.jobs", "A21.ends-well"):
        faults.kept(name, before)
    faults.kept("A21.ends-well", faults.remember(new))
    faults.kept("A21.one-job", faults.remember(ended, deleted, new))
    assert second.process.poll() is None, second.text()


def _let_history_pass(stage: Stage) -> None:
    """Without it a control plane that starts would write its way out of the past at once."""
    path = stage.path("configmaps")
    stage.api.post(path, {"metadata": {"name": "history"}})
    for number in range(CHANGES):
        stage.api.patch(f"{path}/history", {"data": {"number": str(number)}})
