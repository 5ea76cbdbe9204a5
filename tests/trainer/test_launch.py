"""How the training is started on one GPU, several, and several nodes; and whose failure is reported."""

import dataclasses
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.trainer import failing_stage
from tests.trainer.conftest import make_config
from tests.trainer.runs import PATIENCE_S

from lora_trainer.distributed.cpus import cpu_threads
from lora_trainer.distributed.reports import Failure, Report, failure_of_status, first_cause
from lora_trainer.errors import ConfigError, CudaOutOfMemoryError, explain_exit
from lora_trainer.host.child import StageFailedError, Stages
from lora_trainer.host.launch import ONE_PROCESS, Node, Program, grace_s, this_node, training_program
from lora_trainer.host.passed_log import PassedLog, pass_on
from lora_trainer.host.supervisor import Settings, Supervisor
from lora_trainer.spec.config import DeviceConfig, TrainConfig
from lora_trainer.spec.exit_codes import ExitCode, reason_of
from lora_trainer.spec.progress import Phase
from lora_trainer.spec.reasons import Reason
from lora_trainer.storage.volumes import Volumes

POD = {"JOB_COMPLETION_INDEX": "1", "LORA_RENDEZVOUS": "tune-x-1-0.tune-x-1:29400"}


def config(gpus: int = 0, nodes: int = 1, output: str = "pvc://adapters/out") -> TrainConfig:
    """A run on so many GPUs of so many nodes."""
    made = make_config(output={"uri": output})
    return dataclasses.replace(made, device=DeviceConfig(gpus=gpus, nodes=nodes, allow_cpu=True))


def options(program: Program) -> dict[str, str]:
    """torchrun's options that have a value."""
    words = program.command
    return {word: words[i + 1] for i, word in enumerate(words[:-1]) if word.startswith("--")}


@pytest.mark.parametrize("gpus", [0, 1])
def test_one_gpu_or_none_needs_no_torchrun(gpus: int) -> None:
    """Its import alone would take seconds."""
    assert training_program(config(gpus), this_node(config(gpus), {}), threads=8, grace_s=100) == ONE_PROCESS


def test_a_node_of_several_gpus_has_a_process_for_each() -> None:
    """They meet on this machine, share its CPUs, and are never started again by torchrun."""
    program = training_program(config(gpus=4), Node(), threads=10, grace_s=100)
    found = options(program)
    assert (found["--rdzv-backend"], found["--rdzv-conf"].partition(",")[0]) == ("c10d", "store_type=file")
    assert (found["--nproc-per-node"], found["--max-restarts"], found["--local-addr"]) == ("4", "0", "127.0.0.1")
    assert program.command[-2:] == ("--module", "lora_trainer.stage")
    assert program.environment["OMP_NUM_THREADS"] == "2"
    assert program.environment["GLOO_SOCKET_IFNAME"] == program.environment["NCCL_SOCKET_IFNAME"] == "lo"


def test_processes_of_one_node_listen_on_nothing_that_another_machine_reaches(tmp_path: Path) -> None:
    """torchrun executes what it finds in its store, and any pod of a cluster may come to an open port. Nor do they
    leave the files by which they meet."""
    real = training_program(config(gpus=2), Node(), threads=2, grace_s=60)
    command = (*real.command[:-1], "tests.trainer.listening_program", "--report", str(os.open(os.devnull, os.O_WRONLY)))
    root, found, temporary = Path(__file__).parents[2], tmp_path / "found", tmp_path / "temporary"
    temporary.mkdir()
    places = {"PYTHONPATH": f"{root / 'trainer_image'}:{root}", "LISTENING": str(found), "TMPDIR": str(temporary)}
    subprocess.run(command, env={**os.environ, **real.environment, **places}, pass_fds=[int(command[-1])], check=True)
    assert found.read_text() == "2 []"
    assert not list(temporary.glob("lora-*"))


def test_nodes_meet_at_the_first_one() -> None:
    """Under the number that the Job gave this pod; waiting for each other as long as a step may take."""
    run = config(gpus=0, nodes=3)
    node = this_node(run, POD)
    program = training_program(run, node, threads=2, grace_s=100)
    found = options(program)
    assert (found["--nnodes"], found["--nproc-per-node"]) == ("3", "1")
    assert found["--rdzv-endpoint"] == "tune-x-1-0.tune-x-1:29400"
    assert found["--rdzv-conf"] == "rank=1,timeout=1800"
    assert "GLOO_SOCKET_IFNAME" not in program.environment
    assert not node.is_main
    assert this_node(run, {**POD, "JOB_COMPLETION_INDEX": "0"}).is_main


