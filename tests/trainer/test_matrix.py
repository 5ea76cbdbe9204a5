"""Each option with each family of models: it ends with a verified adapter, or is refused before weights are read."""

import shutil
from pathlib import Path

import pytest
from tests.trainer.families import FAMILIES, make_family
from tests.trainer.matrix import (
    FORBIDDEN,
    OPTIONS,
    Cell,
    chosen,
    config_of,
    covering_array,
    lay_out,
    name_of,
    run_cell,
    single_changes,
)

from lora_trainer.spec.manifest import ManifestError

CELLS = 30
"""How many are run outside of the soak: all families and all values of options are among them."""
REFUSED = frozenset({"bert", "t5", "bart"})
"""Families that are no causal language models."""

_FEW = [name_of(cell) for cell in chosen(covering_array(), CELLS)]


@pytest.fixture(scope="module")
def claims(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Claims with data and, once they are used, models."""
    return lay_out(tmp_path_factory.mktemp("matrix"))


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(cell, id=name_of(cell), marks=() if name_of(cell) in _FEW else pytest.mark.soak)
        for cell in {name_of(cell): cell for cell in (*covering_array(), *single_changes())}.values()
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_cell_trains_or_is_refused_in_time(cell: Cell, claims: Path, tmp_path: Path) -> None:
    """Nothing else: no failure after minutes of reading weights, none after hours of training."""
    model = claims / "models" / cell["family"]
    if not model.exists():
        make_family(model, cell["family"])
    outcome = run_cell(cell, claims, tmp_path)
    shutil.rmtree(tmp_path)
    assert outcome.adapter is not None or not outcome.weights_read, outcome.refusal
    assert (cell["family"] in REFUSED) <= (outcome.adapter is None)


@pytest.mark.parametrize(
    "pair",
    FORBIDDEN,
    ids=lambda pair: "-".join(value for _, value in sorted(pair)),
)
def test_a_pair_that_is_left_out_is_refused_by_the_contract(pair: frozenset[tuple[str, str]]) -> None:
    """It would be, so that no cell is left out that could be run."""
    with pytest.raises(ManifestError, match=r"lora\.init"):
        config_of({"family": "llama", **dict(pair)})


def test_the_array_holds_every_pair() -> None:
    """And the few cells that are run each time every family and every value."""
    cells = covering_array()
    assert not [cell for cell in cells if any(pair <= set(cell.items()) for pair in FORBIDDEN)]
    for family in FAMILIES:
        for option, values in OPTIONS.items():
            found = {cell[option] for cell in cells if cell["family"] == family}
            assert found == set(values), f"{family} lacks values of {option}"
    few = [cell for cell in cells if name_of(cell) in _FEW]
    assert len(few) >= CELLS
    assert {cell["family"] for cell in few} == set(FAMILIES)
    assert all({cell[option] for cell in few} == set(values) for option, values in OPTIONS.items())
