"""The schema of the spec as the API server has it."""

from typing import Any

from docgen.crd import definition

SPEC: dict[str, Any] = definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
