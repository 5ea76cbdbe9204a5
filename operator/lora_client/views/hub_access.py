"""How the training reached the Hub, for a server that loads the base model from there."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_client.views.kept_pod import CACHE, TRAINER, kept_pod
from lora_client.views.resources import Object, part, text

_CA_FOLDER = "/etc/lora-ca"
_REACHES = re.compile(r"HF_\w+|\w+_PROXY|SSL_CERT_FILE|(?:REQUESTS|CURL)_CA_BUNDLE", re.IGNORECASE)
_OFFLINE = "HF_HUB_OFFLINE"
_PLACES = {
    "hf": ("hubEndpoint", "HF_ENDPOINT", "huggingface.co"),
    "s3": ("s3Endpoint", "AWS_ENDPOINT_URL_S3", "AWS S3"),
}
"""Of the chart's configuration: the field, the variable that it becomes, and what is asked without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAccess:
    """Variables of a container; the claim with the namespace's cache, empty for none; certificates as a mount and a
    volume; whether the training might use the cache alone, and there is none."""

    variables: tuple[dict[str, Any], ...] = ()
    cache: str = ""
    mounts: tuple[dict[str, Any], ...] = ()
    volumes: tuple[dict[str, Any], ...] = ()
    lacks_cache: bool = False


def hub_access(run: Object, template: Object, *, cached: bool) -> HubAccess:
    """By the pod template of the run's Job, else by its status; Secrets are not among the variables. The cache, which
    is written to, only where it may be `cached`."""
    given = part(template, "spec") or kept_pod(run)
    trainer: Object = next((c for c in given.get("containers") or () if c.get("name") == TRAINER), {})
    sources = {str(volume.get("name")): volume for volume in given.get("volumes") or ()}
    mounts = {str(mount.get("mountPath")): mount for mount in trainer.get("volumeMounts") or ()}
    cache = text(_source(CACHE, mounts, sources), "persistentVolumeClaim", "claimName") if cached else ""
    certificates = _source(_CA_FOLDER, mounts, sources)
    folders = ((CACHE,) if cache else ()) + ((_CA_FOLDER,) if certificates else ())
    variables = [dict(each) for each in trainer.get("env") or () if _reaches(each, folders)]
    # Without a cache, a server that may not ask the Hub has no model to load.
    kept = [each for each in variables if cache or each["name"] != _OFFLINE]
    return HubAccess(
        variables=tuple(kept),
        cache=cache,
        mounts=({**mounts[_CA_FOLDER], "readOnly": True},) if certificates else (),
        volumes=(dict(certificates),) if certificates else (),
        lacks_cache=len(kept) < len(variables),
    )


def _source(path: str, mounts: Mapping[str, Object], sources: Mapping[str, Object]) -> Object:
    return sources.get(text(mounts.get(path), "name"), {})


def _reaches(variable: Object, folders: tuple[str, ...]) -> bool:
    """Whether it says how the Hub is reached; one that names a folder only where that is mounted."""
    name, value = text(variable, "name"), text(variable, "value")
    return bool(_REACHES.fullmatch(name) and value) and (not value.startswith("/") or value.startswith(folders))


def lost_access(run: Object, template: Object, remedy: str, unread: str = "") -> str:
    """What a pod lacks that loads the base model once the run's Job is gone, or where it cannot be read (`unread` says
    why), and what to do; empty where the Job is there, where the defaults name the server, and for a model on a
    claim."""
    scheme = text(run, "spec", "model", "uri").partition("://")[0]
    if template or scheme not in _PLACES:
        return ""
    field, variable, elsewhere = _PLACES[scheme]
    if text(run, "status", "resolved", "pod", "environment", variable):
        return ""
    secret = text(run, "spec", "model", "secretRef", "name")
    goes = f", with the credentials of Secret {secret}" if secret else ""
    missing = f"cannot be read ({unread}), which alone names" if unread else "is gone, which alone named"
    return (
        f"The run's Job {missing} {variable} and certificates where the chart sets config.{field} and "
        f"config.caBundleConfigMap: without them the model is fetched from {elsewhere}{goes}; in that case, {remedy}"
    )
