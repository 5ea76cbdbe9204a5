"""What the demo shows and decides, without a cluster."""

import shlex
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from demoflow import ask, cli, cluster, monitoring, packages, picture, progress, report, run
from demoflow.cluster import Images
from demoflow.errors import DemoError
from demoflow.packages import Packages
from localcluster import client
from localcluster.client import Client
from localcluster.console import Console
from lora_client.commands import app
from lora_client.views.answers import Answer, side_by_side


def resource(*conditions: tuple[str, str, str, str], **status: Any) -> dict[str, Any]:
    """Build a LoRAFineTune with conditions given as (type, status, reason, message)."""
    keys = ("type", "status", "reason", "message")
    return {"status": {"conditions": [dict(zip(keys, found, strict=True)) for found in conditions], **status}}


COMPLETE = ("Complete", "True", "Succeeded", "done")
FAILED = ("Failed", "True", "DatasetInvalid", "line 3: no messages")
RUNNING = ("Complete", "Unknown", "Training", "step 3 of 12")


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ({"metadata": {}}, "Pending"),
        (
            resource(
                ("Complete", "Unknown", "Unschedulable", ""),
                ("PodsReady", "False", "Unschedulable", "0/1 nodes are available: 1 Insufficient cpu"),
            ),
            "Unschedulable: 0/1 nodes are available: 1 Insufficient cpu",
        ),
        (
            resource(
                ("Complete", "Unknown", "SuspendedByUser", ""),
                ("Suspended", "True", "SuspendedByUser", "spec.suspend is true"),
            ),
            "SuspendedByUser: spec.suspend is true",
        ),
        (
            resource(
                RUNNING,
                ("Suspended", "False", "NotSuspended", "The run is not suspended"),
                ("PodsReady", "True", "PodRunning", "the pod runs"),
                progress={
                    "phase": "Training",
                    "steps": "3/12",
                    "loss": "3.2001",
                    "tokensPerSecond": "140.0",
                    "eta": "1m5s",
                },
            ),
            "Training · step 3/12 · loss 3.2001 · 140.0 tokens/s · ETA 1m5s",
        ),
    ],
)
def test_the_progress_line_says_what_runs_or_what_it_waits_for(given: dict[str, Any], want: str) -> None:
    """Phase and numbers while it runs, reason and message while it waits."""
    assert progress.line(given) == want


def test_a_run_has_ended_only_with_a_terminal_condition() -> None:
    """Complete=Unknown is not an end; Failed=True is, and tells its reason."""
    assert not progress.has_ended(resource(RUNNING))
    assert progress.has_ended(resource(COMPLETE))
    assert progress.has_ended(resource(FAILED))
    assert not progress.is_complete(resource(FAILED))
    assert progress.failure(resource(FAILED)) == "DatasetInvalid: line 3: no messages"


def test_a_finished_run_is_left_alone_and_a_running_one_is_followed() -> None:
    """The demo takes the first free name, or the run that is under way."""
    assert run.choose_name({}) == run.Started(name="support-tone", note="")
    assert run.choose_name({"support-tone": resource(RUNNING)}).name == "support-tone"
    second = run.choose_name({"support-tone": resource(COMPLETE)})
    assert second.name == "support-tone-2"
    assert "support-tone is finished" in second.note
    third = run.choose_name({"support-tone": resource(FAILED), "support-tone-2": resource(RUNNING)})
    assert third.name == "support-tone-2"
    assert "following it" in third.note


def test_a_second_run_gets_a_name_and_a_folder_of_its_own() -> None:
    """Only name and output change."""
    text = (run.EXAMPLES / "quickstart.yaml").read_text()
    changed = run.renamed(text, "support-tone-2").splitlines()
    differing = [line for line in changed if line not in text.splitlines()]
    assert differing == [
        "metadata: {name: support-tone-2}",
        '  output: {uri: "pvc://adapters/support-tone-2"}',
    ]


