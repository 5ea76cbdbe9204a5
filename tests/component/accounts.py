"""Service accounts with exactly the rights that a test names, and kubeconfigs for them."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml
from tests.component.documents import Object
from tests.component.patience import eventually
from tests.faults.proxy import FaultProxy

from localcluster.api import Api
from lora_operator.controller.checks import Right

_GROUP = "rbac.authorization.k8s.io"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """The accounts of one namespace; `kubeconfig` is an administrator's, and theirs come into `folder`."""

    api: Api
    kubeconfig: Path
    namespace: str
    folder: Path

    def make(self, granted: Mapping[str, tuple[Right, ...]], proxy: FaultProxy | None) -> tuple[str, Path]:
        """A service account with these rights by namespace, and a kubeconfig with a token for it, once it has them.

        The namespace "" stands for the whole cluster. With a proxy the API server is reached through that.
        """
        name = f"operator-{uuid.uuid4().hex[:8]}"
        core = f"/api/v1/namespaces/{self.namespace}"
        self.api.post(f"{core}/serviceaccounts", {"metadata": {"name": name}})
        for namespace, rights in granted.items():
            self.bind(name, namespace, rights)
            for right in rights[-1:]:
                eventually(partial(self._may, name, namespace, right), f"{name} may {right}")
        request = self.api.post(f"{core}/serviceaccounts/{name}/token", {"spec": {"expirationSeconds": 3600}})
        config = yaml.safe_load(self.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": request["status"]["token"]}
        if proxy is not None:
            config["clusters"][0]["cluster"] = {"server": proxy.url}
        path = self.folder / f"{name}.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return name, path

    def bind(self, account: str, namespace: str, rights: tuple[Right, ...]) -> None:
        """From now on the account has these rights there and no others."""
        finalizers = {"apiGroups": ["lora-operator.io"], "resources": ["lorafinetunes/finalizers"], "verbs": ["update"]}
        cluster = "" if namespace else "cluster"
        path = f"/apis/{_GROUP}/v1" + (f"/namespaces/{namespace}" if namespace else "")
        role_kind, binding_kind = ("Role", "RoleBinding") if namespace else ("ClusterRole", "ClusterRoleBinding")
        head = {"apiVersion": f"{_GROUP}/v1", "metadata": {"name": account}}
        rules = [finalizers, *map(_rule, rights)]
        self.api.apply(f"{path}/{cluster}roles/{account}", {**head, "kind": role_kind, "rules": rules})
        subject = {"kind": "ServiceAccount", "name": account, "namespace": self.namespace}
        binding = {"subjects": [subject], "roleRef": {"apiGroup": _GROUP, "kind": role_kind, "name": account}}
        self.api.apply(f"{path}/{cluster}rolebindings/{account}", {**head, "kind": binding_kind, **binding})

    def _may(self, account: str, namespace: str, right: Right) -> bool:
        """Whether the API server knows of it yet."""
        place = {"namespace": namespace} if namespace else {}
        what = {"verb": right.verb, "group": right.resource.group, "resource": right.resource.plural}
        attributes = {**place, **what, **({"subresource": right.subresource} if right.subresource else {})}
        user = f"system:serviceaccount:{self.namespace}:{account}"
        review = {"spec": {"user": user, "resourceAttributes": attributes}}
        answer = self.api.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        return bool(answer["status"]["allowed"])


def _rule(right: Right) -> Object:
    resource = right.resource.plural + (f"/{right.subresource}" if right.subresource else "")
    return {"apiGroups": [right.resource.group], "resources": [resource], "verbs": [right.verb]}
