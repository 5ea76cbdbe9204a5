"""Color on a terminal alone, and which runs are listed: of a namespace, of all, of another context's cluster."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.client.resources import condition, finished, resource, training
from tests.unit.client.terminals import printed_on_a_terminal

from lora_client.__main__ import main

Object = dict[str, Any]
RED, GREEN, YELLOW, BOLD = (f"\x1b[{number}m" for number in (31, 32, 33, 1))
FAILED = {"conditions": [condition("Failed", "True", "DatasetInvalid", "line 17")]}


def run_in(namespace: str, name: str, status: Object) -> Object:
    """A run of a namespace."""
    run = resource(name, status=status)
    run["metadata"]["namespace"] = namespace
    return run


HERE = [
    run_in("team-b", "bad", FAILED),
    run_in("team-a", "tone", finished()),
    run_in("team-b", "at-work", training()),
]
THERE = [run_in("team-c", "elsewhere", finished())]


class _Server(ThreadingHTTPServer):
    def __init__(self, runs: list[Object]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs = runs


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        """The runs of all namespaces or of one, or one run by its name."""
        place = self.path.partition("?")[0].removeprefix("/apis/lora-operator.io/v1alpha1").split("/")
        everywhere = "namespaces" not in place
        found = [run for run in self.server.runs if everywhere or run["metadata"]["namespace"] == place[2]]
        answer: Object = {"kind": "LoRAFineTuneList", "items": found, "metadata": {}}
        if place[-1] != "lorafinetunes":
            (answer,) = (run for run in found if run["metadata"]["name"] == place[-1])
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """Keep quiet."""


@contextmanager
def api_server(runs: list[Object]) -> Iterator[str]:
    """The address of one that has these runs."""
    server = _Server(runs)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A kubeconfig of two: the current context is of team-a here, the other of team-c there."""
    with api_server(HERE) as here, api_server(THERE) as there:
        contexts = [("here", here, "team-a"), ("there", there, "team-c")]
        document = {
            "current-context": "here",
            "clusters": [{"name": name, "cluster": {"server": server}} for name, server, _ in contexts],
            "contexts": [
                {"name": name, "context": {"cluster": name, "user": "u", "namespace": namespace}}
                for name, _, namespace in contexts
            ],
            "users": [{"name": "u", "user": {"token": "t"}}],
        }
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(document))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        for name in ("NO_COLOR", "TERM"):
            monkeypatch.delenv(name, raising=False)
        yield


def in_a_pipe(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What it prints there."""
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_on_a_terminal_a_run_has_the_color_of_its_state(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the same text as in a pipe."""
    plain = in_a_pipe(capsys, "list", "-A")
    monkeypatch.setenv("TERM", "xterm")
    drawn = printed_on_a_terminal(monkeypatch, "list", "-A")
    colors = [line.partition("m")[0] + "m" for line in drawn.splitlines()]
    assert colors == [BOLD, GREEN, YELLOW, RED]
    assert all(line.endswith("\x1b[0m") for line in drawn.splitlines())
    for color in (*colors, "\x1b[0m"):
        drawn = drawn.replace(color, "")
    assert drawn == plain
    assert printed_on_a_terminal(monkeypatch, "status", "tone").startswith(f"{GREEN}team-a/tone: ")


@pytest.mark.parametrize(
    ("variables", "want"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({}, False),
    ],
)
@pytest.mark.parametrize("arguments", [("list",), ("status", "tone")])
def test_color_appears_where_the_user_s_terminal_takes_it(
    variables: Mapping[str, str],
    want: bool,
    arguments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An empty NO_COLOR is none; in a pipe there is never any."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ("\x1b" in printed_on_a_terminal(monkeypatch, *arguments)) is want
    assert "\x1b" not in in_a_pipe(capsys, *arguments)


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ([], ["tone"]),
        (["-n", "team-b"], ["at-work", "bad"]),
        (["-A"], ["team-a tone", "team-b at-work", "team-b bad"]),
        (["--all-namespaces", "-n", "team-a"], ["team-a tone", "team-b at-work", "team-b bad"]),
        (["--context", "there"], ["elsewhere"]),
        (["--context", "there", "-A"], ["team-c elsewhere"]),
        (["--context", "here"], ["tone"]),
    ],
)
def test_the_runs_of_the_namespace_and_the_cluster_that_are_meant_are_listed(
    options: list[str], want: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """By namespace and name; the namespace has a column where there are several."""
    head, *rows = (line.split() for line in in_a_pipe(capsys, "list", *options).splitlines())
    columns = head.index("STATE")
    assert head[:columns] == ["NAMESPACE", "NAME"][-columns:]
    assert [" ".join(row[:columns]) for row in rows] == want