def test_nodes_wait_longer_for_each_other_than_kubernetes_waits_to_make_a_pod_again() -> None:
    """Up to ten minutes, for each at times of its own: they would miss each other for ever."""
    patient = dataclasses.replace(config(nodes=2), stall_timeout_s=60)
    command = training_program(patient, Node(nodes=2, address="n", port=1), threads=1, grace_s=60).command
    assert "rank=0,timeout=900" in command


@pytest.mark.parametrize(
    "changes",
    [
        {"JOB_COMPLETION_INDEX": "3"},
        {"JOB_COMPLETION_INDEX": ""},
        {"LORA_RENDEZVOUS": "tune-x-1-0"},
        {"LORA_RENDEZVOUS": ":29400"},
    ],
)
def test_a_pod_that_does_not_know_its_place_is_refused(changes: dict[str, str]) -> None:
    """In one sentence with both variables, instead of a rendezvous that nobody comes to."""
    with pytest.raises(ConfigError, match=r"resources\.nodes is 3, but JOB_COMPLETION_INDEX is .* and LORA_RENDEZVOUS"):
        this_node(config(nodes=3), {**POD, **changes})


def test_several_nodes_need_a_claim_for_checkpoints() -> None:
    """Else the first node could not go on where the others, which are done, have left it."""
    with pytest.raises(ConfigError, match=r"set checkpoint\.volumeClaimName"):
        this_node(config(nodes=2, output="s3://bucket/out"), POD)


def test_each_process_takes_its_share_of_the_cpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Never none."""
    quota = tmp_path / "cpu.max"
    quota.write_text("max 100000")
    alone = cpu_threads(quota)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cpu_threads(quota) == max(1, alone // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert cpu_threads(quota) == 1


def failure(reason: Reason, code: int = 1) -> Failure:
    """A report of that reason."""
    return Failure(code=code, reason=reason, message=reason.value)


OWN, LATER = failure(Reason.DATASET_INVALID), failure(Reason.STORAGE_FULL)
GONE, STOPPED = failure(Reason.PEER_FAILED), failure(Reason.EVICTED)


@pytest.mark.parametrize(
    ("reports", "cause"),
    [
        ([OWN, GONE, STOPPED], OWN),
        ([GONE, OWN, STOPPED], OWN),
        ([GONE, STOPPED, OWN], OWN),
        ([OWN, LATER], OWN),
        ([GONE, STOPPED], GONE),
        ([None, GONE, None], GONE),
    ],
)
def test_the_cause_is_the_first_failure_that_followed_from_no_other(
    reports: list[Failure | None], cause: Failure
) -> None:
    """In whatever order the processes come to report."""
    found: Failure | None = None
    for report in reports:
        found = first_cause(found, report)
    assert found is cause


@dataclasses.dataclass
class Watched:
    """Two processes under the real torchrun, in which the stand-in for the training runs."""

    stages: Stages
    reports: list[Report]


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Stages whose training is the stand-in."""
    real = training_program(config(gpus=2), Node(), threads=2, grace_s=60)
    program = dataclasses.replace(real, command=(*real.command[:-1], "tests.trainer.failing_stage"))
    root = Path(__file__).parents[2]
    (tmp_path / "meeting").mkdir()
    monkeypatch.setenv("MEETING", str(tmp_path / "meeting"))
    monkeypatch.setenv("FAIL", "never")
    monkeypatch.setenv("PYTHONPATH", f"{root / 'trainer_image'}:{root}")
    reports: list[Report] = []
    stages = Stages(
        config_file=tmp_path / "config.json",
        volumes=Volumes(claims=tmp_path, config_maps=tmp_path),
        take=reports.append,
        grace_s=60,
        training=program,
    )
    return Watched(stages=stages, reports=reports)


