"""Runs in a queue of Kueue, for real: its controller from its own chart, quota for two GPUs, and five runs."""

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import yaml
from tests.component.patience import eventually
from tests.pages.blocks import BLOCKS

from demoflow import run as demo_run
from demoflow.cluster import Images
from localcluster import addons
from localcluster.client import HACK_CLUSTER, Client, output
from localcluster.settings import REPOSITORY
from lora_client.cluster.connection import connect
from lora_client.cluster.queue_place import QueuePlace

Object = dict[str, Any]
QUOTA_GPUS = 2
_SETTINGS = tuple(f"--set=config.{name}Seconds=1" for name in ("progressInterval", "pendingCheck", "statusDelay"))
_SCRIPT = [
    {"on_term": "save"},
    {"resume": {"phase": "Training", "total_steps": 10}},
    {"wait_for": "four"},
    {"progress": {"phase": "Training", "step": 4, "total_steps": 10}},
    {"wait_for": "end"},
]


@pytest.fixture(scope="module")
def kueue(cluster: Client) -> Iterator[None]:
    """Kueue, removed afterwards where it was not there before."""
    ours = "kueue" not in addons.releases(cluster)
    output([str(HACK_CLUSTER), "addon", "kueue"], timeout_s=1800)
    yield
    if ours:
        output([str(HACK_CLUSTER), "addon", "--remove", "kueue"], timeout_s=900)


@pytest.fixture(scope="module")
def operator(cluster: Client, kueue: None) -> Iterator[None]:
    """The chart with a trainer that follows scripts; afterwards uninstalled, or as it was."""
    of_the_demo = demo_run.RELEASE in addons.releases(cluster)
    references = cluster.images("operator", "test-trainer")
    images = Images(operator=references["operator"], trainer=references["test-trainer"], hub=None)
    demo_run.install_chart(cluster, images, "", *_SETTINGS, timeout_s=900)
    yield
    command = "rollback" if of_the_demo else "uninstall"
    cluster.helm(command, demo_run.RELEASE, f"--namespace={demo_run.RELEASE_NAMESPACE}", "--wait")


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """A namespace with a queue whose quota allows two GPUs, on a node that offers more."""

    cluster: Client
    namespace: str

    def run(self, name: str, *, priority: str = "", **spec: Any) -> None:
        """Create a run that trains until it is told to go on."""
        labels = {"kueue.x-k8s.io/queue-name": "gpus"}
        if priority:
            labels["kueue.x-k8s.io/priority-class"] = f"{self.namespace}-{priority}"
        self.cluster.apply(
            {
                "apiVersion": "lora-operator.io/v1alpha1",
                "kind": "LoRAFineTune",
                "metadata": {"name": name, "labels": labels},
                "spec": {
                    "model": {"uri": "hf://acme/base"},
                    "dataset": {"uri": "configmap://script/script.json"},
                    "output": {"uri": f"pvc://adapters/{name}"},
                    "preflight": "Skip",
                    "resources": {"gpus": 1, "cpu": "50m", "memory": "64Mi"},
                    **spec,
                },
            },
            namespace=self.namespace,
        )

    def ask(self, *arguments: str) -> Object:
        """`kubectl get` in the namespace."""
        return self.cluster.get(*arguments, f"--namespace={self.namespace}")

    def kubectl(self, *arguments: str) -> str:
        """kubectl in the namespace."""
        return self.cluster.kubectl(f"--namespace={self.namespace}", *arguments)

    def pods_as_served(self, query: str = "") -> str:
        """The API server's own answer about the pods of the namespace."""
        return self.cluster.kubectl("get", f"--raw=/api/v1/namespaces/{self.namespace}/pods{query}")

    def states(self) -> dict[str, str]:
        """The state of each run, as `kubectl get` shows it."""
        runs = self.ask("lorafinetunes")["items"]
        return {run["metadata"]["name"]: _condition(run, "Complete").get("reason", "") for run in runs}

    def those(self, state: str) -> list[str]:
        """Names of the runs in a state."""
        return sorted(name for name, found in self.states().items() if found == state)

    def wait_states(self, what: str, **numbers: int) -> None:
        """Wait until so many runs are in each of these states."""
        self.wait(lambda: all(len(self.those(state)) == number for state, number in numbers.items()), what)

    def wait(self, look: Callable[[], bool], what: str) -> None:
        """Wait; a failure shows the states."""
        try:
            eventually(look, what)
        except AssertionError as error:
            error.add_note(str(self.states()))
            raise

    def condition(self, name: str, kind: str) -> Object:
        """A condition of a run."""
        return _condition(self.ask("lorafinetune", name), kind)

    def status(self, name: str) -> Object:
        """The status of a run."""
        status: Object = self.ask("lorafinetune", name)["status"]
        return status

    def place(self, name: str) -> str:
        """A run's place in its queue, as `lora watch` shows it."""
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("KUBECONFIG", str(self.cluster.kubeconfig))
            with connect(namespace=self.namespace) as asked:
                return QueuePlace(asked).of(asked.get("lorafinetunes", name))

    def preemptions(self, name: str) -> int:
        """How often another run took a run's quota, as its status tells."""
        return int(self.status(name).get("retries", {}).get("preempted", 0))

    def step(self, name: str) -> int:
        """The step that a run has taken, as its status tells."""
        return int(str(self.status(name).get("progress", {}).get("steps", "0/")).partition("/")[0])

    def tell(self, name: str, word: str) -> None:
        """Let the script of a run's living pod go on."""
        self.kubectl("exec", self.status(name)["podName"], "--", "touch", f"/tmp/{word}")  # noqa: S108

    def change(self, name: str, **spec: Any) -> None:
        """Change fields of a run's spec."""
        self.kubectl("patch", "lorafinetune", name, "--type=merge", "--patch", json.dumps({"spec": spec}))