def test_losses_are_shown_with_their_standard_errors() -> None:
    """Before, after, the paired improvement, and on how many rows."""
    status = {
        "dataset": {"validationSamples": 50},
        "results": {
            "evalLossBefore": "5.4428",
            "evalLossBeforeStandardError": "0.0679",
            "evalLossAfter": "2.1",
            "evalLossAfterStandardError": "0.05",
            "improvementStandardError": "0.06",
            "heldOut": True,
            "verification": {"loss": "2.1000004", "difference": "0.0000004", "tolerance": "0.001"},
        },
    }
    lines = report.losses(status).splitlines()
    assert lines[0] == "Loss on 50 held-out rows, in nats per token (± standard error):"
    assert lines[1].split() == ["base", "model", "5.443", "±", "0.068"]
    assert lines[2].split() == ["with", "adapter", "2.100", "±", "0.050"]
    assert lines[3].split() == ["improvement", "3.343", "±", "0.060"]
    assert lines[4].endswith("measured 2.100: verified.")


def test_answers_stand_beside_each_other() -> None:
    """Both columns wrap at their width and stay aligned."""
    answer = Answer(question="Where?", base="one two three four five six seven", adapter="Ahoy!")
    lines = side_by_side([answer], 60).splitlines()
    assert lines[0] == "Q: Where?"
    bars = {line.index("│") for line in lines[1:]}
    assert len(bars) == 1
    assert lines[1].split("│")[1].strip() == "With the adapter:"
    assert lines[2].split("│")[1].strip() == "Ahoy!"
    assert lines[2].split("│")[0].strip().startswith("one two")
    assert lines[3].split("│")[0].strip().endswith("seven …")
    assert max(len(line) for line in lines) <= 60


def test_answers_are_read_from_a_log_with_warnings_before_them() -> None:
    """The list at the end counts; a log without one is an error with a sentence."""
    log = 'a warning [1]\n[\n  {"question": "Q", "base": "B [x]", "adapter": "A"}\n]\n'
    assert ask.parse(log) == [Answer(question="Q", base="B [x]", adapter="A")]
    with pytest.raises(DemoError, match="printed no answers"):
        ask.parse("nothing")


def test_the_pod_that_asks_reads_the_adapter_from_its_claim() -> None:
    """The claim is mounted read-only, and the stand-in's address is set only where one is used."""
    rendered = ask.pod("image:1", "pvc://adapters/support-tone", "http://hub")["spec"]
    container = rendered["containers"][0]
    assert container["args"][1] == "--adapter=/claims/adapters/support-tone"
    assert {"name": "claim", "mountPath": "/claims/adapters", "readOnly": True} in container["volumeMounts"]
    assert {"name": "HF_ENDPOINT", "value": "http://hub"} in container["env"]
    plain = ask.pod("image:1", "pvc://adapters/support-tone", "")["spec"]["containers"][0]["env"]
    assert "HF_ENDPOINT" not in {variable["name"] for variable in plain}


def test_the_next_steps_serve_the_adapter_as_the_status_says() -> None:
    """With its flags, on the very base that it was made of; a folder of this machine has no revision."""
    flags = "--enable-lora --max-lora-rank 32"
    artifact = {"uri": "pvc://adapters/support-tone", "baseRevision": "c0ffee", "serving": flags}
    text = report.next_steps(artifact, "/data/support-tone", model="org/name", name="support-tone", namespace="demo")
    typed = f"{flags} --lora-modules support-tone=/data/support-tone"
    assert f"vllm serve org/name --revision c0ffee {typed}" in text
    assert 'PeftModel.from_pretrained(base, "/data/support-tone")' in text
    local = report.next_steps(artifact, "/data/support-tone", model="/models/m", name="support-tone", namespace="demo")
    assert f"vllm serve /models/m {typed}" in local


LOCAL = Client(name="local", kubeconfig=Path("/c/kubeconfig"), path="/c/kubernetes:/c/helm:/usr/bin")
THEIRS = Client(name=None, kubeconfig=Path("/home/me/.kube/config"), path="/usr/bin")


