"""Every verb of the client on a real API server, with the rights of the role `edit` alone."""

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.component.client_account import Person, install_roles, person
from tests.component.documents import Object, failed, finetune, succeeded
from tests.component.patience import DEADLINE_S, eventually
from tests.component.stage import Stage

from localcluster.client import Client
from lora_client import LoRAClient
from lora_client.__main__ import main
from lora_client.cluster.connection import ApiError, connect
from lora_client.errors import ClientError
from lora_client.runs import ClusterRun
from lora_trainer.spec.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How the command ended and what it printed."""

    code: int
    out: str
    err: str


Lora = Callable[..., Answer]


@pytest.fixture(scope="session")
def roles(control_plane: Client, definition: None) -> None:
    """The chart's roles for people."""
    install_roles(control_plane)


@pytest.fixture
def user(stage: Stage, roles: None, monkeypatch: pytest.MonkeyPatch) -> Person:
    """Who types; this process is theirs."""
    who = person(stage)
    monkeypatch.setenv("KUBECONFIG", str(who.kubeconfig))
    return who


@pytest.fixture
def lora(user: Person, capsys: pytest.CaptureFixture[str]) -> Lora:
    """The command in this process, which spares the start of another."""

    def run(*arguments: str) -> Answer:
        code = main(arguments)
        printed = capsys.readouterr()
        return Answer(code=code, out=printed.out, err=printed.err)

    return run


def finish(stage: Stage, name: str = "tone", **changes: Any) -> None:
    """A run whose trainer has ended well, as the operator would write it."""
    stage.start()
    stage.apply(name)
    pod = stage.wait_pod(stage.wait_job())
    stage.run_pod(pod)
    stage.end_pod(pod, 0, succeeded(**changes))
    stage.wait_condition("Complete", status="True", name=name)


def test_a_run_from_its_file_to_its_clone(stage: Stage, user: Person, lora: Lora) -> None:
    """validate, run, list, status, explain, suspend, resume, clone, compare: nothing needs more than the role."""
    file = user.file(finetune())
    good = lora("validate", "-f", file)
    assert good.code == 0
    assert all(line.startswith("Note: There is no ") for line in good.err.splitlines()), "the namespace is empty"
    assert good.out == f"tone is good: lora run -f {file} starts it\n"
    assert stage.objects("lorafinetunes") == []
    for outcome in ("created", "unchanged"):
        assert lora("run", "-f", file, "--no-watch").out == f"tone is {outcome} in namespace {stage.namespace}\n"
    assert lora("run", "-f", file, "--no-watch", "-o", "name").out == "lorafinetune.lora-operator.io/tone\n"
    rows = [line.split() for line in lora("list").out.splitlines()]
    assert (rows[0][0], rows[1][0], rows[1][1]) == ("NAME", "tone", "Pending")
    assert json.loads(lora("list", "-o", "json").out)["items"][0]["kind"] == "LoRAFineTune"
    assert "tone: Pending" in lora("status", "tone").out
    assert "managedFields" not in yaml.safe_load(lora("status", "tone", "-o", "yaml").out)["metadata"]
    explained = lora("explain", "tone")
    assert (explained.code, explained.err) == (0, "")
    assert yaml.safe_load(explained.out)["state"] == "Pending"
    assert "is not suspended" in lora("resume", "tone").out
    assert "lora resume tone" in lora("suspend", "tone").out
    assert stage.finetune()["spec"]["suspend"] is True
    assert "lora watch tone" in lora("resume", "tone").out
    assert stage.finetune()["spec"]["suspend"] is False
    assert lora("clone", "tone", "--set", "lora.rank=32", "--dry-run").out.startswith("apiVersion: ")
    assert "tone-2 is made from tone" in lora("clone", "tone", "--set", "lora.rank=32").out
    assert stage.finetune("tone-2")["spec"]["lora"]["rank"] == 32
    assert stage.finetune("tone-2")["spec"]["output"]["uri"] == "pvc://adapters/tone-2"
    compared = lora("compare", "tone", "tone-2").out
    assert ["lora.rank", "16", "32"] in [line.split() for line in compared.splitlines()]


def test_what_defines_a_run_cannot_change_and_the_way_out_is_named(stage: Stage, user: Person, lora: Lora) -> None:
    """As clone."""
    stage.apply()
    refused = lora("run", "-f", user.file(finetune(lora={"rank": 64})), "--no-watch")
    assert (refused.code, refused.out) == (1, "")
    assert "spec.lora.rank" in refused.err
    assert "lora clone NAME --set lora.rank=VALUE" in refused.err
    assert stage.finetune()["spec"]["lora"]["rank"] == 16


