"""Trackers get the curve where they can, and a run that loses its tracker does not notice."""

import dataclasses
import importlib
import json
import logging
import socket
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.conftest import make_config

from lora_trainer.host.child import stage_environment
from lora_trainer.host.trackers import STATE, State, UnusableError, open_backend
from lora_trainer.host.tracking import Follower, tracked, without_secrets
from lora_trainer.result.tensorboard import write_events
from lora_trainer.spec.config import Tracker, TrackingConfig, TrainConfig
from lora_trainer.storage.curve_records import METRICS, MetricsFile, Record

WARNING = "tracking.kind is MLflow: ConnectionError: away; the run continues without it"


def config_for(kind: Tracker, project: str | None = "tone") -> TrainConfig:
    """A run with a tracker."""
    return dataclasses.replace(make_config(), tracking=TrackingConfig(kind=kind, project=project))


def train(folder: Path, first: int = 1, last: int = 3) -> None:
    """A few steps with evaluations before and after."""
    metrics = MetricsFile(folder / METRICS, wall_clock=lambda: 1000.5)
    metrics.begin(first - 1)
    if first == 1:
        metrics.add(0, eval_loss=9.0, eval_loss_standard_error=0.5)
    for step in range(first, last + 1):
        metrics.add(step, loss=1.0 / step, learning_rate=0.25, tokens=7)
    metrics.add(last, eval_loss=0.5, eval_loss_standard_error=0.25)


def run(kind: Tracker, folder: Path, flush_s: float = 240.0, **environment: str) -> None:
    """A whole training, followed by the tracker's own process."""
    config = config_for(kind)
    (folder / "config.json").write_text(config.to_json(), encoding="utf-8")
    with tracked(config, folder / "config.json", folder, environment, flush_s):
        train(folder)


class Spy:
    """A tracker that can be away."""

    where = "spy"

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.statuses: list[str] = []
        self.away = False

    def open(self, _state: State) -> "Spy":
        """Connect."""
        return self

    def log(self, records: Sequence[Record]) -> None:
        """See `Backend`."""
        if self.away:
            raise ConnectionError("away")
        self.records += records

    def finish(self, status: str) -> None:
        """See `Backend`."""
        self.statuses.append(status)


@dataclasses.dataclass
class Clock:
    """Seconds, by hand."""

    now: float = 0.0

    def __call__(self) -> float:
        """See `time.monotonic`."""
        return self.now


def follower(folder: Path, spy: Spy, clock: Clock | None = None) -> Follower:
    """One that sends to the spy."""
    return Follower(
        kind=Tracker.MLFLOW,
        metrics=folder / METRICS,
        state_file=folder / STATE,
        opened=spy.open,
        clock=clock or Clock(),
    )


def steps(spy: Spy) -> list[tuple[int, str]]:
    """What the spy got."""
    return [(record["step"], "eval" if "eval_loss" in record else "step") for record in spy.records]


EVERYTHING = [(0, "eval"), (1, "step"), (2, "step"), (3, "step"), (3, "eval")]


def test_lines_are_sent_once_as_they_come(tmp_path: Path) -> None:
    """Not before a line is whole, and with the status at the end."""
    spy = Spy()
    followed = follower(tmp_path, spy)
    followed.turn()
    train(tmp_path)
    whole = (tmp_path / METRICS).read_text(encoding="utf-8")
    with (tmp_path / METRICS).open("a", encoding="utf-8") as stream:
        stream.write(whole.splitlines()[-2].replace('"step": 3', '"step": 4')[:-5])
    followed.turn()
    followed.turn()
    assert steps(spy) == EVERYTHING
    with (tmp_path / METRICS).open("a", encoding="utf-8") as stream:
        stream.write(whole.splitlines()[-2][-5:] + "\n")
    followed.end("FINISHED")
    assert steps(spy) == [*EVERYTHING, (4, "step")]
    assert spy.statuses == ["FINISHED"]


def test_the_next_attempt_sends_what_is_new(tmp_path: Path) -> None:
    """It takes steps 2 and 3 again from a checkpoint: the file is another one, the tracker has these steps already."""
    spy = Spy()
    train(tmp_path)
    follower(tmp_path, spy).end("FAILED")
    followed = follower(tmp_path, spy)
    followed.turn()
    train(tmp_path, 2, 5)
    followed.turn()
    assert steps(spy) == [*EVERYTHING, (4, "step"), (5, "step"), (5, "eval")]


