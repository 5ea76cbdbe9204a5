"""The command of stage `train`: one process, or torchrun with a process for each GPU, on one node or on several.

Without PyTorch, since the supervisor uses it.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from lora_trainer.errors import ConfigError
from lora_trainer.spec.config import TrainConfig
from lora_trainer.spec.manifest import checkpoint_claim

RENDEZVOUS_ADDRESS = "LORA_RENDEZVOUS"
NODE_INDEX = "JOB_COMPLETION_INDEX"
GRACE = "LORA_GRACE_SECONDS"
_DEFAULT_GRACE_S = 120
_KEEP_ALIVE_S = 3600
"""How often torchrun writes into its store's file, which only grows, that it is there. On one node nobody reads it."""
_BY_FILES = (
    *("--rdzv-backend", "c10d", "--local-addr", "127.0.0.1"),
    *("--rdzv-conf", f"store_type=file,keep_alive_interval={_KEEP_ALIVE_S}"),
)
"""How the processes of one node meet, also where its name leads nowhere. A store of torchrun's that listens, as that of
`--standalone`, asks nobody who they are, is open to the whole network whatever the address, and torchrun unpickles what
it finds there: any pod of the cluster could run code in this one. `lora_trainer.host.torchrun` names the file."""
RENDEZVOUS = "lora-rendezvous"
"""How the nodes of a run meet: torchrun's name for `lora_trainer.host.rendezvous`."""
_MEETING_S = 900
"""How long a node waits for the others at least. Kubernetes makes its pod again after up to ten minutes, each node's at
times of its own: nodes that waited for less might miss each other for ever."""
_NO_OPEN_PORTS = {
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    # Else torchrun opens a store for the processes, which share a file as well.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A command that takes a stage's arguments, and what it needs beside the environment of every stage."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


ONE_PROCESS = Program(command=(sys.executable, "-P", "-m", "lora_trainer.stage"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """This pod among the `nodes` of a run. `address` and `port` lead to node 0, which verifies and publishes."""

    index: int = 0
    nodes: int = 1
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this node verifies, publishes and reports the result."""
        return self.index == 0


def this_node(config: TrainConfig, environment: Mapping[str, str]) -> Node:
    """This pod's place, from the environment that the operator rendered and Kubernetes filled. Raises `ConfigError`."""
    nodes = config.device.nodes
    if nodes == 1:
        return Node()
    if checkpoint_claim(config) is None:
        raise ConfigError(
            f"resources.nodes is {nodes}, and no claim is there for checkpoints, without which a node that is replaced "
            "could not continue: set checkpoint.volumeClaimName"
        )
    index, rendezvous = environment.get(NODE_INDEX, ""), environment.get(RENDEZVOUS_ADDRESS, "")
    address, _, port = rendezvous.rpartition(":")
    if not (index.isdigit() and int(index) < nodes and address and port.isdigit()):
        raise ConfigError(
            f"resources.nodes is {nodes}, but {NODE_INDEX} is {index!r} and {RENDEZVOUS_ADDRESS} is {rendezvous!r}: "
            f"they must be a number below {nodes} and host:port, as in the pods that the operator makes; elsewhere set "
            "resources.nodes: 1"
        )
    return Node(index=int(index), nodes=nodes, address=address, port=int(port))


def grace_s(environment: Mapping[str, str]) -> float:
    """How long a stage may take to save and end after SIGTERM: the pod's grace period, but for the supervisor's share.

    Raises `ConfigError`.
    """
    text = environment.get(GRACE, str(_DEFAULT_GRACE_S))
    if not text.isdigit() or int(text) == 0:
        raise ConfigError(
            f"{GRACE} is {text!r}: must be the seconds of the pod's grace period, as the operator sets it"
        )
    return int(text) * 5 / 6


def training_program(config: TrainConfig, node: Node, threads: int, *, grace_s: float) -> Program:
    """What a node starts for its part of the training; `threads` are its CPUs, `grace_s` as of the function."""
    if node.nodes == 1:
        return local_program(config, threads, grace_s=grace_s)
    # Fixed ranks: the Job makes a lost pod anew under its old number.
    place = (
        "--nnodes",
        str(node.nodes),
        "--rdzv-conf",
        f"rank={node.index},timeout={max(config.stall_timeout_s, _MEETING_S)}",
    )
    meeting = ("--rdzv-backend", RENDEZVOUS, "--rdzv-endpoint", f"{node.address}:{node.port}")
    return _torchrun(config, threads, (*place, *meeting), {}, grace_s)


def local_program(config: TrainConfig, threads: int, *, grace_s: float) -> Program:
    """What is started for a stage that uses all GPUs of this node and no other's."""
    if _processes(config) == 1:
        return ONE_PROCESS
    return _torchrun(config, threads, _BY_FILES, _NO_OPEN_PORTS, grace_s)


def _processes(config: TrainConfig) -> int:
    return max(1, config.device.gpus)


def _torchrun(
    config: TrainConfig, threads: int, meeting: tuple[str, ...], network: Mapping[str, str], grace_s: float
) -> Program:
    here = _processes(config)
    # torchrun is to end what does not before the supervisor ends torchrun.
    shutdown = ("--shutdown-timeout", str(max(1, int(grace_s * 0.9))))
    # Never a restart by torchrun: the Job tries again, and counts it.
    processes = ("--nproc-per-node", str(here), "--max-restarts", "0", *shutdown)
    torchrun = (sys.executable, "-P", "-m", "lora_trainer.host.torchrun")
    return Program(
        command=(*torchrun, *meeting, *processes, "--module", "lora_trainer.stage"),
        environment={
            "OMP_NUM_THREADS": str(max(1, threads // here)),
            "PYTHONSAFEPATH": "1",
            **network,
        },
    )
