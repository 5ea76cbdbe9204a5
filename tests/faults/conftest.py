"""The operator's stage, as for the component tests, one that tests share, and what a test asserts of the matrix."""

from tests.component.conftest import definition, stage
from tests.faults.proofs import faults
from tests.faults.sharing import shared

__all__ = ["definition", "faults", "shared", "stage"]
