"""`lora-operator verify`: is the installation whole? What the Job of `helm test` runs, with an account of its own.

It changes nothing: it creates reviews of rights, which are not stored, and sends the sample as a dry run.
"""

import asyncio
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from kubernetes.aio.client.api_client import ApiClient

from lora_operator.cluster.api import FINETUNES, Api, ApiError, UnreachableError
from lora_operator.cluster.kueue import Kueue
from lora_operator.cluster.login import LoginError, load_configuration
from lora_operator.running.self_check import (
    Account,
    SelfCheckError,
    check_definition,
    check_lease,
    rights_used,
    shortage,
)
from lora_operator.views.config import OperatorConfig

LEADER_S = 20.0
"""How long it waits for a leader, which a Service with several operators behind it shows only in some answers."""
_PAUSE_S = 0.5
_TIMEOUT = aiohttp.ClientTimeout(total=5.0)
_LEADER = re.compile(r"^lora_operator_leader(\{[^}]*\})? 1(\.0)?$", re.MULTILINE)
_POLICY = re.compile(r"ValidatingAdmissionPolicy '([^']+)'")
_INVALID = 422


class VerifyError(Exception):
    """The installation is not whole; the text has one sentence with the remedy for each fault, one a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What is looked at. `sample` is a manifest that must be accepted in the namespace of `account`, the operator's.

    `metrics_url` is empty where no Service leads to the operator.
    """

    account: Account
    sample: Path
    metrics_url: str


def parse_account(text: str) -> Account:
    """NAMESPACE/NAME. Raises `VerifyError` for anything else."""
    namespace, slash, name = text.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise VerifyError(f"--account is {text!r}: write NAMESPACE/NAME of the operator's service account")
    return Account(namespace=namespace, name=name)


async def verify(installation: Installation, config: OperatorConfig) -> None:
    """Print what was found to be well. Raises `VerifyError`."""
    try:
        sample = yaml.safe_load(installation.sample.read_text(encoding="utf-8"))
        async with ApiClient(await load_configuration()) as client:
            api = Api(client)
            found = [
                *await faults_of_rights(api, installation.account, config),
                *await faults_of_sample(api, installation.account.namespace, sample),
                *await faults_of_leader(installation.metrics_url),
            ]
    except (ApiError, LoginError, OSError, SelfCheckError, UnreachableError) as error:
        raise VerifyError(str(error)) from error
    if found:
        raise VerifyError("\n".join(found))


async def faults_of_rights(api: Api, account: Account, config: OperatorConfig) -> list[str]:
    """A sentence where the operator's account lacks a right that the operator uses.

    Raises `SelfCheckError` where the cluster does not know the definition.
    """
    await check_definition(api)
    kueue = Kueue()
    await kueue.discover(api)
    rights = rights_used(kueue=kueue.served)
    sentence = await shortage(api, account, config.namespaces, rights)
    found = [sentence] if sentence else []
    try:
        await check_lease(api, config.lease_namespace or account.namespace, config.lease_name, account)
    except SelfCheckError as error:
        found.append(str(error))
    if not found:
        places = ", ".join(config.namespaces) or "all namespaces"
        _report(f"{account.name} may do all {len(rights)} things that the operator does, in {places}")
    return found


async def faults_of_sample(api: Api, namespace: str, sample: Mapping[str, Any]) -> list[str]:
    """A sentence where the API server does not accept the sample, by a dry run.

    A policy is asked only for what the definition accepts, so that its refusal is none of the installation's faults.
    """
    # A run of the sample's own name may be there, by somebody who has pasted it.
    body = {**sample, "metadata": {**sample.get("metadata", {}), "generateName": "verify-"}}
    del body["metadata"]["name"]
    try:
        await api.request("POST", FINETUNES.path(namespace), query={"dryRun": "All"}, body=body)
    except ApiError as error:
        policy = _POLICY.search(error.message)
        if policy is None:
            return [_refused(error, namespace)]
        _report(f"the definition accepts the sample, and the policy {policy[1]} refuses it: {error.message}")
    else:
        _report(f"the API server accepts the sample in {namespace}")
    return []


def _refused(error: ApiError, namespace: str) -> str:
    remedy = "the message names what refuses it"
    if error.code == _INVALID:
        remedy = "the definition is another release's, so upgrade the chart with crds.install=true"
    return f"The API server does not accept the sample of the notes in {namespace} ({error.message}): {remedy}"


async def faults_of_leader(url: str, wait_s: float = LEADER_S) -> list[str]:
    """A sentence where no operator says within `wait_s` that it leads."""
    if not url:
        _report("metrics are not looked at, since no Service leads to them (metrics.service.enabled)")
        return []
    end_s = time.monotonic() + wait_s
    while not _LEADER.search(answer := await _metrics(url)):
        if time.monotonic() > end_s:
            return [_leaderless(url, answer)]
        await asyncio.sleep(_PAUSE_S)
    _report(f"{url} answers, with a leader")
    return []


def _leaderless(url: str, answer: str) -> str:
    logs = "look at its pods with kubectl get pods and kubectl logs, or raise replicas where that is 0"
    said = "has no lora_operator_leader of 1" if "\n" in answer else f"does not answer ({answer})"
    return f"{url} {said}, so no operator is at work: {logs}"


async def _metrics(url: str) -> str:
    """The exposition, or in one line why there is none. Each time another connection, perhaps to another operator."""
    try:
        async with aiohttp.ClientSession(trust_env=False, timeout=_TIMEOUT) as session, session.get(url) as response:
            return await response.text() if response.status == 200 else f"status {response.status}"
    except (aiohttp.ClientError, TimeoutError) as error:
        return " ".join(str(error).split()) or type(error).__name__


def _report(text: str) -> None:
    sys.stdout.write(f"ok: {text}\n")
