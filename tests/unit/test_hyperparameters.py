"""The study behind docs/hyperparameters.md: its rows, its order, its comparisons and its claims."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.study.claims import CLAIMS, SAME_WITHIN, Claim, Expected, Verdict, judge
from benchmarks.study.compare import KINDS, Difference, difference, mean_loss
from benchmarks.study.order import missing, plan
from benchmarks.study.records import Run, append
from benchmarks.study.rows import make_rows
from benchmarks.study.settings import ALL, BASE, SEEDS, SETTINGS

TOKENS = 5


def run(setting: str, seed: int, *losses: float) -> Run:
    """Losses a token of the first rows; those of the rest are 1."""
    every = (*losses, *[1.0] * (len(KINDS) - len(losses)))
    return Run(
        setting=setting,
        seed=seed,
        sums=tuple(loss * TOKENS for loss in every),
        tokens=(TOKENS,) * len(KINDS),
        steps=125,
        training_loss=0.5,
        tokens_trained=13_777,
        trainable_parameters=4_884_480,
        seconds=200.0,
    )


def level(setting: str, losses: tuple[float, ...]) -> list[Run]:
    """A run for each seed, with the same loss in all rows."""
    return [run(setting, seed, *[loss] * len(KINDS)) for seed, loss in zip(SEEDS, losses, strict=False)]


def test_rows_are_a_thousand_and_two_hundred_and_the_same_each_time() -> None:
    """The recorded results are of these rows."""
    rows = make_rows()
    assert (len(rows.training), len(rows.held_out)) == (1000, 200)
    assert rows == make_rows()
    assert rows != make_rows(1)


def test_no_prompt_is_on_both_sides_and_every_fact_that_is_asked_for_is_trained() -> None:
    """Held-out rows measure what carries over, and nothing that could not be known."""
    rows = make_rows()
    prompts = [row.prompt for row in (*rows.training, *rows.held_out)]
    assert len(set(prompts)) == len(prompts)
    trained = {row.answer for row in rows.training if row.kind == "recall"}
    assert {row.answer for row in rows.held_out if row.kind == "recall"} <= trained
    assert not {row.answer for row in rows.held_out if row.kind == "rule"} <= {
        row.answer for row in rows.training if row.kind == "rule"
    }


def test_settings_differ_from_the_base_in_one_factor() -> None:
    """Alpha follows the rank, as it does in a manifest that sets the rank alone."""
    for setting in SETTINGS:
        same = replace(setting, name=BASE.name, title=BASE.title)
        changed = {name for name in BASE.__dataclass_fields__ if getattr(same, name) != getattr(BASE, name)}
        assert changed in (set(), {"rank", "alpha"}) or len(changed) == 1
        assert "rank" not in changed or setting.alpha == 2 * setting.rank
    assert len({setting.name for setting in ALL}) == len(ALL)


def test_the_first_seed_of_all_settings_comes_first() -> None:
    """A study that was stopped has a whole seed."""
    order = [(setting, seed) for setting, seed in plan(SEEDS) if setting in SETTINGS]
    assert len(order) == 30
    assert order[: len(SETTINGS)] == [(setting, SEEDS[0]) for setting in SETTINGS]


def test_a_study_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """A finished run is not trained again; one whose line was cut off is."""
    file = tmp_path / "results.jsonl"
    every = missing(file, SEEDS)
    append(file, run(every[0][0].name, every[0][1]))
    append(file, run(every[2][0].name, every[2][1]))
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole + run(every[1][0].name, every[1][1]).to_line()[:-40], encoding="utf-8")
    assert missing(file, SEEDS) == [every[1], *every[3:]]
    append(file, run(every[1][0].name, every[1][1]))
    assert missing(file, SEEDS) == every[3:]


def test_a_difference_is_paired_by_row() -> None:
    """Rows of very different losses, all of them lower by the same: no error over the rows is left."""
    hard = [float(number) for number in range(len(KINDS))]
    runs = [run("base", 1, *hard), run("other", 1, *[loss - 0.5 for loss in hard])]
    found = difference(runs, "other", "base")
    assert found is not None
    assert found.value == pytest.approx(-0.5)
    assert found.rows_error == pytest.approx(0.0, abs=1e-12)
    assert found.seeds_error is None
    assert not found.shown


def test_the_error_is_over_rows_and_over_seeds() -> None:
    """Seeds that differ by 0.1, 0.2 and 0.3: a standard deviation of 0.1, over the root of three."""
    runs = [*level("base", (1.0, 1.0, 1.0)), *level("other", (1.1, 1.2, 1.3))]
    found = difference(runs, "other", "base")
    assert found is not None
    assert found.by_seed == pytest.approx((0.1, 0.2, 0.3))
    assert found.error == found.seeds_error == pytest.approx(0.1 / math.sqrt(3))
    assert found.shown
    assert replace(found, rows_error=0.1).error == pytest.approx(math.hypot(0.1, 0.1 / math.sqrt(3)))


def test_only_seeds_that_both_have_are_compared() -> None:
    """The first seed of a setting against the third of the base says nothing."""
    assert difference([run("base", 1), run("other", 2)], "other", "base") is None
    found = difference([run("base", 1), run("other", 2), run("other", 1)], "other", "base")
    assert found is not None
    assert found.by_seed == (0.0,)


def test_kinds_of_rows_are_told_apart() -> None:
    """Of 200 rows 120 are recall."""
    recall = [2.0 if kind == "recall" else 1.0 for kind in KINDS]
    runs = {1: run("base", 1, *recall)}
    assert [mean_loss(runs, kind) for kind in (None, "recall", "rule")] == pytest.approx([1.6, 2.0, 1.0])


@pytest.mark.parametrize(
    ("value", "rows_error", "seeds_error", "shown"),
    [
        pytest.param(0.2, 0.05, 0.05, True, id="large"),
        pytest.param(-0.2, 0.05, 0.05, True, id="negative"),
        pytest.param(0.2, 0.11, 0.0, False, id="within two errors over rows"),
        pytest.param(0.2, 0.0, 0.11, False, id="within two errors over seeds"),
        pytest.param(0.2, 0.08, 0.08, False, id="within two of both"),
        pytest.param(0.2, 0.0, None, False, id="one seed"),
    ],
)
def test_a_difference_is_shown_beyond_two_standard_errors(
    value: float, rows_error: float, seeds_error: float | None, *, shown: bool
) -> None:
    """Of several seeds."""
    assert Difference(by_seed=(value,), rows_error=rows_error, seeds_error=seeds_error).shown is shown


@pytest.mark.parametrize(
    ("losses", "higher", "lower", "same"),
    [
        pytest.param((1.2, 1.21, 1.19), Verdict.SUPPORTED, Verdict.CONTRADICTED, Verdict.CONTRADICTED, id="worse"),
        pytest.param((0.8, 0.81, 0.79), Verdict.CONTRADICTED, Verdict.SUPPORTED, Verdict.CONTRADICTED, id="better"),
        pytest.param((1.01, 0.99, 1.0), Verdict.OPEN, Verdict.OPEN, Verdict.SUPPORTED, id="equal"),
        pytest.param((1.3, 0.8, 1.0), Verdict.OPEN, Verdict.OPEN, Verdict.OPEN, id="noisy"),
        pytest.param((1.02, 1.021, 1.019), Verdict.SUPPORTED, Verdict.CONTRADICTED, Verdict.SUPPORTED, id="a little"),
        pytest.param((1.04, 1.045, 1.05), Verdict.SUPPORTED, Verdict.CONTRADICTED, Verdict.OPEN, id="at the margin"),
        pytest.param((1.5,), Verdict.OPEN, Verdict.OPEN, Verdict.OPEN, id="one seed"),
        pytest.param((), Verdict.MISSING, Verdict.MISSING, Verdict.MISSING, id="none"),
    ],
)
def test_a_claim_is_judged_by_the_rule(
    losses: tuple[float, ...], higher: Verdict, lower: Verdict, same: Verdict
) -> None:
    """Against a base whose loss is 1 with every seed."""
    runs = [*level("base", (1.0, 1.0, 1.0)), *level("other", losses)]
    found = [judge(Claim(text="", setting="other", expected=each), runs)[0] for each in Expected]
    assert found == [lower, higher, same]


def test_a_claim_may_be_about_two_settings() -> None:
    """Neither of them the base."""
    runs = [*level("base", (1.0, 1.0, 1.0)), *level("one", (3.0, 3.0, 3.0)), *level("other", (2.0, 2.0, 2.0))]
    verdict, found = judge(Claim(text="", setting="other", expected=Expected.LOWER, against="one"), runs)
    assert verdict is Verdict.SUPPORTED
    assert found is not None
    assert found.value == pytest.approx(-1.0)
    equal = [*runs, *level("equal", (3.1, 3.1, 3.1))]
    assert judge(Claim(text="", setting="equal", expected=Expected.SAME, against="one"), equal)[0] is Verdict.SUPPORTED


def test_the_claims_are_about_settings_of_the_study() -> None:
    """Each setting but the base has one."""
    assert {claim.setting for claim in CLAIMS} == {setting.name for setting in SETTINGS} - {BASE.name}
    assert 0 < SAME_WITHIN < 1
