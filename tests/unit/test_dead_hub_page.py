"""The page that says how long a Hub that is not there delays a preflight, against the tries and their limits."""

from pathlib import Path

from lora_trainer.places.network import ATTEMPTS, CONNECT_S, READ_S

PAGE = Path(__file__).parents[2] / "docs" / "operator.md"


def test_the_page_says_how_long_a_dead_hub_delays_a_run() -> None:
    """Tries, and the longest pauses between them, which double from a second on."""
    pauses_s = 2 ** (ATTEMPTS - 1) - 1
    assert ATTEMPTS * CONNECT_S + pauses_s < 60
    minutes = round((ATTEMPTS * READ_S + pauses_s) / 60)
    limits = f"({ATTEMPTS} tries of {CONNECT_S:.0f} and {READ_S:.0f} s)"
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert f"fails a pod within a minute, an unresponsive one in about {minutes} {limits}" in page