@pytest.fixture
def team(cluster: Client, operator: None, namespace: str) -> Iterator[Team]:
    """The queue and all that a run needs; Kueue lets its objects go only when nothing uses them any more."""
    output([str(HACK_CLUSTER), "gpus", str(4 * QUOTA_GPUS)])
    script = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "script"}}
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "adapters"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    cluster.apply(
        {**script, "data": {"script.json": json.dumps(_SCRIPT)}}, claim, *_queue(namespace), namespace=namespace
    )
    yield Team(cluster=cluster, namespace=namespace)
    cluster.kubectl("delete", "lorafinetunes", "--all", f"--namespace={namespace}", "--cascade=foreground")
    cluster.kubectl("delete", "localqueue", "gpus", f"--namespace={namespace}")
    for kind, name in (
        ("clusterqueue", namespace),
        ("resourceflavor", namespace),
        ("workloadpriorityclass", f"{namespace}-low"),
        ("workloadpriorityclass", f"{namespace}-high"),
    ):
        cluster.kubectl("delete", kind, name)
    output([str(HACK_CLUSTER), "gpus", "0"])


def _queue(namespace: str) -> list[Object]:
    """What an administrator makes, by the page: named after the namespace, except for the queue in it."""
    page = (REPOSITORY / "docs" / "kueue.md").read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    objects = [document for block in blocks for document in yaml.safe_load_all(block)]
    made: dict[str, list[Object]] = {}
    for document in objects:
        made.setdefault(document["kind"], []).append(document)
    (flavor,), (whole,), (queue,) = made["ResourceFlavor"], made["ClusterQueue"], made["LocalQueue"]
    flavor["metadata"]["name"] = whole["metadata"]["name"] = queue["spec"]["clusterQueue"] = namespace
    ((quota,),) = (group["flavors"] for group in whole["spec"]["resourceGroups"])
    quota["name"] = namespace
    (gpus,) = (resource for resource in quota["resources"] if resource["name"] == "nvidia.com/gpu")
    gpus["nominalQuota"] = QUOTA_GPUS
    for priority in made["WorkloadPriorityClass"]:
        priority["metadata"]["name"] = f"{namespace}-{priority['metadata']['name']}"
    return [flavor, whole, *made["WorkloadPriorityClass"], queue]


def _condition(run: Object, kind: str) -> Object:
    conditions = run.get("status", {}).get("conditions", [])
    return next((condition for condition in conditions if condition["type"] == kind), {})


def _says_what_is_short(team: Team, name: str) -> bool:
    return "insufficient unused quota for nvidia.com/gpu" in team.condition(name, "QuotaReserved")["message"]


def test_the_page_s_objects_are_what_kueue_takes(cluster: Client, kueue: None, namespace: str) -> None:
    """By its own definitions and webhooks, strictly; nothing is stored."""
    shown = [each for each in BLOCKS if each.page == "docs/kueue.md" and "kueue.x-k8s.io/v1" in each.text]
    objects = [found for each in shown for text in each.yaml for found in yaml.safe_load_all(text)]
    strictly = ("--validate=strict", "--dry-run=server", "--filename=-", f"--namespace={namespace}")
    assert {found["kind"] for found in objects} >= {"ClusterQueue", "LocalQueue", "ResourceFlavor"}
    out = cluster.kubectl("apply", *strictly, stdin=yaml.safe_dump_all(objects))
    assert out.count("(server dry run)") == len(objects)


