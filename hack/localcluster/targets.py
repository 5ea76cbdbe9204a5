"""What `hack/cluster forward` may lead to: an address, a Service or a pod."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from localcluster.api import ApiError
from localcluster.errors import ClusterError

if TYPE_CHECKING:
    from localcluster.api import Api


def resolve(target: str, server: Api) -> tuple[str, int]:
    """Address and port of NAMESPACE/service/NAME:PORT, NAMESPACE/pod/NAME:PORT or ADDRESS:PORT.

    Raises ClusterError for a target that is none of them or that does not exist.
    """
    where, _, port = target.rpartition(":")
    parts = where.split("/")
    try:
        if len(parts) == 1:
            return str(ipaddress.IPv4Address(where)), int(port)
        namespace, kind, name = parts
        address = _address(namespace, kind, name, server)
        return str(ipaddress.IPv4Address(address)), int(port)
    except ValueError:
        raise ClusterError(
            f"Target {target!r} must be NAMESPACE/service/NAME:PORT, NAMESPACE/pod/NAME:PORT or ADDRESS:PORT, and the"
            " Service or pod must have an IPv4 address."
        ) from None
    except ApiError as error:
        raise ClusterError(f"Target {target!r} cannot be reached: {error}.") from None


def _address(namespace: str, kind: str, name: str, server: Api) -> str:
    if kind == "service":
        return str(server.get(f"/api/v1/namespaces/{namespace}/services/{name}")["spec"].get("clusterIP"))
    if kind == "pod":
        return str(server.get(f"/api/v1/namespaces/{namespace}/pods/{name}")["status"].get("podIP"))
    raise ValueError(kind)
