"""etcd is restored from a backup under an operator that goes on: what it knows is of a future that never came."""

from pathlib import Path

from tests.component.documents import succeeded
from tests.component.patience import eventually
from tests.component.stage import Stage, gone
from tests.faults.backups import back_up, restore
from tests.faults.moments import Kept
from tests.faults.one_run import begin
from tests.faults.outage import wait_api_server
from tests.faults.seen import kept, remember

# More than a control plane writes by itself while it starts.
CHANGES = 600


def test_under_a_restored_etcd_the_operator_ends_once_and_what_the_backup_holds_goes_on(
    stage: Stage, tmp_path: Path
) -> None:
    """After the backup a run ends, one is deleted and one is created; the restore undoes all three."""
    proxy = stage.proxy()
    operator = stage.start(proxy=proxy, resyncIntervalSeconds=1)
    ended, deleted = begin(stage, "ended"), begin(stage, "deleted")
    for run in (ended, deleted):
        run.running_pod()
    before = remember(ended, deleted)
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

    assert len(proxy.made("create jobs", about="undone")) == 1
    assert gone(stage.api, stage.path("lorafinetunes", "undone"))
    assert len(stage.objects("jobs")) == 2
    new, another = begin(stage, "new"), begin(stage, "another")
    for run in (new, another):
        run.wait("Accepted", "True")
    # The watch of LoRAFineTunes waits for what follows a change that never came, and lists show what it does not bring.
    assert operator.end_by_itself() == 1
    assert "lorafinetunes is deaf" in operator.text()
    operator = stage.start(proxy=proxy, resyncIntervalSeconds=1)
    new.running_pod()
    for what in (Kept.PODS, Kept.JOBS, Kept.ENDS_WELL):
        kept(what, before)
    kept(Kept.ENDS_WELL, remember(new))
    kept(Kept.ONE_JOB, remember(ended, deleted, new, another))
    assert operator.process.poll() is None, operator.text()


def _let_history_pass(stage: Stage) -> None:
    """Without it a control plane that starts would write its way out of the past at once."""
    path = stage.path("configmaps")
    stage.api.post(path, {"metadata": {"name": "history"}})
    for number in range(CHANGES):
        stage.api.patch(f"{path}/history", {"data": {"number": str(number)}})