def test_of_five_runs_two_train_and_three_wait_until_quota_is_free(team: Team) -> None:
    """They say so in the queue's own words; an end frees quota, and so does a deletion."""
    names = [f"run-{number}" for number in range(5)]
    for name in names:
        team.run(name)
    team.wait_states("two train and three wait", Training=QUOTA_GPUS, Queued=3)
    for name in team.those("Queued"):
        team.wait(partial(_says_what_is_short, team, name), "the run has the queue's own words")
        quota, suspended = team.condition(name, "QuotaReserved"), team.condition(name, "Suspended")
        assert (quota["status"], quota["reason"]) == ("False", "Queued")
        assert (suspended["status"], suspended["reason"]) == ("True", "Queued")
        assert "podName" not in team.status(name)
    ahead = [f"{number} ahead in queue gpus" for number in range(3)]
    team.wait(lambda: sorted(map(team.place, team.those("Queued"))) == ahead, "the client knows each one's place")
    for name in team.those("Training"):
        assert team.condition(name, "QuotaReserved")["status"] == "True"
        assert team.condition(name, "Suspended")["status"] == "False"
    assert len(team.ask("pods")["items"]) == QUOTA_GPUS

    ends, goes = team.those("Training")
    team.tell(ends, "four")
    team.tell(ends, "end")
    team.wait_states("the next one trains", Training=QUOTA_GPUS, Queued=2, Succeeded=1)
    assert team.condition(ends, "QuotaReserved")["status"] == "False"
    team.kubectl("delete", "lorafinetune", goes)
    team.wait_states("and the next one", Training=QUOTA_GPUS, Queued=1, Succeeded=1)


def test_suspend_frees_the_quota_and_resuming_waits_for_it_again(team: Team) -> None:
    """The Workload is deactivated: a Job that is suspended would be resumed by Kueue at once."""
    team.run("a", activeDeadlineSeconds=3600)
    team.run("b")
    team.wait_states("two train", Training=2)
    team.run("c")
    team.wait_states("one waits", Queued=1)
    team.tell("a", "four")
    team.change("a", suspend=True)
    team.wait(lambda: team.states() == {"a": "SuspendedByUser", "b": "Training", "c": "Training"}, "c has a's quota")
    quota = team.condition("a", "QuotaReserved")
    assert (quota["status"], quota["reason"]) == ("False", "SuspendedByUser")
    assert team.condition("a", "Suspended")["status"] == "True"

    team.run("d", suspend=True)
    team.wait(lambda: team.states()["d"] == "SuspendedByUser", "d is held before it has begun")
    assert "jobName" not in team.status("d")
    team.change("a", suspend=False)
    team.wait(lambda: team.states()["a"] == "Queued", "a is in the queue again")
    team.kubectl("delete", "lorafinetune", "b")
    team.wait(lambda: team.states()["a"] == "Training", "a trains again")
    team.wait(lambda: team.step("a") == 4, "a goes on where it was")
    assert team.status("a")["attempt"] == 1
    assert team.preemptions("a") == 0
    left_s = team.ask("job", team.status("a")["jobName"])["spec"]["activeDeadlineSeconds"]
    assert left_s == 3600 - team.status("a")["runSeconds"] < 3600
    team.change("d", suspend=False)
    team.wait(lambda: team.states()["d"] == "Queued", "d has a Job, which waits")


def test_a_preflight_waits_for_cpu_alone_and_the_training_behind_it_for_gpus(team: Team) -> None:
    """Each is a Workload of its own; what the preflight held is free again before the training asks."""
    for name in ("a", "b"):
        team.run(name)
    team.wait_states("two train", Training=2)
    cpu = "/spec/resourceGroups/0/flavors/0/resources/0/nominalQuota"

    def allow(quota: str) -> None:
        change = json.dumps([{"op": "replace", "path": cpu, "value": quota}])
        team.cluster.kubectl("patch", "clusterqueue", team.namespace, "--type=json", "--patch", change)

    allow("500m")
    team.run("c", preflight="Run")
    team.wait(lambda: "for cpu" in team.condition("c", "QuotaReserved").get("message", ""), "it needs a whole CPU")
    assert team.states()["c"] == "Queued"
    assert team.condition("c", "PreflightPassed")["status"] == "Unknown"

    allow("64")
    team.wait(lambda: _says_what_is_short(team, "c"), "it waits for a GPU")
    assert team.condition("c", "PreflightPassed")["status"] == "True"
    team.kubectl("delete", "lorafinetune", "a")
    team.wait(lambda: team.states()["c"] == "Training", "it trains")


