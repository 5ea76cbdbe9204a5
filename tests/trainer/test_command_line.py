"""The command line as the one who mistypes it meets it: one sentence, before seconds of imports, and no traceback."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.trainer import tiny
from tests.trainer.conftest import make_config
from tests.trainer.runs import PATIENCE_S, TRAINER, Workplace
from tests.trainer.test_manifest import make_manifest

from lora_trainer import cli
from lora_trainer.distributed.reports import Reporter
from lora_trainer.errors import DatasetError, TerminatedError, TrainerError
from lora_trainer.host.child import STOPPED
from lora_trainer.host.guard import guarded
from lora_trainer.host.supervisor import Settings, Supervisor
from lora_trainer.storage.manifest import write_sealed
from lora_trainer.storage.sealed import MANIFEST
from lora_trainer.storage.volumes import Volumes
from lora_trainer.train.checkpoint import RUN_FILE

WITHOUT_LIBRARIES = (
    "import json, sys\nfrom lora_trainer.cli import main\n"
    "print(main(json.loads(sys.argv[1])))\n"
    "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])\n"
)


def make_folders(workplace: Workplace) -> None:
    """A result `out`, a checkpoint `step-00000002`, and neither: `empty`; their base model is not there."""
    (workplace.root / "empty").mkdir()
    (workplace.root / "file").touch()
    out = workplace.root / "out"
    out.mkdir()
    (out / "adapter_config.json").write_text("{}", encoding="utf-8")
    write_sealed(out, make_manifest("uid-1"))
    checkpoint = workplace.root / "step-00000002"
    checkpoint.mkdir()
    config = {"config": {"model": {"uri": "pvc://none/tiny"}}}
    (checkpoint / RUN_FILE).write_text(json.dumps(config), encoding="utf-8")
    (checkpoint / MANIFEST).write_text("{}", encoding="utf-8")


def without_libraries(workplace: Workplace, arguments: list[str]) -> tuple[int, str]:
    """The exit status and what was printed of a command that has to end before it imports what takes seconds."""
    command = [sys.executable, "-c", WITHOUT_LIBRARIES, json.dumps(arguments)]
    environment = {**os.environ, "PYTHONPATH": str(TRAINER)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=workplace.root, env=environment, check=True)
    *printed, status, libraries = done.stdout.splitlines()
    assert libraries == "[]"
    return int(status), "\n".join(printed) + done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["verify", "none"], 64, "none is missing: must be a folder that exists"),
        (["merge", "file", "--output", "x"], 64, "file is a file: must be a folder that exists"),
        (["publish", "empty", "pvc://a/b"], 64, "empty holds no manifest.json: name a folder that a run published"),
        (["verify", "step-00000002"], 64, "is a checkpoint and no result: make an adapter of it with lora-trainer ex"),
        (["verify", "out"], 66, "without a cluster, --claims DIR names the folder that holds one for each claim"),
        (["export", "out", "--output", "x"], 64, "out is an adapter already: export takes a checkpoint"),
        (["export", "empty", "--output", "x"], 64, "empty holds no run.json, so it is not a checkpoint"),
        (["export", "step-00000002", "--output", "x", "--claims", "."], 66, "there is no folder none"),
        (["ask", "--adapter", "none", "--question", "Hi"], 64, "--adapter is none: there is no adapter_config.json"),
        (["ask", "--adapter", "out", "--question", "Hi", "--claims", "."], 66, "there is no folder models"),
        (["ask", "--adapter", "out", "--base", "x", "--question", "Hi"], 64, "--base is x: there is no such folder"),
        (["run", "-f", "none.yaml"], 64, "none.yaml cannot be read"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_before_libraries_are_imported(
    workplace: Workplace, arguments: list[str], status: int, sentence: str
) -> None:
    """PyTorch alone takes seconds."""
    make_folders(workplace)
    ended, printed = without_libraries(workplace, arguments)
    assert ended == status
    assert sentence in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("command", ["run", "preflight"])
@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"lora": {"rnak": 4}}, "spec.lora.rnak is 4: there is no such field; did you mean rank?"),
        ({"scheduling": {"tolerations": [{"keyy": "a"}]}}, "scheduling.tolerations[0].keyy is"),
        ({"lora": {"rank": 4, "init": "PiSSA"}, "quantization": "NF4"}, "spec.lora.init is"),
    ],
)
def test_what_is_wrong_with_a_spec_is_said_before_libraries_are_imported(
    workplace: Workplace, command: str, section: dict[str, Any], sentence: str
) -> None:
    """Nothing but the spec has to be read for it."""
    manifest = workplace.root / "wrong.yaml"
    manifest.write_text(yaml.safe_dump(tiny.manifest(**section)), encoding="utf-8")
    status, printed = without_libraries(workplace, [command, "-f", str(manifest), "--claims", str(workplace.claims)])
    assert status == 64
    assert sentence in printed
    assert "Traceback" not in printed


def test_a_missing_model_is_noticed_before_a_stage_starts(workplace: Workplace) -> None:
    """A stage would spend its imports first."""
    manifest = workplace.manifest_file(model={"uri": "pvc://models/none"})
    status, printed = without_libraries(workplace, ["run", "-f", str(manifest), "--claims", str(workplace.claims)])
    assert status == 66
    assert "ModelNotFound: model.uri is pvc://models/none: there is no such folder" in printed
    assert "INFO" not in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["ask", "--adapter", "a", "--question", "Hi", "--max-new-tokens", "-3"], "is -3: must be a whole number from"),
        (["ask", "--adapter", "a", "--question", "Hi", "--max-new-tokens", "0"], "is 0: must be a whole number from 1"),
        (["ask", "--adapter", "a", "--question", " "], "argument --question: is empty: must be a text"),
        (["run", "-f", "a", "--metrics-port", "65536"], "is 65536: must be a whole number from 0 to 65535"),
        (["run", "-f", "a", "--metrics-port", "9" * 6000], "must be a whole number from 0 to 65535"),
    ],
)
def test_an_argument_that_cannot_be_is_refused(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By argparse, which shows the usage along."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


UNREAD = (
    "import json, os, sys\n"
    "read_end, write_end = os.pipe()\n"
    "os.close(read_end)\n"
    "for number in json.loads(sys.argv[1]): os.dup2(write_end, number)\n"
    "from lora_trainer import cli, {module}\n"
    "{patch}\n"
    "sys.exit(cli.main(sys.argv[2:]))\n"
)
"""A command whose output, of the descriptors that are its first argument, nobody reads any more, as behind `| head`."""
CONNECTION = "def broken(*_): raise BrokenPipeError(32, 'Broken pipe')\nplan_command.plan_run = broken"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("gone", [[1], [1, 2]])
@pytest.mark.parametrize(
    ("arguments", "module", "patch", "status"),
    [
        (["run", "-f", "wrong.yaml"], "run_commands", "", 64),
        (["preflight", "-f", "wrong.yaml"], "run_commands", "", 64),
        (["verify", "none"], "result_commands", "", 64),
        (["plan", "-f", "right.yaml", "--claims", "claims"], "plan_command", "", 0),
        (["plan", "-f", "right.yaml", "--claims", "claims"], "plan_command", CONNECTION, 1),
        (["plan", "--help"], "plan_command", "", 0),
        (["plan"], "plan_command", "", 2),
    ],
    ids=["run", "preflight", "verify", "plan", "connection", "help", "usage"],
)
def test_a_command_that_nobody_reads_keeps_its_status(
    *,
    workplace: Workplace,
    arguments: list[str],
    module: str,
    patch: str,
    status: int,
    gone: list[int],
    unbuffered: str,
) -> None:
    """Of what goes wrong, a connection that breaks among it, which looks the same; without a traceback."""
    (workplace.root / "wrong.yaml").write_text(yaml.safe_dump(tiny.manifest(lora={"rnak": 4})), encoding="utf-8")
    (workplace.root / "right.yaml").write_text(yaml.safe_dump(tiny.manifest()), encoding="utf-8")
    program = UNREAD.format(module=module, patch=patch)
    environment = {**os.environ, "PYTHONPATH": str(TRAINER), "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(gone), *arguments],
        stderr=subprocess.PIPE,
        text=True,
        cwd=workplace.root,
        env=environment,
        check=False,
    )
    assert done.returncode == status
    assert "Traceback" not in done.stderr


def test_ctrl_c_before_a_run_began_is_one_line(workplace: Workplace) -> None:
    """Here while the manifest is read, from a pipe that nobody writes to."""
    pipe = workplace.root / "pipe"
    os.mkfifo(pipe)
    process = workplace.start("-f", pipe)
    # It opens only when the other side is there, past all imports.
    with pipe.open("wb"):
        # A signal just before a read leaves it blocked: Python's handler runs between two instructions.
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "SZ":
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        printed, log = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, printed, log) == (143, "", "Interrupted before it was done.\n")


def test_ctrl_c_while_modules_are_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The entry itself imports next to nothing."""

    def interrupted(_arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("lora_trainer.commands.run_command", interrupted)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert cli.main(["verify", "x"]) == 143
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "Interrupted before it was done.\n"


@pytest.mark.parametrize(
    ("error", "level", "line"),
    [
        (TerminatedError("asked to stop"), "WARNING", "asked to stop"),
        (DatasetError("no rows"), "ERROR", "DatasetInvalid: no rows"),
    ],
)
def test_a_stage_that_was_asked_to_stop_logs_no_error(
    caplog: pytest.LogCaptureFixture, error: TrainerError, level: str, line: str
) -> None:
    """It was a person's wish as often as a node's."""

    def stage() -> None:
        raise error

    assert guarded(stage, Reporter(None)) == error.code
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [(level, line)]


def test_ctrl_c_twice_ends_at_once(tmp_path: Path) -> None:
    """The first one lets the stage save; SIGTERM may come as often as it likes."""
    called: list[Any] = []

    class Stages:
        def stop(self) -> None:
            called.append("stop")

        def abort(self, failure: object) -> None:
            called.append(failure)

    supervisor = Supervisor(config=make_config(), settings=Settings(volumes=Volumes(claims=tmp_path), port=None))
    supervisor.stages = Stages()  # type: ignore[assignment]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        supervisor._stop(number, None)
    assert called == ["stop", "stop", STOPPED]
