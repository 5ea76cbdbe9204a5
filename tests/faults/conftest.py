"""The operator's stage, as for the component tests, and one that tests share."""

from tests.component.conftest import definition, stage
from tests.faults.sharing import shared

__all__ = ["definition", "shared", "stage"]