@pytest.mark.parametrize(("client", "folder"), [(LOCAL, "/data/support-tone"), (THEIRS, None)])
def test_the_next_steps_work_in_the_order_that_they_are_shown(client: Client, folder: str | None) -> None:
    """On the local cluster the kubeconfig first; then the client, beside the demo; what names the copy comes later."""
    artifact = {"uri": "pvc://adapters/support-tone", "baseRevision": "c0ffee", "serving": "--enable-lora"}
    places = {"model": "org/name", "name": "support-tone", "namespace": "lora-demo"}
    steps = report.next_steps(artifact, folder, **places, first=cli._opening(client)).splitlines()
    typed = [line.strip() for line in steps if line.startswith("  ") and not line.startswith("  #")]
    if client is LOCAL:
        assert typed.pop(0) == "export KUBECONFIG=/c/kubeconfig PATH=/c/kubernetes:$PATH"
    assert typed[:2] == [
        '.venv/bin/lora ask support-tone "Do you sell umbrellas?" -n lora-demo',
        ".venv/bin/lora pull support-tone build/support-tone -n lora-demo",
    ]
    for _, verb, *rest in map(shlex.split, typed[:2]):
        get_command(app).commands[verb].make_context(verb, rest)  # type: ignore[attr-defined]
    assert not [line for line in typed if "KUBECONFIG" in line]
    assert typed[-1].endswith(f'(base, "{folder or "build/support-tone"}")')
    assert "KUBECONFIG" not in cli._closing(client, with_stand_in=True)


