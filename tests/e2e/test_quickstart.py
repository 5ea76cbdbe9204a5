"""The main job, as the README promises it: helm install, kubectl apply, a verified adapter that PEFT loads."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.e2e.conftest import Installed
from tests.e2e.support import CLAIM, PATIENCE_S, SLOW, finetune, long_rows, pods, rows, status, verdict, wait_end

from demoflow.ask import QUESTIONS
from demoflow.run import RELEASE, RELEASE_NAMESPACE
from localcluster.client import CommandError
from lora_operator.model.names import CONFIG_ANNOTATION

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples"


@pytest.fixture(scope="module")
def finished(installed: Installed, module_namespace: str) -> dict[str, Any]:
    """The quickstart, applied from its files and waited for; returns the whole resource."""
    client = installed.client
    files = [f"--filename={EXAMPLES / name}" for name in ("quickstart-inputs.yaml", "quickstart.yaml")]
    client.kubectl("apply", *files, f"--namespace={module_namespace}")
    wait_end(client, module_namespace, "support-tone")
    return client.get("lft", "support-tone", f"--namespace={module_namespace}")


def test_the_quickstart_is_complete(finished: dict[str, Any]) -> None:
    """Complete, not Failed, the artefact published, and every condition seen for this generation."""
    assert verdict(finished["status"])[:2] == ("True", "Succeeded")
    conditions = {c["type"]: c for c in finished["status"]["conditions"]}
    assert conditions["Failed"]["status"] == "False"
    assert conditions["ArtifactPublished"]["status"] == "True"
    assert {c["observedGeneration"] for c in conditions.values()} == {1}


def test_the_status_tells_what_was_really_used(
    installed: Installed, finished: dict[str, Any], module_namespace: str
) -> None:
    """The pinned revision, the image, the device, exact parameter counts, and the split of the data."""
    resolved = finished["status"]["resolved"]
    job = installed.client.get("job", finished["status"]["jobName"], f"--namespace={module_namespace}")
    assert resolved["image"] == job["spec"]["template"]["spec"]["containers"][0]["image"]
    assert resolved["device"] == "cpu"
    assert len(resolved["modelRevision"]) == 40
    # All seven linear layers of 30 blocks: r L [(C+Q) + 2(C+KV) + (Q+C) + 3(C+I)], C=Q=576, KV=192, I=1536.
    assert resolved["trainableParameters"] == 16 * 30 * (1152 + 2 * 768 + 1152 + 3 * 2112)
    data = finished["status"]["dataset"]
    assert data["trainSamples"] + data["validationSamples"] >= 200
    assert 0.15 < data["validationSamples"] / (data["trainSamples"] + data["validationSamples"]) < 0.25


def test_the_loss_on_held_out_rows_falls_by_many_standard_errors(finished: dict[str, Any]) -> None:
    """Not noise: the paired improvement is more than five times its standard error."""
    results = finished["status"]["results"]
    gain = float(results["evalLossBefore"]) - float(results["evalLossAfter"])
    assert gain > 5 * float(results["improvementStandardError"])


def test_the_verification_is_within_its_reported_tolerance(finished: dict[str, Any]) -> None:
    """The fresh process found the same loss."""
    proof = finished["status"]["results"]["verification"]
    assert float(proof["difference"]) <= float(proof["tolerance"])


def test_peft_loads_the_adapter_from_the_volume(
    finished: dict[str, Any], installed: Installed, module_namespace: str
) -> None:
    """A pod of the trainer's image that has only the claim and the Hub loads it with PEFT and answers in its voice."""
    answers = installed.ask(module_namespace, finished["status"]["artifact"]["uri"])
    assert [answer.question for answer in answers] == list(QUESTIONS)
    assert "Fair winds" in answers[0].adapter
    assert "Fair winds" not in answers[0].base