def test_a_preempted_run_saves_waits_in_its_queue_and_goes_on_from_its_checkpoint(team: Team) -> None:
    """A run of higher priority takes the quota; what was done is kept, and no retry is used up."""
    team.run("low", priority="low", maxRetries=0)
    team.run("other", priority="low", maxRetries=0)
    team.wait_states("both train", Training=2)
    team.tell("low", "four")
    team.tell("other", "four")
    team.wait(lambda: {team.step("low"), team.step("other")} == {4}, "both have taken four steps")
    began = json.loads(team.pods_as_served())["metadata"]["resourceVersion"]
    team.run("high", priority="high")
    team.wait_states("one of them gives way", Preempted=1)
    (victim,) = team.those("Preempted")
    suspended = team.condition(victim, "Suspended")
    assert (suspended["status"], suspended["reason"]) == ("True", "Preempted")
    assert "Preempted to accommodate a workload" in suspended["message"]
    # Its quota is its own until its pod has ended, which takes a moment after the first word of it.
    team.wait(lambda: team.condition(victim, "QuotaReserved")["status"] == "False", "its quota is free")
    assert team.condition(victim, "QuotaReserved")["reason"] == "Preempted"
    team.wait(lambda: team.states()["high"] == "Training", "the important one trains")
    team.wait(lambda: 143 in _exit_codes(team, began), "its trainer has ended as it was told")
    team.wait(lambda: team.preemptions(victim) == 1, "it is counted")

    team.tell("high", "four")
    team.tell("high", "end")
    team.wait(lambda: team.states()[victim] == "Training", "it trains again")
    team.wait(lambda: team.step(victim) == 4, "it goes on where it was")
    team.tell(victim, "four")
    team.tell(victim, "end")
    team.wait(lambda: team.states()[victim] == "Succeeded", "it ends well")
    assert team.status(victim)["attempt"] == 1
    assert team.status(victim)["retries"] == {"preempted": 1}


def _exit_codes(team: Team, since: str) -> set[int]:
    """Exit codes of the trainers that have ended since a version of the list of pods, of pods that are gone too.

    A busy API server may end the watch before it has told all of it.
    """
    answer = team.pods_as_served(f"?watch=1&resourceVersion={since}&timeoutSeconds=1")
    events = [json.loads(line) for line in answer.splitlines()]
    found = (event["object"]["status"].get("containerStatuses", []) for event in events)
    states = (container["state"] for containers in found for container in containers)
    return {state["terminated"]["exitCode"] for state in states if "terminated" in state}


def test_a_queue_that_does_not_exist_is_named_and_creating_it_is_enough(team: Team) -> None:
    """The run need not be made again."""
    team.kubectl("delete", "localqueue", "gpus")
    team.run("lost")
    missing = "LocalQueue gpus doesn't exist: create it"
    team.wait(lambda: missing in team.condition("lost", "QuotaReserved").get("message", ""), "it says so")
    assert team.condition("lost", "Suspended")["reason"] == "Queued"
    queue = next(item for item in _queue(team.namespace) if item["kind"] == "LocalQueue")
    team.cluster.apply(queue, namespace=team.namespace)
    team.wait_states("it trains", Training=1)


def test_a_wait_in_the_queue_is_not_limited_and_one_for_a_node_with_its_quota_is(team: Team) -> None:
    """`pendingTimeoutSeconds` begins with the admission; the run that fails gives its quota to the next one."""
    for name in ("a", "b"):
        team.run(name)
    team.wait_states("two train", Training=2)
    team.run("patient", pendingTimeoutSeconds=5)
    team.wait_states("one waits", Queued=1)
    queued_at = time.monotonic()
    team.wait(lambda: time.monotonic() > queued_at + 10, "it has waited twice as long as it may for its pods")
    assert team.states()["patient"] == "Queued"

    # A node whose device plugin has gone: the quota is there, the GPU is not, which the scheduler has said by the time
    # that the run gives up.
    output([str(HACK_CLUSTER), "gpus", "0"])
    team.change("patient", pendingTimeoutSeconds=3600)
    team.kubectl("delete", "lorafinetune", "a")
    team.wait(lambda: team.states()["patient"] == "Unschedulable", "it gets the quota, and no node")
    team.change("patient", pendingTimeoutSeconds=5)
    team.wait(lambda: team.states()["patient"] == "PendingTimeout", "it gives up")
    failed = team.condition("patient", "Failed")
    assert (failed["status"], failed["reason"]) == ("True", "PendingTimeout")
    assert "Unschedulable" in failed["message"]
    assert "Insufficient nvidia.com/gpu" in failed["message"]
    assert team.condition("patient", "QuotaReserved")["status"] == "False"
    output([str(HACK_CLUSTER), "gpus", str(4 * QUOTA_GPUS)])
    team.run("next")
    team.wait(lambda: team.states()["next"] == "Training", "the next one has its quota")
