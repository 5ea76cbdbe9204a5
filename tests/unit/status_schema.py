"""The schema of the status as the API server enforces it; unknown fields, which it would drop, are errors here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from lora_operator.model.wording import parse_instant

_CRD = Path(__file__).parents[2] / "crds" / "lorafinetunes.yaml"
_INTEGERS = {"int32": 2**31 - 1, "int64": 2**63 - 1}


def status_schema() -> dict[str, Any]:
    """The status of the served version, strict."""
    crd = yaml.safe_load(_CRD.read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    strict: dict[str, Any] = _strict(schema)
    return strict


def check_status(status: Mapping[str, Any]) -> None:
    """Raise where a status would be refused or lose a field."""
    _VALIDATOR.validate(status)
    for condition in status.get("conditions", ()):
        assert parse_instant(condition["lastTransitionTime"]) is not None
    for key in ("startTime", "completionTime"):
        assert key not in status or parse_instant(status[key]) is not None


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: _strict(value) for key, value in schema.items() if not key.startswith("x-kubernetes")}
    if schema.get("type") == "object" and "properties" in schema:
        result["additionalProperties"] = False
    if schema.get("type") == "integer":
        result.setdefault("maximum", _INTEGERS[schema["format"]])
    return result


_VALIDATOR = jsonschema.Draft202012Validator(status_schema())
