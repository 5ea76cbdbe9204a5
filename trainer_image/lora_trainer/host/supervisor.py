"""The light process around a run: starts the stages, serves progress and metrics, writes the summary.

A run is: prepare (inputs into the cache), train, verify, merge where that was asked for, publish. Each is a process of
its own. This one loads no PyTorch, so it answers at once, survives a stage that the kernel kills, and can say so.
What the stages leave in the run's workspace is not done again by a later attempt.
"""

import contextlib
import dataclasses
import logging
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from lora_trainer.distributed import logs
from lora_trainer.distributed.cpus import cpu_threads
from lora_trainer.distributed.reports import Failure, Report
from lora_trainer.errors import InternalError, explain
from lora_trainer.host.child import STOPPED, StageFailedError, Stages
from lora_trainer.host.endpoints import serve
from lora_trainer.host.launch import local_program, this_node, training_program
from lora_trainer.host.metrics import CONTENT_TYPE, TrainingMetrics
from lora_trainer.host.pulse import Pulse
from lora_trainer.host.rdma import warn_of_rdma
from lora_trainer.host.stall import StallWatch
from lora_trainer.host.success import results_of, success_sentence
from lora_trainer.host.tracking import tracked
from lora_trainer.host.view import View
from lora_trainer.host.workspace import Workspace, clear, open_workspace
from lora_trainer.result.unmerged import note_failed_merge
from lora_trainer.spec import codec
from lora_trainer.spec.config import Merge, TrainConfig
from lora_trainer.spec.exit_codes import FINAL, ExitCode
from lora_trainer.spec.progress import Progress
from lora_trainer.spec.reasons import Reason
from lora_trainer.spec.run_plan import RunPlan
from lora_trainer.spec.summary import DatasetStats, SavedState, Summary, Verification
from lora_trainer.spec.uri import ClaimUri, ConfigMapUri, parse_uri
from lora_trainer.storage.lock import Lock, held
from lora_trainer.storage.manifest import LOG, Manifest, Published, describe, finish, is_complete, read_manifest
from lora_trainer.storage.model_folder import check_on_claim
from lora_trainer.storage.outputs import open_publisher
from lora_trainer.storage.temporary import temporary_folder
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.checkpoint import Checkpoints, step_name

log = logging.getLogger(__name__)
_AT_ONCE = ", what was done is saved; press Ctrl-C again to end at once"
_ENDED_FROM_OUTSIDE = (Reason.EVICTED, Reason.OUTPUT_LOCKED)
"""A stage that ended for these had not failed: another attempt does its work."""
_WAIT_S = 120.0
"""For another attempt that still has the run's folder: its pod may be ending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a run is hosted. `port` None serves nothing; `grace_s` is how long a stage may take to stop; `log_format` is
    the stages', as this process has been set up; `tried_again` is whether a run that is interrupted begins again by
    itself."""

    volumes: Volumes
    port: int | None
    work: Path | None = None
    grace_s: float = 100.0
    log_format: str = logs.TEXT
    tried_again: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run ended: the process's exit status, the summary, and the folder of the adapter where there is one."""

    code: int
    summary: Summary
    folder: Path | None = None