@pytest.mark.parametrize(
    ("client", "hub", "want"),
    [
        (
            THEIRS,
            None,
            ["kubectl delete namespace lora-demo", "helm -n lora-system uninstall lora-finetune-operator"],
        ),
        (LOCAL, "localhost:5000/lora-hub:1", ["hack/cluster down"]),
    ],
    ids=["the user's own cluster", "the local cluster"],
)
def test_the_demo_ends_with_the_commands_that_take_it_away(
    client: Client,
    hub: str | None,
    want: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a cluster that stays, the release and the namespace of the runs; the local cluster whole."""
    artifact: dict[str, Any] = {"uri": "pvc://adapters/support-tone", "sizeBytes": 1, "digest": "sha256:ab"}
    artifact |= {"serving": "--enable-lora", "baseRevision": "c0ffee"}
    images = Images(operator="registry/operator:1", trainer="registry/trainer:2", hub=hub)
    monkeypatch.delenv("MONITORING", raising=False)
    answers: dict[tuple[Any, str], Any] = {
        (cluster, "prepare"): client,
        (cluster, "images"): images,
        (cli, "deploy"): "http://hub",
        (run, "install_chart"): None,
        (run, "start"): run.Started(name="support-tone", note=""),
        (run, "follow"): resource(COMPLETE, artifact=artifact),
        (run, "local_folder"): None,
        (run, "columns"): "NAME",
        (ask, "ask"): [],
        (report, "losses"): "",
    }
    for (module, name), answer in answers.items():
        monkeypatch.setattr(module, name, lambda *_, answer=answer, **__: answer)
    assert cli.main([] if hub else ["--real-hub"]) == 0
    closing = capsys.readouterr().out.partition("  # clean up" if client is THEIRS else "  # end the cluster")[2]
    assert [line.strip() for line in closing.splitlines()[1:] if line.startswith("  ")] == want


def test_a_cluster_of_the_user_s_own_is_rid_of_the_stand_in_too() -> None:
    """Which has a namespace of its own."""
    assert "kubectl delete namespace lora-demo lora-demo-hub\n" in cli._closing(THEIRS, with_stand_in=True)


def test_what_was_published_is_named_with_its_size_and_place() -> None:
    """Claim path always, the folder of this machine where there is one."""
    artifact = {"uri": "pvc://adapters/support-tone", "sizeBytes": 3 * 2**20, "digest": "sha256:ab"}
    assert report.whereabouts(artifact, None) == "Adapter: pvc://adapters/support-tone  (3.0 MiB, sha256:ab)"
    assert report.whereabouts(artifact, "/data/x").endswith("\n  here:  /data/x")


def test_the_chart_is_installed_with_the_callers_settings_once_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo and the end-to-end tests want different paces."""
    asked: list[str] = []

    def helm(_: Client, *arguments: str, **__: object) -> str:
        asked.extend(arguments)
        return "[]"

    monkeypatch.setattr(Client, "helm", helm)
    images = Images(
        operator="localhost:5000/lora-operator:1",
        trainer="localhost:5000/lora-trainer:2",
        preflight="localhost:5000/lora-preflight:3",
        hub=None,
    )
    client = Client(name=None, kubeconfig=Path("config"), path="")
    run.install_chart(client, images, "", "--set=config.workers=3", timeout_s=9)
    assert [text for text in asked if text.startswith("--set=")] == ["--set=config.workers=3"]
    assert "--set-string=trainer.image.tag=2" in asked
    assert "--set-string=preflight.image.repository=localhost:5000/lora-preflight" in asked


@pytest.mark.parametrize("made_by_the_demo", [True, False])
def test_a_release_that_somebody_else_installed_is_left_as_it_is(
    made_by_the_demo: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster of the user's own the operator of that name may be the one that everybody there relies on."""
    asked: list[tuple[str, ...]] = []

    def helm(_: Client, *arguments: str, **__: object) -> str:
        asked.append(arguments)
        theirs = any(text.startswith("--selector=") for text in arguments) and not made_by_the_demo
        return "[]" if theirs else '[{"name": "lora-finetune-operator"}]'

    monkeypatch.setattr(Client, "helm", helm)
    images = Images(operator="ghcr.io/acme/lora-operator:1", trainer="ghcr.io/acme/lora-trainer:2", hub=None)
    client = Client(name=None, kubeconfig=Path("config"), path="")
    if made_by_the_demo:
        run.install_chart(client, images, "", timeout_s=9)
        assert (asked[-1][0], asked[-1][-3]) == ("upgrade", "--labels=made-by=lora-demo")
        return
    with pytest.raises(DemoError, match=r"^Release lora-finetune-operator in namespace lora-system .* uninstall it"):
        run.install_chart(client, images, "", timeout_s=9)
    assert {arguments[0] for arguments in asked} == {"list"}


OUTPUT = """== installing the pinned Python packages into .venv
ok start cluster local (node node-1 is Ready)  12 s
   train support-tone: 20 s so far, Training · step 8/51
ok train support-tone (51 steps on cpu)  1 min 12 s

$ kubectl -n lora-demo get lft support-tone -o wide
NAME           STATE

Loss on 50 held-out rows, in nats per token (± standard error):
  improvement   3.129 ± 0.052

Q: one?
  Base model:  │  With the adapter:

Q: two?
  Base model:  │  With the adapter:

Q: three?

Adapter: pvc://adapters/support-tone
"""


def test_the_picture_shows_the_end_of_a_demo_without_its_progress() -> None:
    """And loads no font from anywhere, as Rich's own pictures do."""
    assert picture.shown(OUTPUT) == [
        "$ make demo",
        "…",
        "ok train support-tone (51 steps on cpu)  1 min 12 s",
        "",
        "Loss on 50 held-out rows, in nats per token (± standard error):",
        "  improvement   3.129 ± 0.052",
        "",
        "Q: one?",
        "  Base model:  │  With the adapter:",
        "",
        "Q: two?",
        "  Base model:  │  With the adapter:",
    ]
    drawn = picture.draw(OUTPUT)
    assert "Q:&#160;two?" in drawn
    assert "url(http" not in drawn
    with pytest.raises(ValueError, match="draw the picture from a demo that went to its end"):
        picture.draw(OUTPUT.partition("Loss on")[0])


@pytest.mark.parametrize(("value", "want"), [(None, False), ("0", False), ("1", True)])
def test_the_demo_is_watched_where_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, value: str | None, want: bool
) -> None:
    """By MONITORING=1, on the cluster that the demo starts."""
    monkeypatch.delenv("CLUSTER", raising=False)
    monkeypatch.delenv("MONITORING", raising=False)
    if value is not None:
        monkeypatch.setenv("MONITORING", value)
    assert monitoring.is_wanted() is want


@pytest.mark.parametrize(
    ("value", "cluster", "words"),
    [
        ("yes", "local", "MONITORING=yes must be 1"),
        ("1", "current", "is for the local cluster: .* docs/monitoring.md"),
    ],
)
def test_a_watch_that_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str, cluster: str, words: str
) -> None:
    """Before anything is built."""
    monkeypatch.setenv("MONITORING", value)
    monkeypatch.setenv("CLUSTER", cluster)
    with pytest.raises(DemoError, match=words):
        monitoring.is_wanted()


