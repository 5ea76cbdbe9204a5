"""Whether the cluster has Kueue, which hands out quota: nothing of it is asked for or watched where it is not."""

import dataclasses

from lora_operator.cluster.api import WORKLOADS, Api, ApiError, Object

_VERSIONS = ("v1beta2", "v1beta1")


class Kueue:
    """What discovery said when the operator began. `workloads` is the kind in the newest version that both know."""

    def __init__(self) -> None:
        self.served = False
        self.workloads = WORKLOADS

    async def discover(self, api: Api) -> None:
        """Ask the API server. Raises `ApiError` or `UnreachableError`."""
        version = await _served_version(api)
        self.served = version is not None
        self.workloads = dataclasses.replace(WORKLOADS, version=version or WORKLOADS.version)

    async def has_changed(self, api: Api) -> bool:
        """Whether Kueue was installed, removed or exchanged since. Raises `ApiError` or `UnreachableError`."""
        return await _served_version(api) != (self.workloads.version if self.served else None)


async def _served_version(api: Api) -> str | None:
    group = await _get(api, f"/apis/{WORKLOADS.group}")
    served = {str(entry.get("version")) for entry in group.get("versions") or ()}
    for version in _VERSIONS:
        if version in served:
            kinds = await _get(api, f"/apis/{WORKLOADS.group}/{version}")
            if any(entry.get("name") == WORKLOADS.plural for entry in kinds.get("resources") or ()):
                return version
    return None


async def _get(api: Api, path: str) -> Object:
    try:
        return await api.request("GET", path)
    except ApiError as error:
        if error.code != 404:
            raise
        return {}