@dataclass(slots=True, kw_only=True)
class Supervisor:
    """One run. The mutable fields hold what the stages reported last; `view` shows it."""

    config: TrainConfig
    settings: Settings
    view: View = field(default_factory=View)
    metrics: TrainingMetrics = field(default_factory=TrainingMetrics)
    progress: Progress = field(default_factory=Progress)
    dataset: DatasetStats | None = None
    plan: RunPlan | None = None
    verification: Verification | None = None
    published: Published | None = None
    workspace: Workspace | None = None
    trained_steps: int | None = None
    stages: Stages | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    watch: StallWatch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = StallWatch(self.config.stall_timeout_s, lambda silence_s: None)

    def run(self) -> Ending:
        """Train, verify and publish, or find that an earlier attempt did; never raises for what a run can meet."""
        pages = {
            "/progress": lambda: ("application/json", self.progress.to_json().encode()),
            "/metrics": lambda: (CONTENT_TYPE, self.metrics.text()),
            "/healthz": lambda: ("text/plain", b"ok\n") if self.watch.healthy else None,
        }
        server = None
        # To the very end: a signal while temporary files are removed must not tear the ending away.
        previous = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            server = None if self.settings.port is None else serve(self.settings.port, pages)
            with temporary_folder("lora-trainer-", self.settings.work) as temporary:
                return self._guarded(temporary)
        finally:
            if server is not None:
                server.shutdown()
                server.server_close()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        again = self.stopping.is_set()
        self.stopping.set()
        if number == signal.SIGINT and again:
            # Who presses Ctrl-C twice does not want to wait for a checkpoint.
            if self.stages is not None:
                self.stages.abort(STOPPED)
            return
        log.info("stopping: %s%s", signal.Signals(number).name, _AT_ONCE if number == signal.SIGINT else "")
        if self.stages is not None:
            self.stages.stop()

    def _guarded(self, temporary: Path) -> Ending:
        config_file = temporary / "config.json"
        config_file.write_text(self.config.to_json(), encoding="utf-8")
        stages = Stages(
            config_file=config_file,
            volumes=self.settings.volumes,
            take=self._take,
            grace_s=self.settings.grace_s,
            stopping=self.stopping,
            started=self._begin,
        )
        self.stages = stages
        pulse = Pulse(lambda: getattr(stages.child, "pid", None))
        # A training that should report is alive by its reports alone: one that hangs may well take CPU time.
        self.metrics.stirs = lambda: pulse.stirs() and not self.watch.watches
        try:
            node = this_node(self.config, os.environ)
            self.metrics.leads = node.is_main
            grace_s = self.settings.grace_s
            stages.training = training_program(self.config, node, cpu_threads(), grace_s=grace_s)
            stages.sharded = local_program(self.config, cpu_threads(), grace_s=grace_s)
            return self._run(stages, temporary) if node.is_main else self._take_part(stages, temporary)
        except StageFailedError as error:
            return self._failed(error.failure)
        except Exception as error:
            known = explain(error)
            if isinstance(known, InternalError):
                log.exception("unexpected error")
            return self._failed(Failure(code=int(known.code), reason=known.reason, message=str(known)))

    def _run(self, stages: Stages, temporary: Path) -> Ending:
        check_on_claim(self.config.model.uri, self.settings.volumes)
        publisher = open_publisher(self.config, self.settings.volumes)
        publisher.check()
        with (
            open_workspace(self.config, self.settings.volumes, temporary) as workspace,
            self._logging(stages, workspace),
        ):
            self.workspace = workspace
            try:
                with self._locked(stages, workspace) as lock:
                    earlier = publisher.published()
                    if earlier is not None:
                        log.info("this run published its result already, at %s", earlier.uri)
                        ending = self._report_again(stages, earlier, temporary)
                        _tidy(workspace, lock)
                        return ending
                    return self._work(stages, workspace, lock)
            finally:
                workspace.remove_if_empty(tried_again=self.settings.tried_again)

    @contextlib.contextmanager
    def _logging(self, stages: Stages, workspace: Workspace) -> Iterator[None]:
        """Collect what all processes of this and of every other attempt log, for the result."""
        copy = workspace.folder / LOG
        stages.environment = logs.variables(self.settings.log_format, codec.encode(self.config.run), copy)
        with logs.copied_to(copy):
            yield

    @contextlib.contextmanager
    def _locked(self, stages: Stages, workspace: Workspace) -> Iterator[Lock]:
        """Be the only one who writes into the run's folder; where that is lost, the stage at work ends."""

        def lost() -> None:
            message = "another trainer took the run's folder over: this one ends without writing"
            stages.abort(Failure(code=int(ExitCode.TRANSIENT), reason=Reason.OUTPUT_LOCKED, message=message))

        with held(
            workspace.folder,
            f"the run's folder {workspace.folder.name}",
            reason=Reason.OUTPUT_LOCKED,
            wait_s=_WAIT_S,
            sleep=stages.wait,
            on_lost=lost,
        ) as lock:
            try:
                yield lock
            except StageFailedError as error:
                if error.failure.code in FINAL:
                    lock.check()
                    workspace.discard_rows()
                raise
            finally:
                if not is_complete(workspace.staged, self.config.run.uid):
                    lock.check()
                    workspace.discard_staged()

    def _take_part(self, stages: Stages, temporary: Path) -> Ending:
        """What a node does that is not the first: train with the others. It writes nothing that lasts."""
        stages.environment = logs.variables(self.settings.log_format, codec.encode(self.config.run), None)
        if _is_remote(self.config):
            stages.run("prepare")
        self._watched_training(stages, "--folder", temporary / "staged")
        message = "this node's part of the training is done: the first node verifies and publishes the result"
        return Ending(code=int(ExitCode.OK), summary=Summary(reason=Reason.SUCCEEDED, message=message))

    def _work(self, stages: Stages, workspace: Workspace, lock: Lock) -> Ending:
        if is_complete(workspace.staged, self.config.run.uid):
            log.info("an earlier attempt finished the training: continuing from its result")
        else:
            self._train(stages, workspace, lock)
        lock.check()
        workspace.discard_rows()
        with _kept(workspace, "unpublished adapter"):
            self._verify(stages, workspace.staged)
        result = self._merged(stages, workspace, lock)
        finish(result, workspace.folder / LOG, self.verification)
        manifest = read_manifest(result)
        self.trained_steps = manifest.measured.steps
        with _kept(workspace, "verified result", result.name):
            stages.insist("publish", "--folder", result)
        _tidy(workspace, lock)
        return self._succeeded(manifest)

    def _verify(self, stages: Stages, folder: Path) -> None:
        stages.insist("verify", "--folder", folder, sharded=read_manifest(folder).resolved.sharded)

    def _train(self, stages: Stages, workspace: Workspace, lock: Lock) -> None:
        if _is_remote(self.config):
            stages.run("prepare")
        workspace.discard_staged()
        clear(workspace.staged, make=True)
        durable = ("--workspace", workspace.folder, "--ticket", lock.ticket) if workspace.durable else ()
        if workspace.durable:
            self.metrics.checkpoint_interval(self.config.checkpoint.interval_s)
        with tracked(self.config, stages.config_file, workspace.folder, stages.environment):
            self._watched_training(stages, "--folder", workspace.staged, *durable)

    def _watched_training(self, stages: Stages, *arguments: str | Path) -> None:
        """Run the stage that may stand still. Raises `StageFailedError`, then with `Stalled`."""

        def stalled(silence_s: float) -> None:
            message = (
                f"the training reported no progress for {silence_s:.0f} s and was ended: see the stacks in its log"
            )
            log.error("%s", message)
            failure = Failure(code=int(ExitCode.TRANSIENT), reason=Reason.STALLED, message=message)
            stages.abort(failure, log_stacks=True)

        warn_of_rdma(self.config.device, os.environ)
        self.watch = StallWatch(self.config.stall_timeout_s, stalled)
        self.watch.start()
        try:
            stages.run("train", *arguments)
        finally:
            self.watch.stop()

    def _merged(self, stages: Stages, workspace: Workspace, lock: Lock) -> Path:
        """The folder to publish: the adapter, or what the merge stage makes of it.

        Where both were asked for, a merge that fails costs the merge alone. Raises `StageFailedError`.
        """
        wanted = self.config.output.merge
        if wanted is Merge.ADAPTER or read_manifest(workspace.staged).merge_failure is not None:
            return workspace.staged
        if is_complete(workspace.merged, self.config.run.uid):
            return workspace.merged

        def begin() -> None:
            lock.check()
            clear(workspace.merged, make=True)

        try:
            stages.insist("merge", "--folder", workspace.staged, "--target", workspace.merged, begin=begin)
        except StageFailedError as error:
            lock.check()
            workspace.discard_merged()
            if wanted is Merge.MERGED or error.failure.reason in _ENDED_FROM_OUTSIDE:
                with _kept(workspace, "verified adapter"):
                    raise
            log.warning("the merge failed, the adapter is published without it: %s", error.failure.message)
            note_failed_merge(workspace.staged, error.failure.message)
            return workspace.staged
        return workspace.merged

    def _report_again(self, stages: Stages, earlier: Published, temporary: Path) -> Ending:
        self.published = earlier
        folder = Path(earlier.folder) if earlier.folder is not None else temporary / "published"
        if earlier.folder is None:
            stages.insist("fetch", "--folder", folder)
        self._verify(stages, folder)
        return self._succeeded(read_manifest(folder))

    def _begin(self, stage: str) -> None:
        self.view.stage(stage)
        self.metrics.stage(stage)

    def _take(self, report: Report) -> None:
        if report.memory is not None:  # of any process of the training, which says nothing of the others
            self.metrics.memory(report.memory)
            return
        self.watch.hear(report)
        self.view.take(report)
        self.metrics.beat()
        if report.progress is not None:
            self.progress = report.progress
            self.metrics.update(report.progress, report.counters)
        self.dataset = report.dataset or self.dataset
        self.plan = report.plan or self.plan
        self.verification = report.verification or self.verification
        self.published = report.published or self.published

    def _succeeded(self, manifest: Manifest) -> Ending:
        if self.verification is None or self.published is None:
            raise InternalError("the stages succeeded but did not report a verified and published result")
        results = results_of(manifest, self.verification)
        summary = Summary(
            reason=Reason.SUCCEEDED,
            message=success_sentence(self.published.uri, manifest),
            resolved=manifest.resolved,
            dataset=manifest.dataset,
            results=results,
            artifact=describe(self.published.uri, self.published.digest, manifest),
            checkpoint=self._saved_state(),
            plan=self.plan,
            advice=manifest.advice,
        )
        folder = None if self.published.folder is None else Path(self.published.folder)
        return Ending(code=int(ExitCode.OK), summary=summary, folder=folder)

    def _failed(self, failure: Failure) -> Ending:
        resolved = self.progress.resolved
        summary = Summary(
            reason=failure.reason,
            message=failure.message,
            resolved=resolved,
            dataset=self.dataset,
            checkpoint=self._saved_state(),
            plan=self.plan,
        )
        return Ending(code=failure.code, summary=summary)

    def _saved_state(self) -> SavedState | None:
        """The last checkpoint that this attempt wrote or went on from, unless that is another run's."""
        step = self.progress.checkpoint_step or self.progress.resumed_step or self.trained_steps
        if step is None or self.workspace is None or self.workspace.uri is None:
            return None
        if not (self.workspace.folder / step_name(step)).is_dir():
            return None
        return SavedState(uri=f"{self.workspace.uri}/{step_name(step)}", step=step)


@contextlib.contextmanager
def _kept(workspace: Workspace, what: str, name: str = "staged") -> Iterator[None]:
    """Have the failure of a stage say where the result lies that outlives it."""
    try:
        yield
    except StageFailedError as error:
        if workspace.uri is None or error.failure.reason in _ENDED_FROM_OUTSIDE:
            raise
        message = f"{error.failure.message}; the {what} is kept at {workspace.uri}/{name}"
        raise StageFailedError(dataclasses.replace(error.failure, message=message)) from error


def _tidy(workspace: Workspace, lock: Lock) -> None:
    """Leave of a run that has published its result what another may go on from, and no second copy of the result."""
    lock.check()
    workspace.discard_staged()
    workspace.discard_rows()
    Checkpoints(workspace.folder, keep=1, may_write=lock.check).prune()


def _is_remote(config: TrainConfig) -> bool:
    """Whether model or data have to be fetched."""
    addresses = (config.model.uri, config.dataset.uri, config.dataset.validation_uri)
    return any(not isinstance(parse_uri(uri), ClaimUri | ConfigMapUri) for uri in addresses if uri is not None)
