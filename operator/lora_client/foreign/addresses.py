"""Where another tool has its model and its rows, as addresses of this API."""

import re

from lora_client.foreign.mapping import Conversion, variable
from lora_client.views.words import is_file
from lora_trainer.spec.uri import UriError, parse_uri

MISSING_MODEL = "hf://organisation/model"
MISSING_DATASET = "hf://organisation/data-set"
_ALONE = re.compile(r"[A-Za-z0-9][\w.-]*")
"""A name on the Hub without its organisation, as its oldest models and data sets have."""


def validation(c: Conversion, name: str, value: object, *fractions: str) -> None:
    """A data set of held-out rows, which takes the place of a share of the others."""
    for fraction in fractions:
        c.leave(fraction, f"{name} says what is held out")
    c.mapped[:] = [pair for pair in c.mapped if pair[1] != "dataset.validationFraction"]
    c.fields.pop("dataset.validationFraction", None)
    dataset(c, name, value, "dataset.validationUri")


def model(c: Conversion, name: str) -> None:
    """A name on the Hub or an address; a folder has to come onto a claim first."""
    revisions = ("model_revision", "revision_of_model", "revision")
    revision = next((c.get(one) for one in revisions if c.get(one)), None)
    uri = address(c.get(name))
    if uri:
        takes = uri.startswith("hf://") and "@" not in uri and revision and revision != "main"
        c.set("model.uri", f"{uri}@{revision}" if takes else uri, name, *revisions)
        return
    c.fields["model.uri"] = MISSING_MODEL
    c.to_fill.append(f"model.uri: {name} {_no_address(c.get(name))}: write hf://, s3:// or pvc://claim/path")


def dataset(c: Conversion, name: str, value: object, path: str = "dataset.uri") -> None:
    """A name on the Hub or an address; a file has to come to where pods see it."""
    text = str(value or "")
    file = is_file(text) and "://" not in text
    if not file and address(text):
        c.fields[path] = address(text)
        c.mapped.append((name, path))
        return
    c.fields[path] = MISSING_DATASET
    c.to_fill.append(
        f"{path}: {name} is the file {text}: copy it to a claim, pvc://claim/path, or into a ConfigMap, "
        "configmap://name/key"
        if file
        else f"{path}: {name} {_no_address(value)}: write hf://, s3://, pvc://claim/path or configmap://name/key"
    )


def address(value: object) -> str:
    """That of organisation/repository on the Hub, or one of any scheme as it is; empty for a path and all else."""
    text = str(value or "")
    if "://" in text:
        return text
    try:
        parse_uri(f"hf://{text}")
    except UriError:
        return ""
    return "" if "." in text.partition("/")[0] else f"hf://{text}"


def _no_address(value: object) -> str:
    text = str(value or "")
    if not text:
        return "is missing"
    alone = "which lacks its organisation on the Hub" if _ALONE.fullmatch(text) else "which is not a name on the Hub"
    return f"is {text}, {variable(text) or alone}"