def test_the_local_cluster_is_not_sent_to_the_real_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reaches nothing outside: half an hour of builds would end with a name that does not exist."""
    monkeypatch.delenv("CLUSTER", raising=False)
    with pytest.raises(DemoError, match="--real-hub needs CLUSTER=current"):
        cluster.prepare(with_stand_in=False, draws=False, console=Console())


@pytest.mark.parametrize(
    ("with_stand_in", "is_there", "draws", "made"),
    [
        (True, False, False, ["venv", "model"]),
        (True, True, False, ["client"]),
        (True, True, True, ["venv"]),
        (False, False, False, ["client"]),
        (False, False, True, ["venv"]),
    ],
)
def test_pytorch_is_installed_for_the_model_alone(
    monkeypatch: pytest.MonkeyPatch, with_stand_in: bool, is_there: bool, draws: bool, made: list[str]
) -> None:
    """6 GB that a machine where the model is there already does not need; dashboards are drawn by matplotlib."""
    done: list[str] = []
    monkeypatch.setenv("CLUSTER", "current")
    monkeypatch.setenv("IMAGE_PREFIX", "registry.example.com/team")
    monkeypatch.setattr(packages, "is_current", lambda _: is_there)
    monkeypatch.setattr(Packages, "make", lambda _, target: done.append(target))
    monkeypatch.setattr(Packages, "convert", lambda _: done.append("model"))
    monkeypatch.setattr(client, "current", lambda: None)
    cluster.prepare(with_stand_in=with_stand_in, draws=draws, console=Console())
    assert done == ["python", *made]


def test_packages_that_cannot_be_installed_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the place of pip's own words, before Kubernetes is started."""
    monkeypatch.setattr(packages, "cache_root", lambda: tmp_path)
    with pytest.raises(DemoError, match=f"could not be installed; {tmp_path}/python-packages.log says why"):
        Packages().make("no-such-target")
    assert "No rule to make target" in (tmp_path / "python-packages.log").read_text()

    monkeypatch.delenv("CLUSTER", raising=False)
    monkeypatch.setattr(Packages, "make", lambda _, target: None)
    monkeypatch.setattr(Packages, "install", lambda _, **_chosen: no_network())
    commands: list[str] = []

    def takes_a_moment(command: str) -> None:
        commands.append(command)
        time.sleep(0.2)

    monkeypatch.setattr(cluster, "hack_cluster", takes_a_moment)
    with pytest.raises(DemoError, match="no network"):
        cluster.prepare(with_stand_in=True, draws=False, console=Console())
    assert commands == ["build"]


def no_network() -> None:
    """As pip ends without one."""
    raise DemoError("no network")


def test_a_machine_without_make_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`hack/demo` is started by hand there."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DemoError, match="needs make"):
        Packages().make("client")


def test_nobody_waits_for_packages_once_the_cluster_has_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """6 GB would be installed before the terminal is free again."""
    begun = threading.Event()
    monkeypatch.delenv("CLUSTER", raising=False)
    monkeypatch.setattr(packages, "cache_root", lambda: tmp_path)

    def make(installing: Packages, target: str) -> None:
        if target != "python":
            begun.set()
            installing._run(["sleep", "600"], {}, "sleep.log", "It failed")

    def fails(_command: str) -> None:
        begun.wait()
        raise DemoError("Go is too old")

    monkeypatch.setattr(Packages, "make", make)
    monkeypatch.setattr(cluster, "hack_cluster", fails)
    began = time.monotonic()
    with pytest.raises(DemoError, match="Go is too old"):
        cluster.prepare(with_stand_in=True, draws=False, console=Console())
    assert time.monotonic() - began < 300
