"""What the pages have their readers type at a cluster, executed as it stands but for a declared list of substitutions.

One reader is on call for a run that trains, the other has a first run. Each command must succeed, print no error, and
say what the page promises.
"""

import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tests.e2e.conftest import Installed
from tests.e2e.support import CLAIM, LONG, MODEL, PATIENCE_S, finetune, long_rows, rows, status, verdict, wait_reason
from tests.pages.blocks import BLOCKS, REPOSITORY, Block, block
from tests.pages.executed import Substitution, execute, substituted

from demoflow.run import RELEASE, RELEASE_NAMESPACE
from localcluster.client import Client

RUN = "support-tone"
RUNBOOKS = [each for each in BLOCKS if each.page.startswith("docs/runbooks/") and each.language == "sh"]
_ELSEWHERE = (
    Substitution(shown='kubectl -n "$ns" top', typed=": kubectl top", why="this cluster has no metrics server"),
    Substitution(shown='kubectl -n "$ns" exec "$pod" -- nvidia-smi', typed=": nvidia-smi", why="there is no GPU"),
    Substitution(shown="kubectl debug", typed=": kubectl debug", why="its image is one of a public registry"),
    Substitution(shown='kubectl -n "$ns" get localqueues,workloads', typed=": kubectl", why="where Kueue is installed"),
    Substitution(shown="--timeout=24h", typed="--timeout=14m", why="it takes half a minute"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Somebody with kubectl, Helm and the client, who types in a folder and whose context names a namespace."""

    client: Client
    namespace: str
    folder: Path

    def types(self, shown: Block, *more: Substitution) -> str:
        """What is printed of the commands of a block."""
        (node,) = self.client.get("nodes")["items"]
        here = (
            Substitution(shown="team-a", typed=self.namespace, why="a namespace of the test"),
            Substitution(shown="gpu-node-1", typed=node["metadata"]["name"], why="the node's name"),
        )
        typed = substituted(shown.commands, (*more, *_ELSEWHERE, *here))
        return execute(typed, self.client.environment, self.folder, pipefail=False, timeout_s=1200)


def _reader(installed: Installed, namespace: str, folder: Path) -> Reader:
    """One whose context names a namespace, in a folder of theirs with the chart beside it."""
    config = yaml.safe_load(installed.client.kubeconfig.read_text())
    for context in config["contexts"]:
        context["context"]["namespace"] = namespace
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    (folder / "helm").symlink_to(REPOSITORY / "helm")
    programs = f"{Path(sys.executable).parent}:{installed.client.path}"
    client = dataclasses.replace(installed.client, kubeconfig=folder / "kubeconfig", path=programs)
    return Reader(client=client, namespace=namespace, folder=folder)


@pytest.fixture(scope="module")
def on_call(installed: Installed, module_namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Beside a run that trains and saves, under an operator whose container has restarted once."""
    reader = _reader(installed, module_namespace, tmp_path_factory.mktemp("on-call"))
    client = installed.client
    run = finetune(RUN, **LONG, checkpoint={"intervalSteps": 2})
    client.apply(CLAIM, long_rows(), run, namespace=reader.namespace)
    place = (f"deployment/{RELEASE}", f"--namespace={RELEASE_NAMESPACE}")
    client.kubectl("exec", *place, "--", "python", "-c", "import os; os.kill(1, 15)")
    pod = f"pod/{_operator(client)}"
    client.wait(pod, "jsonpath={.status.containerStatuses[0].restartCount}=1", namespace=RELEASE_NAMESPACE)
    client.kubectl("rollout", "status", *place, f"--timeout={PATIENCE_S}s", timeout_s=PATIENCE_S + 30)
    wait_reason(client, reader.namespace, RUN, "Complete", "Training")
    step = "jsonpath={.status.progress.checkpointStep}"
    client.wait(f"lft/{RUN}", step, namespace=reader.namespace, timeout_s=PATIENCE_S)
    yield reader
    client.kubectl(
        "delete", "lft", RUN, f"--namespace={reader.namespace}", "--cascade=foreground", timeout_s=PATIENCE_S
    )


def _operator(client: Client) -> str:
    selector = f"--selector=app.kubernetes.io/instance={RELEASE}"
    (pod,) = client.get("pods", selector, f"--namespace={RELEASE_NAMESPACE}")["items"]
    name: str = pod["metadata"]["name"]
    return name


@pytest.mark.soak
@pytest.mark.parametrize("shown", RUNBOOKS, ids=lambda shown: Path(shown.page).stem)
def test_a_runbook_s_commands_work_as_pasted(on_call: Reader, shown: Block) -> None:
    """Each answers, but for those that look for what is wrong; where the operator explains, it is about the run."""
    printed = on_call.types(shown)
    assert printed.strip() or "ERROR" in shown.commands
    if "explain" in shown.commands:
        assert f"run: {on_call.namespace}/{RUN}\n" in printed
    if Path(shown.page).stem == "LoRAFineTuneCheckpointStale":
        assert "saved the state after step" in printed
    elif '"$pod"' in shown.commands:
        assert "step" in printed


@pytest.fixture
def first(installed: Installed, namespace: str, tmp_path: Path) -> Iterator[Reader]:
    """Somebody on a cluster with a GPU, whose pods are small, and with a data set."""
    reader = _reader(installed, namespace, tmp_path)
    installed.client.apply(rows(), namespace=namespace)
    small = ("--set=defaults.cpuPerGPU=500m", "--set=defaults.memoryPerGPU=3Gi")
    installed.offer_gpus(1)
    installed.upgrade(*small)
    yield reader
    installed.offer_gpus(0)
    installed.upgrade()


_SMALL = (
    Substitution(shown="hf://meta-llama/Llama-3.1-8B-Instruct", typed=MODEL, why="a model of seconds"),
    Substitution(shown="hf://acme/support-chats", typed="configmap://rows/train.jsonl", why="rows of the test"),
)
QUICKSTART = "docs/quickstart.md"
_ENDED = "lora watch support-tone-2 && lora compare"


def test_the_quickstart_on_gpus_is_typed_as_it_stands(first: Reader) -> None:
    """From the token to the adapter on the reader's machine; then the run is changed, compared, read and deleted."""
    files = {"claim.yaml": "kind: PersistentVolumeClaim", "support-tone.yaml": '  model: {uri: "hf://meta-llama'}
    for name, begin in files.items():
        (first.folder / name).write_text(substituted(block(QUICKSTART, begin).text, _SMALL))
    first.types(block(QUICKSTART, "kubectl create secret"))
    first.types(block(QUICKSTART, "kubectl apply"))
    first.types(block(QUICKSTART, "kubectl wait"))
    assert verdict(status(first.client, first.namespace, RUN))[1] == "Succeeded"
    assert "adapter" in first.types(block(QUICKSTART, "lora ask support-tone"))
    assert (first.folder / "support-tone/adapter_model.safetensors").is_file()
    first.types(block("docs/cli.md", "lora clone"), Substitution(shown="lora compare", typed=_ENDED, why="it ends"))
    printed = first.types(block("docs/watch.md", "lora watch"))
    assert "loss before training" in printed
    first.types(block("docs/watch.md", "kubectl delete lft"))
    assert first.client.get("lft", f"--namespace={first.namespace}")["items"][0]["metadata"]["name"] == f"{RUN}-2"