def test_a_tracker_that_is_away_gets_everything_once_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Tried again every half a minute, with one warning."""
    spy, clock = Spy(), Clock()
    spy.away = True
    followed = follower(tmp_path, spy, clock)
    train(tmp_path)
    with caplog.at_level(logging.WARNING):
        followed.turn()
        clock.now = 31
        followed.turn()
        spy.away = False
        clock.now = 60
        followed.turn()
        assert spy.records == []
        clock.now = 62
        followed.turn()
    assert steps(spy) == EVERYTHING
    assert [record.getMessage() for record in caplog.records] == [WARNING]


def test_a_tracker_that_cannot_be_had_is_not_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A missing package will not come."""
    tried = []

    def missing(_state: State) -> Spy:
        tried.append(1)
        raise UnusableError("the package mlflow is not installed in the trainer's image")

    clock = Clock()
    followed = follower(tmp_path, Spy(), clock)
    followed.opened = missing
    for clock.now in (0, 100):
        followed.turn()
    followed.end("FINISHED")
    assert len(tried) == 1
    assert "not installed in the trainer's image; the run continues without it" in caplog.text


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Tracker.MLFLOW, "there is no address of a tracking server (MLFLOW_TRACKING_URI)"),
        (Tracker.WANDB, "there is no key (WANDB_API_KEY): set tracking.secretRef to a Secret that has it"),
    ],
)
def test_what_a_tracker_needs_is_named(tmp_path: Path, kind: Tracker, sentence: str) -> None:
    """Before its client would ask at a terminal, or write to a folder of its own choice."""
    with pytest.raises(UnusableError) as caught:
        open_backend(config_for(kind), tmp_path, State(), {})
    assert str(caught.value) == sentence


@pytest.mark.parametrize("kind", [Tracker.TENSORBOARD, Tracker.MLFLOW, Tracker.WANDB])
def test_a_package_that_is_missing_is_named(
    tmp_path: Path, kind: Tracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Trackers are extras of the image."""

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name=name.partition(".")[0])

    monkeypatch.setattr(importlib, "import_module", missing)
    environment = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "WANDB_API_KEY": "k"}
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    with pytest.raises(UnusableError, match=rf"the package {kind.value.lower()} is not installed"):
        open_backend(config_for(kind), tmp_path, State(), environment)
    write_events([], tmp_path / "events")
    assert "no event files for TensorBoard: the package tensorboard is not installed" in caplog.text


def test_secrets_stay_out_of_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients quote addresses and keys."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@mlflow")
    monkeypatch.setenv("WANDB_API_KEY", "key-1234")
    text = without_secrets(ValueError("http://me:hunter2@mlflow refused hunter2 and key-1234"))
    assert text == "ValueError: http://…@mlflow refused … and …"


@pytest.mark.parametrize(
    "token", ["dapi0123456789abcdef\n", "dapi0123 456789abcdef", "dapi0123\n456789abcdef", "da'pi"]
)
@pytest.mark.parametrize("form", ["{token}", "{token!r}", "{bearer!r}"])
def test_a_key_stays_out_of_warnings_however_it_was_stored_and_is_quoted(
    monkeypatch: pytest.MonkeyPatch, token: str, form: str
) -> None:
    """HTTP clients quote a header that they refuse as Python does; where the text is cut, no part of a key is left."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", token)
    for before in ("", "x" * 375 + " "):
        text = without_secrets(ValueError(before + form.format(token=token, bearer=f"Bearer {token}")))
        assert "da" not in text
        assert "cdef" not in text


def test_a_password_in_the_trackers_address_is_known_decoded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the client sends it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:h%40nter2@mlflow")
    assert without_secrets(ValueError("no h@nter2, no h%40nter2")) == "ValueError: no …, no …"


def test_a_trackers_key_comes_to_its_client_without_the_newline_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With which no HTTP client would send it."""
    given: dict[str, str] = {}

    def started(_command: Any, *, env: dict[str, str], **_options: Any) -> None:
        given.update(env)
        raise OSError("seen")

    monkeypatch.setattr("lora_trainer.host.tracking.subprocess.Popen", started)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "dapi\n")
    config = config_for(Tracker.MLFLOW)
    with pytest.raises(OSError, match="seen"), tracked(config, tmp_path / "config.json", tmp_path, {"OTHER": " "}):
        pass
    assert (given["MLFLOW_TRACKING_TOKEN"], given["OTHER"]) == ("dapi", " ")


def test_no_stage_gets_the_key_of_a_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would lie in the memory of every library that a training loads."""
    monkeypatch.setenv("WANDB_API_KEY", "key-1234")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow")
    environment = stage_environment()
    assert "key-1234" not in environment.values()
    assert environment["MLFLOW_TRACKING_URI"] == "http://mlflow"


def test_tensorboard_gets_event_files(tmp_path: Path) -> None:
    """Every value at its step and time, by TensorBoard's own reader."""
    run(Tracker.TENSORBOARD, tmp_path)
    loader: Any = importlib.import_module("tensorboard.backend.event_processing.event_file_loader")
    (file,) = (tmp_path / "tensorboard").iterdir()
    events = loader.EventFileLoader(str(file)).Load()
    values = [
        (event.step, value.tag, round(value.tensor.float_val[0], 4), event.wall_time)
        for event in events
        for value in event.summary.value
    ]
    assert (3, "train/loss", 0.3333, 1000.5) in values
    assert (0, "eval/loss", 9.0, 1000.5) in values
    assert len(values) == 3 * 2 + 2 * 2