@pytest.mark.parametrize(
    ("how", "code", "text"),
    [
        ("error", ExitCode.DATASET_INVALID, "row 17 of train.jsonl"),
        ("killed", ExitCode.KERNEL_OUT_OF_MEMORY, "the kernel killed the training process"),
    ],
)
def test_one_process_that_fails_ends_all_with_its_own_cause(
    watched: Watched, capfd: Any, how: str, code: ExitCode, text: str
) -> None:
    """Exit code and sentence are those of the process that failed, also of one that could not say so itself."""
    os.environ["FAIL"] = how
    with pytest.raises(StageFailedError) as caught:
        watched.stages.run("train")
    ended = caught.value.failure
    assert (ended.code, ended.reason) == (code, reason_of(code))
    assert text in ended.message
    assert [r.progress.phase for r in watched.reports if r.progress is not None] == [Phase.TRAINING]
    log = capfd.readouterr().err
    assert "Traceback" not in log
    assert "elastic" not in log


def test_processes_that_find_that_the_run_does_not_fit_end_alike(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With exit code 64, the reason of preflight, and the plan that says what would fit."""
    monkeypatch.setenv("FAIL", "unfit")
    settings = Settings(volumes=watched.stages.volumes, port=None, work=tmp_path)
    supervisor = Supervisor(config=config(gpus=2), settings=settings)
    watched.stages.take = supervisor._take
    with pytest.raises(StageFailedError) as caught:
        watched.stages.run("train")
    ending = supervisor._failed(caught.value.failure)
    assert (ending.code, ending.summary.reason) == (64, Reason.DOES_NOT_FIT)
    assert (ending.summary.plan, ending.summary.message) == (failing_stage.PLAN, failing_stage.PLAN.reason)


@pytest.mark.parametrize(
    ("said", "code"), [(STOPPED, 143), (None, 143), (GONE, 143), (failure(Reason.STORAGE_FULL, 74), 74)]
)
def test_a_pod_that_was_asked_to_stop_ends_by_that(watched: Watched, said: Failure | None, code: int) -> None:
    """Also where a process of it heard of the request by another one first; or because it could not save."""
    watched.stages.stopping.set()
    watched.stages.failure = said
    assert watched.stages._cause(1, "").code == code


def test_a_process_that_fails_takes_those_along_that_wait_for_it(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a divided base, a process that gives up within a layer leaves the others in a collective, deaf to SIGTERM:
    they end soon, and not when the training counts as standing still. Nor does it wait for them itself."""
    monkeypatch.setattr("lora_trainer.host.child.PEERS_S", 1.0)
    monkeypatch.setenv("FAIL", "deaf")
    failed_at: list[float] = []
    watched.stages.take = lambda report: failed_at.append(time.monotonic()) if report.failure else None
    with pytest.raises(StageFailedError) as caught:
        watched.stages.run("train")
    assert time.monotonic() - failed_at[0] < 120
    assert caught.value.failure.reason is Reason.DATASET_INVALID


def test_a_checkpoint_that_is_being_written_is_finished_though_another_process_failed(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow volume that takes longer than the others may take to end; no longer than the grace."""
    monkeypatch.setattr("lora_trainer.host.child.PEERS_S", 0.5)
    monkeypatch.setenv("FAIL", "saving")
    with pytest.raises(StageFailedError):
        watched.stages.run("train")
    assert [r.progress.checkpoint_step for r in watched.reports if r.progress is not None] == [None, None, 12]
    watched.stages.grace_s = 0.5
    monkeypatch.setenv("FAIL", "saving for ever")
    with pytest.raises(StageFailedError) as caught:
        watched.stages.run("train")
    assert caught.value.failure.reason is Reason.PEER_FAILED


def test_one_of_several_processes_that_failed_does_not_wait_for_pythons_own_end() -> None:
    """It would abort collectives that the others wait in; a process alone, and one that did well, end as usual."""
    program = (
        "import atexit, os; from lora_trainer.host.guard import leave; atexit.register(os._exit, 9); "
        "leave({status}, {environment})"
    )
    cases = [(71, {"LOCAL_RANK": "1"}, 71), (71, {}, 9), (0, {"LOCAL_RANK": "1"}, 9)]
    ended = [
        subprocess.run(
            [sys.executable, "-c", program.format(status=status, environment=environment)], check=False
        ).returncode
        for status, environment, _ in cases
    ]
    assert ended == [expected for *_, expected in cases]


def test_a_process_that_nccls_watchdog_aborts_is_explained_by_its_last_words(
    watched: Watched, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stay in the log."""
    words = "Process group watchdog thread terminated with exception: CUDA error: an illegal memory access was found"
    monkeypatch.setenv("FAIL", "aborted")
    monkeypatch.setenv("LAST_WORDS", words)
    with pytest.raises(StageFailedError) as caught:
        watched.stages.run("train")
    assert (caught.value.failure.code, caught.value.failure.reason) == (ExitCode.GPU_FAULT, Reason.GPU_FAULT)
    assert "illegal memory access" in caught.value.failure.message
    assert words in capfd.readouterr().err


@pytest.mark.parametrize(
    ("gpus", "how", "said", "code"),
    [
        (1, "exited", "out of memory", ExitCode.CUDA_OUT_OF_MEMORY),
        (1, "exited", "uncorrectable ECC error encountered", ExitCode.GPU_FAULT),
        (2, "exited", "uncorrectable ECC error encountered", ExitCode.GPU_FAULT),
        (2, "peer exited", "out of memory", ExitCode.CUDA_OUT_OF_MEMORY),
    ],
)
def test_a_process_that_bitsandbytes_ends_is_explained_and_its_peers_are_not_blamed(
    *, watched: Watched, capfd: Any, monkeypatch: pytest.MonkeyPatch, gpus: int, how: str, said: str, code: ExitCode
) -> None:
    """It reports nothing, and the others, which report that it is gone, may do so first. Its words stay in the log."""
    monkeypatch.setenv("FAIL", how)
    monkeypatch.setenv("LAST_WORDS", said)
    if gpus == 1:
        watched.stages.training = Program(command=(sys.executable, "-m", "tests.trainer.failing_stage"))
    with pytest.raises(StageFailedError) as caught:
        watched.stages.run("train")
    assert (caught.value.failure.code, caught.value.failure.reason) == (code, reason_of(code))
    assert said in caught.value.failure.message
    assert f"Error {said} at line 93" in capfd.readouterr().err


def test_the_end_of_the_log_is_there_however_torchrun_ends() -> None:
    """It says what a process failed of, and is still on its way when the process is gone."""
    program = """
import os, sys, time
from lora_trainer.host import passed_log, torchrun
passed_on = passed_log.pass_on
def run(_):
    os.write(2, b"the last words")
    raise RuntimeError
torchrun.run, passed_log.pass_on = run, lambda *pipe: (time.sleep(0.3), passed_on(*pipe))
sys.exit(torchrun.main(["train.py", str(os.open(os.devnull, os.O_WRONLY))]))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (ended.returncode, b"the last words" in ended.stderr) == (ExitCode.INTERNAL, True)


def test_a_log_that_nobody_takes_stops_no_process() -> None:
    """Its pipe is emptied, and its end is kept all the same."""
    nobody, gone = os.pipe()
    os.close(nobody)
    read_end, write_end = os.pipe()
    kept = bytearray()
    passing = threading.Thread(target=pass_on, args=(read_end, gone, kept), daemon=True)
    passing.start()
    for number in range(40):  # more than a pipe holds
        os.write(write_end, bytes([number]) * 4096)
    os.close(write_end)
    passing.join(300)
    assert not passing.is_alive()
    assert kept[-1] == 39


def test_a_stage_that_cannot_be_started_leaves_nothing_open(watched: Watched) -> None:
    """No descriptor, and no thread that passes on what nobody writes."""
    watched.stages.training = Program(command=("/nowhere/python",))

    def left() -> tuple[list[Path], int]:
        return sorted(Path("/proc/self/fd").iterdir()), threading.active_count()

    before = left()
    with pytest.raises(FileNotFoundError):
        watched.stages.run("train")
    assert left() == before


def test_what_a_library_said_of_its_end_outlives_the_small_writes_after_it() -> None:
    """Of other processes' stack traces, line by line; of a very long log the end is kept, and no more."""
    log = PassedLog()
    os.write(log.write_end, b"Error out of memory at line 93 in file /src/csrc/ops.cu\n")
    for number in range(400):
        os.write(log.write_end, b'  File "/x/y.py", line %d in z\n' % number)
        if number % 4 == 0:
            time.sleep(0.001)  # so that each is read alone
    said = log.end()
    assert said.endswith("line 399 in z\n")
    assert isinstance(explain_exit(said), CudaOutOfMemoryError)
    long = PassedLog()
    for number in range(100):
        os.write(long.write_end, bytes([number]) * 4096)
    assert long.end() == "".join(chr(number) * 4096 for number in range(36, 100))


def test_a_process_that_a_signal_ended_without_a_word_has_the_signals_name() -> None:
    """Nothing else is known of it; also of one that the system does not name."""
    assert "ended with signal SIGABRT and no explanation" in failure_of_status(-6).message
    assert "ended with signal 250 and no" in failure_of_status(-250).message


def test_a_request_to_stop_reaches_every_process(watched: Watched) -> None:
    """torchrun passes SIGTERM on; all have ended when the stage has."""
    waiting = threading.Event()
    watched.stages.take = lambda report: waiting.set() if report.progress is not None else None

    def stop() -> None:
        waiting.wait(PATIENCE_S)
        watched.stages.stop()

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(StageFailedError) as caught:
        watched.stages.run("train")
    stopper.join()
    assert (caught.value.failure.code, caught.value.failure.reason) == (ExitCode.TERMINATED, Reason.EVICTED)


def test_every_process_of_a_training_that_stands_still_logs_where(
    watched: Watched, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun passes the wish on."""
    waiting, logged = threading.Event(), list[str]()
    watched.stages.take = lambda report: waiting.set() if report.progress is not None else None
    stalled = Failure(code=int(ExitCode.TRANSIENT), reason=Reason.STALLED, message="no sign of life")

    def until_logged(_seconds: float) -> None:
        # In place of three seconds, in which a busy machine may not come so far.
        ends = time.monotonic() + 180
        while "".join(logged).count("_work") < 2 and time.monotonic() < ends:
            time.sleep(0.05)
            logged.append(capfd.readouterr().err)

    def abort() -> None:
        waiting.wait(PATIENCE_S)
        watched.stages.abort(stalled, log_stacks=True)

    monkeypatch.setattr("lora_trainer.host.child.time", SimpleNamespace(sleep=until_logged))
    watcher = threading.Thread(target=abort)
    watcher.start()
    with pytest.raises(StageFailedError) as caught:
        watched.stages.run("train")
    watcher.join()
    assert caught.value.failure == stalled
    # Where a busy machine lets them write at once, lines mix, and names do not.
    assert "".join([*logged, capfd.readouterr().err]).count("_work") == 2


def test_a_stage_may_take_as_long_to_save_as_its_pod_may() -> None:
    """A longer grace period is there for larger checkpoints: none is killed at the time of the default one."""
    assert grace_s({}) == 100
    assert grace_s({"LORA_GRACE_SECONDS": "600"}) == 500
    program = training_program(config(gpus=2), Node(), threads=2, grace_s=500)
    assert options(program)["--shutdown-timeout"] == "450"
    for text in ("0", "-5", "soon"):
        with pytest.raises(ConfigError, match=f"LORA_GRACE_SECONDS is '{text}'"):
            grace_s({"LORA_GRACE_SECONDS": text})


def test_a_state_that_a_stopped_run_could_not_save_is_reported(watched: Watched) -> None:
    """Not hidden behind the request to stop: steps are lost, and the volume is full."""
    os.environ["FAIL"] = "unsaved"
    waiting = threading.Event()
    watched.stages.take = lambda report: waiting.set() if report.progress is not None else None

    def stop() -> None:
        waiting.wait(PATIENCE_S)
        watched.stages.stop()

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(StageFailedError) as caught:
        watched.stages.run("train")
    stopper.join()
    assert (caught.value.failure.code, caught.value.failure.reason) == (ExitCode.STORAGE, Reason.STORAGE_FULL)


_ENDS_ITSELF = """
import datetime, sys, threading
from torch.distributed.elastic.rendezvous.utils import _PeriodicTimer
from lora_trainer.host import torchrun
class Defect:
    def __del__(self):
        1 / 0
for hook in (sys.unraisablehook, torchrun.leave_out_a_timer_s_end):
    sys.unraisablehook = hook
    kept, started = [], threading.Event()
    def end():
        started.wait()
        kept.clear()
    kept.append(_PeriodicTimer(datetime.timedelta(seconds=0.01), end))
    kept[0].start()
    (thread,) = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    started.set()
    thread.join()
    Defect()
    print("hooked", file=sys.stderr)
"""


def test_a_timer_of_torchrun_that_ends_in_its_own_thread_leaves_no_stack_trace() -> None:
    """As its rendezvous may when a run is stopped; PyTorch prints one. What else cannot be raised is printed."""
    ended = subprocess.run(
        [sys.executable, "-c", _ENDS_ITSELF], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    without, with_it, _ = ended.stderr.split("hooked\n")
    assert "cannot join current thread" in without
    assert "cannot join current thread" not in with_it
    assert "ZeroDivisionError" in with_it