def test_every_problem_is_a_sentence(user: Person, lora: Lora) -> None:
    """Types, enums, bounds, rules and unknown fields at once, with our words for other tools'."""
    spec: Object = {
        "lora": {"rank": 2000, "layers": "all-linear", "lora_alpha": 3},
        "quantization": "nf4",
        "training": {
            "learningRate": 0.0001,
            "optimizer": "adamw_8bit",
            "schedule": "cosine",
        },
        "resources": {"gpus": "two"},
        "output": {"uri": "ftp://x"},
    }
    found = lora("validate", "-f", user.file(finetune(**spec)))
    assert (found.code, found.out) == (1, "")
    lines = {line.split(" is ")[0].partition(":")[0]: line for line in found.err.splitlines()}
    assert lines.keys() == {
        "spec.lora.rank",
        "spec.lora.layers",
        "spec.lora.lora_alpha",
        "spec.quantization",
        "spec.training.learningRate",
        "spec.training.optimizer",
        "spec.training.schedule",
        "spec.resources.gpus",
        "spec.output.uri",
    }
    assert lines["spec.lora.layers"].endswith("did you mean AllLinear?")
    assert lines["spec.lora.lora_alpha"].endswith("spec.lora.alpha does this here")
    assert lines["spec.training.optimizer"].endswith("did you mean AdamW8bit?")
    assert 'learningRate: "0.0001"' in lines["spec.training.learningRate"]
    stated = json.loads(lora("validate", "-f", user.file(finetune(**spec)), "-o", "json").out)
    assert stated["valid"] is False
    assert len(stated["problems"]) == len(lines)


