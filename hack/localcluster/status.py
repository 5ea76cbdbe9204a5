"""What `hack/cluster status` says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localcluster import lifecycle, node

if TYPE_CHECKING:
    from pathlib import Path

    from localcluster.settings import Places


def describe(places: Places) -> list[str]:
    """Lines for a person: the cluster, each component, and where things are."""
    record = lifecycle.load_record(places)
    if record is None:
        return [f"Cluster {places.name} does not exist: start it with `hack/cluster up`."]
    if not lifecycle.is_running(places):
        return [f"Cluster {places.name} has ended unexpectedly: start it again with `hack/cluster up`."]
    server = lifecycle.api(places, record.api_port)
    lines = [
        f"cluster     {places.name} ({record.profile}, {record.kubernetes})",
        f"API server  https://127.0.0.1:{record.api_port} {'ready' if server.ready() else 'NOT ready'}",
    ]
    if record.profile == node.PROFILE:
        lines.append(f"node        {'Ready' if node.node_is_ready(server) else 'NOT Ready'}")
        lines.append(f"registry    127.0.0.1:{record.registry_port}, localhost:5000 in `image:`")
        lines.append(f"volumes     {places.volumes}")
    lines += [f"kubeconfig  {places.kubeconfig}", f"logs        {places.logs}", ""]
    return lines + [_component(name, state, places.logs) for name, state in lifecycle.component_states(places).items()]


def _component(name: str, state: dict[str, int | None], logs: Path) -> str:
    if state["pid"] is None:
        what = "waiting for the API server" if state["starts"] == 0 else f"ended with {state['lastExit']}"
        return f"{name:<24} {what}; log: {logs / f'{name}.log'}"
    again = f", started {state['starts']} times" if (state["starts"] or 0) > 1 else ""
    return f"{name:<24} runs{again}"