class _MlflowApi(BaseHTTPRequestHandler):
    """The part of MLflow's REST API that its client uses for a run."""

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(document)

    def _answer(self, document: dict[str, Any]) -> None:
        server: Any = self.server
        call = self.path.partition("?")[0].removeprefix("/api/2.0/mlflow/")
        server.calls.append((call, document))
        server.credentials.add(self.headers["Authorization"])
        run_info = {"run_id": "run-7", "experiment_id": "3", "status": "RUNNING", "start_time": 1, "artifact_uri": "a"}
        answers = {
            "experiments/create": {"experiment_id": "3"},
            "runs/create": {"run": {"info": run_info, "data": {}}},
            "runs/update": {"run_info": run_info},
            "runs/get": {"run": {"info": run_info, "data": {}}},
            "runs/log-batch": {},
        }
        missing = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"}
        body = json.dumps(answers.get(call, missing)).encode()
        self.send_response(200 if call in answers else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the signature of http.server
        pass


@pytest.fixture
def mlflow_server() -> Iterator[Any]:
    """A stand-in that remembers what it was sent."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _MlflowApi)
    server.calls, server.credentials = [], set()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_mlflow_gets_the_curve_and_every_hyperparameter(tmp_path: Path, mlflow_server: Any) -> None:
    """Through its own client, with the Secret's token; the next attempt goes on with the same run."""
    address = f"http://127.0.0.1:{mlflow_server.server_port}"
    run(Tracker.MLFLOW, tmp_path, MLFLOW_TRACKING_URI=address, MLFLOW_TRACKING_TOKEN="t-1")
    calls: list[tuple[str, dict[str, Any]]] = mlflow_server.calls
    created = next(document for call, document in calls if call == "runs/create")
    assert (created["experiment_id"], created["run_name"]) == ("3", "tiny")
    batches = [document for call, document in calls if call == "runs/log-batch"]
    metrics = {(m["key"], m["step"]): (m["value"], m["timestamp"]) for b in batches for m in b.get("metrics", ())}
    assert metrics["train/loss", 2] == (0.5, 1000500)
    assert metrics["eval/loss", 0] == (9.0, 1000500)
    assert {p["key"]: p["value"] for b in batches for p in b.get("params", ())}["lora.rank"] == "4"
    assert [document for call, document in calls if call == "runs/update"][-1]["status"] == "FINISHED"
    assert mlflow_server.credentials == {"Bearer t-1"}

    calls.clear()
    config = config_for(Tracker.MLFLOW)
    environment = {"MLFLOW_TRACKING_URI": address, "MLFLOW_TRACKING_TOKEN": "t-1"}
    with tracked(config, tmp_path / "config.json", tmp_path, environment, 60.0):
        train(tmp_path, 3, 4)
    assert "runs/create" not in [call for call, _ in calls]
    sent = [(m["key"], m["step"]) for call, b in calls if call == "runs/log-batch" for m in b["metrics"]]
    assert {step for _, step in sent} == {4}
    assert {document["run_id"] for call, document in calls if call in ("runs/update", "runs/log-batch")} == {"run-7"}


def test_wandb_gets_the_curve_without_a_network(tmp_path: Path) -> None:
    """Its offline mode writes what `wandb sync` sends later."""
    run(Tracker.WANDB, tmp_path, WANDB_MODE="offline", WANDB_CACHE_DIR=str(tmp_path / "cache"))
    (log,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    content = log.read_bytes()
    assert [name in content for name in (b"train/loss", b"eval/loss", b"lora.rank", b"tone")] == [True] * 4


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that accepts connections and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(240)
        yield server


@pytest.mark.parametrize("kind", [Tracker.MLFLOW, Tracker.WANDB])
def test_a_server_that_hangs_costs_a_run_nothing(
    tmp_path: Path, kind: Tracker, silent: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """Once the tracker hangs on it, the run ends as always, and the tracker's process with it."""
    address = f"http://127.0.0.1:{silent.getsockname()[1]}"
    environment = {"MLFLOW_TRACKING_URI": address, "WANDB_BASE_URL": address, "WANDB_API_KEY": "k" * 40}
    config = config_for(kind)
    (tmp_path / "config.json").write_text(config.to_json(), encoding="utf-8")
    with tracked(config, tmp_path / "config.json", tmp_path, environment, 0.1):
        train(tmp_path)
        connection, _ = silent.accept()
    with connection:
        connection.settimeout(240)
        while connection.recv(65536):
            pass
    assert f"{kind.value} did not take the end of the curve within" in caplog.text


def test_a_server_that_is_away_costs_a_run_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One warning, in the log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        run(Tracker.MLFLOW, tmp_path, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free.getsockname()[1]}")
    text = capfd.readouterr().err
    assert text.count("WARNING tracking.kind is MLflow: ") == 1
    assert text.count("; the run continues without it") == 1


def test_a_run_without_a_tracker_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off by default."""
    monkeypatch.setattr("subprocess.Popen", None)
    with tracked(make_config(), tmp_path / "none", tmp_path, {}):
        train(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]