def test_the_servers_own_texts_are_sentences_where_the_contract_has_none(
    user: Person, lora: Lora, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a field that this client does not know."""
    monkeypatch.setattr("lora_client.verbs.checking.own_problems", lambda _: ())
    spec: Object = {
        "lora": {"rank": 2000, "layers": "all-linear"},
        "training": {"learningRate": 0.0001, "maxSteps": 0},
        "resources": {"gpus": "two"},
    }
    found = lora("validate", "-f", user.file(finetune(**spec)))
    assert sorted(found.err.splitlines()) == [
        (
            'spec.lora.layers is "all-linear": must be one of AllLinear, Attention, MLP, QueryValue; did you mean '
            "AllLinear?"
        ),
        'spec.lora.rank is "2000": must be at most 1024',
        "spec.resources.gpus is a string: must be a whole number",
        'spec.training.learningRate is a number: must be text, as in learningRate: "0.0002" with the quotes',
        'spec.training.maxSteps is "0": must be at least 1',
    ]


def test_a_finished_run_is_compared_served_and_explained(stage: Stage, user: Person, lora: Lora) -> None:
    """By what the operator wrote."""
    finish(stage)
    status = lora("status", "tone").out
    assert "improvement   1.000 ± 0.050" in status
    assert "Adapter: pvc://adapters/tone/tone-abcde" in status
    assert yaml.safe_load(lora("explain", "tone").out)["observed"]["pods"][0]["trainer"]["exit_code"] == 0
    served = list(yaml.safe_load_all(lora("serve", "tone").out))
    assert [document["kind"] for document in served] == ["Deployment", "Service"]
    stage.cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=lora("serve", "tone", "-o", "json").out)
    assert "has ended (Succeeded)" in lora("suspend", "tone").out
    again = lora("run", "-f", user.file(finetune()))
    assert (again.code, again.out) == (0, f"tone is unchanged in namespace {stage.namespace}\n")
    assert "ago (Succeeded), and nothing was started: lora clone tone" in again.err
    assert lora("watch", "tone").code == 0
    assert lora("list").out.splitlines()[1].split()[1] == "Succeeded"


def test_the_role_may_read_a_place_in_a_queue(stage: Stage, user: Person) -> None:
    """Rights are looked at first: without them it would be a 403, though no Kueue serves the address here."""
    queue = f"/apis/visibility.kueue.x-k8s.io/v1beta2/namespaces/{stage.namespace}/localqueues/gold"
    with connect() as cluster:
        for path, code in ((f"{queue}/pendingworkloads", 404), (queue, 403)):
            with pytest.raises(ApiError) as refused:
                cluster.request("GET", path)
            assert refused.value.code == code


def test_logs_name_the_pod_and_what_there_is(stage: Stage, user: Person, lora: Lora) -> None:
    """Without a kubelet nobody has a log; whose it would be is known."""
    stage.apply()
    assert "tone has no pod (" in lora("logs", "tone").err
    stage.start()
    pod = stage.wait_pod(stage.wait_job())
    waits = lora("logs", "tone")
    assert waits.code == 1
    assert f"Pod {pod['metadata']['name']} has written no log (" in waits.err
    assert "there are pods of train" in lora("logs", "tone", "--stage", "preflight").err
    assert "attempts with a pod are 1" in lora("logs", "tone", "--attempt", "7").err


def test_of_the_pods_of_an_attempt_the_newest_has_the_log(stage: Stage, user: Person, lora: Lora) -> None:
    """As the Job controller makes them, one after the other; by `-o name`, since no kubelet has a log here."""
    stage.start()
    stage.apply()
    job = stage.wait_job()
    first = stage.wait_pod(job)
    assert lora("logs", "tone", "-o", "name").out == f"pod/{first['metadata']['name']}\n"
    stage.run_pod(first)
    stage.end_pod(first, 75, failed(Reason.STALLED, "no step since 12:00"))
    second = stage.wait_pod(job, other_than=first["metadata"]["uid"])
    for options in ((), ("--attempt", "1")):
        assert lora("logs", "tone", *options, "-o", "name").out == f"pod/{second['metadata']['name']}\n"


def test_every_refusal_says_what_to_type_next(stage: Stage, user: Person, lora: Lora) -> None:
    """Status 1, nothing on standard output, one line."""
    stage.apply()
    cases: dict[tuple[str, ...], str] = {
        ("status", "other"): f"There is no LoRAFineTune {stage.namespace}/other: lora list -n {stage.namespace}",
        ("list", "-A"): "You lack a right (lorafinetunes.lora-operator.io is forbidden",
        ("list", "-n", "kube-system"): "You lack a right (",
        ("pull", "tone"): "tone has no adapter yet: lora status tone",
        ("ask", "tone", "Hi"): "tone has no adapter yet: lora status tone",
        ("serve", "tone"): "tone has no adapter yet: lora status tone",
    }
    for arguments, sentence in cases.items():
        answer = lora(*arguments)
        assert (answer.code, answer.out) == (1, ""), arguments
        assert answer.err.startswith(f"lora: {sentence}"), answer.err
        assert answer.err.count("\n") == 1


def test_the_python_interface_has_the_same_verbs(stage: Stage, user: Person) -> None:
    """Failures are exceptions with the command's sentence."""
    client = LoRAClient(namespace=stage.namespace)
    bad: Any = finetune("bad", quantization="nf4")
    assert client.validate(bad)[0].endswith("did you mean NF4?")
    run = client.run(finetune()["spec"], name="tone")
    assert [other.name for other in client.list()] == ["tone"]
    stage.start()
    pod = stage.wait_pod(stage.wait_job())
    with pytest.raises(ClientError, match="has not ended within 1 s"):
        run.wait(1)
    stage.run_pod(pod)
    stage.end_pod(pod, 65, failed(Reason.DATASET_INVALID, "line 17 has no field 'output': add it"))
    with pytest.raises(ClientError, match=r"tone failed \(DatasetInvalid\): line 17 has no field"):
        run.wait(DEADLINE_S)
    assert client.get("tone").state == "DatasetInvalid"
    assert run.explain()["state"] == "DatasetInvalid"
    other = run.clone({"lora.rank": 32, "training.learningRate": 1e-4})
    assert other.name == "tone-2"
    differs = {entry["field"]: entry["values"][1] for entry in run.compare(other)["differs"]}
    assert (differs["lora.rank"], differs["training.learningRate"]) == ("32", "0.0001")
    assert isinstance(other, ClusterRun)
    assert [other.suspend().resource["spec"]["suspend"], other.resume().resource["spec"]["suspend"]] == [True, False]
    with pytest.raises(ClientError, match=r"tone failed \(DatasetInvalid\) and has no adapter"):
        run.serve()
    with pytest.raises(ClientError, match=r"tone failed \(DatasetInvalid\) and has no adapter"):
        run.ask("Who are you?")
    with pytest.raises(ClientError, match="--with is tgi"):
        run.serve("tgi")
    with pytest.raises(ClientError, match="backend is docker"):
        LoRAClient(backend="docker")


def claims(stage: Stage) -> None:
    """The claims that a run's adapter and its model lie on."""
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    for name in ("adapters", "data"):
        stage.cluster.apply(
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec},
            namespace=stage.namespace,
        )


@pytest.mark.parametrize("verb", [("pull", "tone"), ("ask", "tone", "Who are you?")])
def test_ctrl_c_leaves_no_pod_behind(stage: Stage, user: Person, verb: tuple[str, ...], tmp_path: Path) -> None:
    """The pod is as restricted as the strictest namespace wants it, and gone once the command ends."""
    stage.cluster.kubectl("label", "namespace", stage.namespace, "pod-security.kubernetes.io/enforce=restricted")
    claims(stage)
    finish(stage)
    with user.start(*verb) as process:
        before = {pod["metadata"]["name"] for pod in stage.objects("pods")}

        def helper() -> list[Object]:
            assert process.poll() is None, process.communicate()
            return [pod for pod in stage.objects("pods") if "lora-operator.io/client" in pod["metadata"]["labels"]]

        (pod,) = eventually(helper, "the pod is made")
        assert pod["spec"]["containers"][0]["image"] == "registry.example/lora-trainer:test"
        assert pod["metadata"]["ownerReferences"][0]["name"] == "tone"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 130, err
        assert b"Traceback" not in err
    assert {pod["metadata"]["name"] for pod in stage.objects("pods")} <= before
