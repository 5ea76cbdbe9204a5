"""`make soak` runs every test that only a soak runs."""

import re

from localcluster.settings import REPOSITORY


def test_the_soak_has_every_file_with_a_test_of_its_own() -> None:
    """In its first part, the one with the soak's profile: by the file, or by its folder."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^soak-generated:.*\n\t@HYPOTHESIS_PROFILE=soak (.*)$", makefile, flags=re.MULTILINE)
    given = [word for word in line.split() if word.startswith("tests/")]
    assert all((REPOSITORY / path).exists() for path in given)
    files = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "tests").rglob("test_*.py")}
    asks = re.compile(r"pytest\.mark\.soak|environ.*HYPOTHESIS_PROFILE")
    long = {file for file in files if asks.search((REPOSITORY / file).read_text(encoding="utf-8"))}
    assert len(long) > 2
    assert {file for file in long if not any(file.is_relative_to(path) for path in given)} == set()