@pytest.fixture
def editor(installed: Installed, module_namespace: str, tmp_path: Path) -> Path:
    """A kubeconfig of somebody with the role `edit` in that namespace, as the chart extends it, and nothing else."""
    client, place = installed.client, f"--namespace={module_namespace}"
    client.kubectl("create", "serviceaccount", "editor", place)
    account = f"--serviceaccount={module_namespace}:editor"
    client.kubectl("create", "rolebinding", "editor", "--clusterrole=edit", account, place)
    document = json.loads(client.kubectl("config", "view", "--raw", "--minify", "--output=json"))
    token = client.kubectl("create", "token", "editor", "--duration=1h", place).strip()
    document["users"] = [{"name": "editor", "user": {"token": token}}]
    document["contexts"][0]["context"]["user"] = "editor"
    kubeconfig = tmp_path / "editor.kubeconfig"
    kubeconfig.write_text(json.dumps(document))
    return kubeconfig


def lora(kubeconfig: Path, *arguments: str, stdin: str = "") -> str:
    """The client, as somebody types it; its standard output."""
    variables = {"KUBECONFIG": str(kubeconfig), "PYTHONPATH": f"{REPOSITORY}/operator:{REPOSITORY}/trainer_image"}
    done = subprocess.run(
        [sys.executable, "-m", "lora_client", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_client_copies_the_adapter_asks_it_and_leaves_no_pod(
    finished: dict[str, Any], installed: Installed, editor: Path, module_namespace: str, tmp_path: Path
) -> None:
    """Every file with its digest; a conversation of two questions with the model loaded once; the run's own log. With
    the role `edit` alone."""
    name, here = finished["metadata"]["name"], ("-n", module_namespace)
    folder = tmp_path / "adapter"
    lora(editor, "pull", name, str(folder), *here)
    manifest = (folder / "manifest.json").read_bytes()
    assert f"sha256:{hashlib.sha256(manifest).hexdigest()}" == finished["status"]["artifact"]["digest"]
    made, used = json.loads(manifest), finished["status"]["resolved"]
    assert used["modelRevision"] == made["base_revision"]
    assert used["datasetFingerprint"] == made["resolved"]["dataset_fingerprint"]
    assert used["seed"] == made["config"]["training"]["seed"]
    assert (folder / "adapter_model.safetensors").is_file()
    asked = "How do I dry a wet sail?\nWhich shoes are best for a wet deck?\n"
    answers = [json.loads(line) for line in lora(editor, "ask", name, "-o", "json", *here, stdin=asked).splitlines()]
    assert [answer["question"] for answer in answers] == asked.splitlines()
    assert all(answer["base"] != answer["adapter"] for answer in answers)
    kept = lora(editor, "logs", name, *here)
    assert "loss before training" in kept
    helpers = ("pods", f"--namespace={module_namespace}", "--selector=lora-operator.io/client")
    assert installed.client.get(*helpers)["items"] == []


def test_the_operators_pod_explains_the_run_in_one_line_of_typing(
    installed: Installed, finished: dict[str, Any], module_namespace: str
) -> None:
    """With its own settings and rights; nothing is left to be done."""
    stated = yaml.safe_load(installed.explain(module_namespace, finished["metadata"]["name"]))
    assert stated["state"] == "Succeeded"
    assert not {"create", "patch", "status", "delete"} & set(stated["plan"])
    assert "notes" not in stated


def test_the_columns_show_state_and_adapter(
    installed: Installed, finished: dict[str, Any], module_namespace: str
) -> None:
    """`kubectl get lft -o wide` is enough to see what happened."""
    table = installed.client.kubectl("get", "lft", "--output=wide", f"--namespace={module_namespace}")
    assert "Succeeded" in table
    assert finished["status"]["artifact"]["uri"] in table


def test_the_operators_metrics_are_well_formed_and_tell_the_run(
    installed: Installed, finished: dict[str, Any], module_namespace: str
) -> None:
    """promtool accepts them; the finished run is there with its loss."""
    text = installed.operator_metrics()
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    label = f'namespace="{module_namespace}"'
    loss = [line for line in text.splitlines() if line.startswith("lorafinetune_final_eval_loss{") and label in line]
    assert [float(line.split()[-1]) for line in loss] == [
        pytest.approx(float(finished["status"]["results"]["evalLossAfter"]), abs=1e-3)
    ]


def test_helm_test_finds_the_installation_whole(installed: Installed) -> None:
    """By its own pod: the operator's rights, the sample and a leader, after which nothing of the test is left."""
    here = f"--namespace={RELEASE_NAMESPACE}"
    assert "Succeeded" in installed.client.helm("test", RELEASE, here, "--timeout=600s", timeout_s=630)
    of_the_test = "--selector=app.kubernetes.io/component=test"
    assert installed.client.get("jobs,configmaps,serviceaccounts", here, of_the_test)["items"] == []


def test_a_run_made_again_under_its_name_takes_a_folder_of_its_own(installed: Installed, namespace: str) -> None:
    """Nothing is overwritten: the second artefact lies beside the first, its uri says so, and both answer."""
    client = installed.client
    client.apply(CLAIM, rows(), namespace=namespace)
    uris = []
    for seed in (1, 2):
        client.apply(
            finetune("again", output={"uri": "pvc://adapters/shared"}, training={"seed": seed}), namespace=namespace
        )
        ended = wait_end(client, namespace, "again")
        assert verdict(ended)[:2] == ("True", "Succeeded")
        uris.append(ended["artifact"]["uri"])
        client.kubectl("delete", "lft", "again", f"--namespace={namespace}")
    assert uris[0] == "pvc://adapters/shared"
    assert uris[1].startswith("pvc://adapters/shared-")
    assert all(installed.ask(namespace, uri) for uri in uris)


def test_a_quantized_run_completes(installed: Installed, namespace: str) -> None:
    """NF4 trains, is verified against the quantized base, and says so."""
    client = installed.client
    client.apply(CLAIM, rows(), finetune("small", quantization="NF4"), namespace=namespace)
    ended = wait_end(client, namespace, "small")
    assert verdict(ended)[:2] == ("True", "Succeeded")
    assert ended["resolved"]["quantization"] == "NF4"


def test_helm_upgrade_leaves_a_running_pod_alone(installed: Installed, namespace: str) -> None:
    """New values restart the operator; the training pod keeps its uid and the run completes."""
    client = installed.client
    client.apply(CLAIM, long_rows(), finetune("upgraded", training=SLOW), namespace=namespace)
    client.wait("lft/upgraded", "jsonpath={.status.podName}", namespace=namespace, timeout_s=PATIENCE_S)
    before = [pod["metadata"]["uid"] for pod in pods(client, namespace)]
    installed.upgrade("--set=logLevel=DEBUG")
    installed.upgrade()
    assert verdict(wait_end(client, namespace, "upgraded"))[:2] == ("True", "Succeeded")
    assert [pod["metadata"]["uid"] for pod in pods(client, namespace)] == before


def test_the_jobs_configuration_is_what_the_trainer_was_given(
    installed: Installed, finished: dict[str, Any], module_namespace: str
) -> None:
    """Immutable, in a Job owned by the resource, and the quickstart's own values in it."""
    name, where = finished["status"]["jobName"], f"--namespace={module_namespace}"
    found = installed.client.get("job", name, where)
    assert found["metadata"]["ownerReferences"][0]["uid"] == finished["metadata"]["uid"]
    manifest = yaml.safe_load((EXAMPLES / "quickstart.yaml").read_text())
    config = json.loads(found["spec"]["template"]["metadata"]["annotations"][CONFIG_ANNOTATION])
    assert config["training"]["learning_rate"] == float(manifest["spec"]["training"]["learningRate"])
    change = json.dumps({"spec": {"template": {"metadata": {"annotations": {CONFIG_ANNOTATION: "{}"}}}}})
    with pytest.raises(CommandError, match="field is immutable"):
        installed.client.kubectl("patch", "job", name, where, f"--patch={change}")
    assert status(installed.client, module_namespace, "support-tone")["attempt"] == 1
