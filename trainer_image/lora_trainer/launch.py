"""The command of stage `train`: one process, or torchrun with a process for each GPU, on one node or on several.

Without PyTorch, since the supervisor uses it.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from lora_trainer.contract.config import DeviceConfig, TrainConfig
from lora_trainer.contract.manifest import checkpoint_claim
from lora_trainer.errors import ConfigError

RENDEZVOUS = "LORA_RENDEZVOUS"
NODE_INDEX = "JOB_COMPLETION_INDEX"
ONE_PROCESS = (sys.executable, "-P", "-m", "lora_trainer.stage")
SHUTDOWN_S = 90
"""How long a process may take to save and end after SIGTERM, before torchrun kills it; below a pod's grace period."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """This pod among the `nodes` of a run. `address` and `port` lead to node 0, which verifies and publishes."""

    index: int = 0
    nodes: int = 1
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this node verifies, publishes and tells the result."""
        return self.index == 0


def this_node(config: TrainConfig, environment: Mapping[str, str]) -> Node:
    """This pod's place, from the environment that the operator rendered and Kubernetes filled. Raises `ConfigError`."""
    nodes = config.device.nodes
    if nodes == 1:
        return Node()
    if checkpoint_claim(config) is None:
        raise ConfigError(
            f"resources.nodes is {nodes}, and no claim is there for checkpoints, without which a node that is replaced "
            "could not go on: set checkpoint.volumeClaimName"
        )
    index, rendezvous = environment.get(NODE_INDEX, ""), environment.get(RENDEZVOUS, "")
    address, _, port = rendezvous.rpartition(":")
    if not (index.isdigit() and int(index) < nodes and address and port.isdigit()):
        raise ConfigError(
            f"resources.nodes is {nodes}, but {NODE_INDEX} is {index!r} and {RENDEZVOUS} is {rendezvous!r}: they must "
            f"be a number below {nodes} and host:port, as in the pods that the operator makes; elsewhere set "
            "resources.nodes: 1"
        )
    return Node(index=int(index), nodes=nodes, address=address, port=int(port))


def train_program(device: DeviceConfig, node: Node, wait_s: int) -> list[str]:
    """The program of this node's part of the training, which takes the stage's arguments; nodes wait `wait_s` for each
    other."""
    if device.processes == 1:
        return list(ONE_PROCESS)
    meeting = ["--standalone", "--local-addr", node.address]
    if node.nodes > 1:
        # Static ranks: the Job makes a lost pod anew under its old number, which finds its place again.
        meeting = ["--nnodes", str(node.nodes), "--node-rank", str(node.index)]
        meeting += ["--master-addr", node.address, "--master-port", str(node.port), "--rdzv-conf", f"timeout={wait_s}"]
    # Never a restart by torchrun: the Job tries again, and counts it.
    processes = ["--nproc-per-node", str(local_processes(device)), "--max-restarts", "0"]
    patience = ["--shutdown-timeout", str(SHUTDOWN_S)]
    program = (sys.executable, "-P", "-m", "lora_trainer.torchrun")
    return [*program, *meeting, *processes, *patience, "--module", "lora_trainer.stage"]


def local_processes(device: DeviceConfig) -> int:
    """Training processes on each node."""
    return max(1, device.gpus)


def train_environment(device: DeviceConfig, node: Node, threads: int) -> dict[str, str]:
    """What the processes of a node need beside the environment of every stage; `threads` are the node's CPUs."""
    if device.processes == 1:
        return {}
    each = str(max(1, threads // local_processes(device)))
    # torchrun's own log repeats with stack traces what the processes report in one sentence.
    shared = {"OMP_NUM_THREADS": each, "LOGLEVEL": "CRITICAL", "PYTHONSAFEPATH": "1"}
    # On one node the processes find each other also where the machine's name leads nowhere.
    return shared if node.nodes > 1 else {"GLOO_SOCKET_IFNAME": "lo", **shared}
