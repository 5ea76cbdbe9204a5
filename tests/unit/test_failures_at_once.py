"""A soak prints a failure when it happens."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# All other plugins take much longer to load than these tests take.
BARE = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
TESTS = """
def test_a():
    assert 1 == 2, "first of all"

def test_b():
    pass
"""


def test_a_failure_is_printed_before_the_tests_that_follow(tmp_path: Path) -> None:
    """By a worker, too: the message is lost otherwise where the run is ended early."""
    (tmp_path / "test_two.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text(
        "from tests.failures_at_once import FailuresAtOnce\n"
        "def pytest_configure(config):\n    config.pluginmanager.register(FailuresAtOnce(config))\n"
    )
    pytest = (sys.executable, "-m", "pytest", "-p", "xdist.plugin")
    done = subprocess.run(
        [*pytest, "-v", "-n", "1", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTEST_ADDOPTS": "", **BARE},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    told, passed, summary = (done.stdout.find(text) for text in ("first of all", "PASSED", "= FAILURES ="))
    assert 0 < told < passed < summary, done.stdout
