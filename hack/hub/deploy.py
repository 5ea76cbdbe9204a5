"""The stand-in in a cluster: a Deployment and a Service in a namespace of its own."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localcluster.client import Client

NAMESPACE = "lora-demo-hub"
ENDPOINT = f"http://hub.{NAMESPACE}.svc"
"""What HF_ENDPOINT, and the chart's config.hubEndpoint, is set to inside the cluster."""


def manifests(image: str) -> str:
    """Return hub.yaml with the image filled in."""
    return (Path(__file__).parent / "hub.yaml").read_text().replace("image: IMAGE\n", f"image: {image}\n")


def deploy(client: "Client", image: str, *, timeout_s: int = 180) -> str:
    """Apply the manifests, wait until the server answers, and return the endpoint. Raises CommandError."""
    client.kubectl("apply", "--filename=-", stdin=manifests(image))
    client.kubectl(
        "rollout",
        "status",
        "deployment/hub",
        f"--namespace={NAMESPACE}",
        f"--timeout={timeout_s}s",
        timeout_s=timeout_s + 30,
    )
    return ENDPOINT
