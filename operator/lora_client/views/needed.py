"""What a manifest names in its namespace, and how to make it: a run waits for what does not exist."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lora_client.views.resources import text

_ADDRESSES = (("model", "uri"), ("dataset", "uri"), ("dataset", "validationUri"), ("output", "uri"))
_KEYS = {
    "hf": "HF_TOKEN=hf_...",
    "s3": "AWS_ACCESS_KEY_ID=... --from-literal=AWS_SECRET_ACCESS_KEY=...",
    "WandB": "WANDB_API_KEY=...",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """An object by its plural and name, the field that names it, and what makes it."""

    plural: str
    kind: str
    name: str
    path: str
    remedy: str

    def sentence(self, namespace: str) -> str:
        """What is said where it does not exist."""
        return f"There is no {self.kind} {self.name} in {namespace}, which {self.path} names: {self.remedy}"


def needed(manifest: Mapping[str, Any], namespace: str) -> list[Needed]:
    """Each object once, by the first field that names it."""
    found: dict[tuple[str, str], Needed] = {}
    for one in (*_claims_and_maps(manifest, namespace), *_secrets(manifest, namespace)):
        found.setdefault((one.plural, one.name), one)
    return list(found.values())


def _claims_and_maps(manifest: Mapping[str, Any], namespace: str) -> Iterator[Needed]:
    named = [(f"spec.{'.'.join(path)}", text(manifest, "spec", *path)) for path in _ADDRESSES]
    named.append(("spec.dataset.chatTemplate", text(manifest, "spec", "dataset", "chatTemplate")))
    claim = text(manifest, "spec", "checkpoint", "volumeClaimName")
    named.append(("spec.checkpoint.volumeClaimName", f"pvc://{claim}" if claim else ""))
    for path, address in named:
        scheme, _, rest = address.partition("://")
        name, _, key = rest.partition("/")
        if scheme == "pvc":
            remedy = "create a PersistentVolumeClaim of this name, with room for checkpoints and adapter"
            yield Needed(plural="persistentvolumeclaims", kind="claim", name=name, path=path, remedy=remedy)
        elif scheme == "configmap":
            remedy = f"kubectl create configmap {name} -n {namespace} --from-file={key}=FILE makes it"
            yield Needed(plural="configmaps", kind="ConfigMap", name=name, path=path, remedy=remedy)


def _secrets(manifest: Mapping[str, Any], namespace: str) -> Iterator[Needed]:
    for section in ("model", "dataset", "output", "tracking"):
        name = text(manifest, "spec", section, "secretRef", "name")
        kind = text(manifest, "spec", section, "uri").partition("://")[0] or text(manifest, "spec", section, "kind")
        if name:
            made = f"kubectl create secret generic {name} -n {namespace} --from-literal={_KEYS.get(kind)} makes it"
            remedy = made if kind in _KEYS else "create it, or correct the name"
            path = f"spec.{section}.secretRef"
            yield Needed(plural="secrets", kind="Secret", name=name, path=path, remedy=remedy)
