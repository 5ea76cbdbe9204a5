#!/usr/bin/env python3
"""Seeded defects of operator, trainer, client and chart, and what notices each: the baselines of restructurings.

`operator.yaml`, `trainer.yaml` and `client.yaml`, which has the chart's, too, list each mutant by what the program then
does wrong. `baseline` is its form for the code of the list's commit in BASELINES, `present` that for the code of today:
a file, a text that stands there once, and what takes its place. Without a form for today it stands where it stood. What
was noticed at the baseline is to be noticed today; a survivor is a promise without a test. `results` has for each form
the first suspect that noticed it, `survived` and what that outlived, or `inert`, for a form that changes no behaviour.
A suspect is a black-box test, or `oracle:ID`, a case of tests/oracle: it notices where the mutant does otherwise than
the baseline. Suites of the operator are tests/model, tests/faults and tests/component, never tests/unit. Of `suspects`
the oracle comes first, and of tests the quickest.

    tests/mutants/run.py check                     every form applies, and its modules import
    tests/mutants/run.py control                   the suspects without a mutant: what fails then proves nothing
    tests/mutants/run.py run [ID ...]              these, else all, against the suspects that they have yet to meet
    tests/mutants/run.py run --suite tests/model   what is not killed yet against a whole suite
    tests/mutants/run.py table                     the results

It is about the operator, or with `--of trainer` about that; with `--form present` about the code of HEAD. Each mutant
is applied in a git worktree of its own, under the Python that runs this, so the checkout stays as it is. Of the
operator several processes may run at once, with an ID each; the oracle is one at a time. It is no test itself: either
list takes some two hours on two cores.
"""

import argparse
import fcntl
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

BASELINES = {"operator": "a9df28d8", "trainer": "f4833ece", "client": "ff000731"}
"""The commit of each list."""
REPOSITORY = Path(__file__).resolve().parents[2]
ORACLE = "oracle:"
SURVIVED = "survived"
# What is waited for in vain, which is how most mutants are noticed, costs so much; mostly it comes in a second or two.
PATIENCE_S = 60.0
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)

Mutant = dict[str, Any]


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """A checkout of a commit; it is gone after the block."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        place = Path(folder) / "code"
        git = ["git", "-C", str(REPOSITORY), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(place), commit], check=True)
        patience = place / "tests" / "component" / "patience.py"
        text = re.sub(r"^DEADLINE_S = .*", f"DEADLINE_S = {PATIENCE_S}", patience.read_text(), flags=re.MULTILINE)
        patience.write_text(text)
        try:
            yield place
        finally:
            subprocess.run([*git, "remove", "--force", str(place)], check=True)


@contextmanager
def applied(mutant: Mutant, form: str, place: Path) -> Iterator[None]:
    """The defect is there within the block."""
    file = place / mutant[form]["file"]
    text = file.read_text()
    if text.count(mutant[form]["find"]) != 1:
        raise SystemExit(f"{mutant['id']}: its text stands {text.count(mutant[form]['find'])} times in {file}")
    file.write_text(text.replace(mutant[form]["find"], mutant[form]["replace"]))
    try:
        yield
    finally:
        file.write_text(text)


def pytest(place: Path, tests: list[str], limit_s: float, workers: int) -> str:
    """The first test that failed; empty where none did. A suite that takes longer than `limit_s` has failed, too."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider", *tests]
    command += [f"-n{workers}"] if workers > 1 else []
    # Before the checkout that is installed: a server of processes imports what it preloads without pytest's paths.
    paths = os.pathsep.join(str(place / part) for part in ("operator", "trainer_image", "."))
    environment = {**os.environ, "PYTHONPATH": paths}
    try:
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return f"timeout of {limit_s:.0f} s in {' '.join(tests)}"
    if done.returncode == 0:
        return ""
    found = _FAILED.search(done.stdout)
    if found is None:
        said = (done.stdout + done.stderr)[-300:]
        raise SystemExit(f"pytest ended with {done.returncode}, and no test failed: {said}")
    return found[1]


def oracle(place: Path, case: str, baseline: str) -> str:
    """The case where it differs from the baseline, whose observations the oracle keeps; empty where it does not."""
    command = [sys.executable, "tests/oracle/run.py", "compare", case, "--before", baseline, "--after", str(place)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    found = re.search(rf" s  {re.escape(case)} *(equal|\d+ differ)", done.stdout)
    if found is None:
        raise SystemExit(f"the oracle ended with {done.returncode}: {(done.stdout + done.stderr)[-300:]}")
    return "" if found[1] == "equal" else f"{ORACLE}{case}"


def noticed(place: Path, tests: str, given: argparse.Namespace) -> str:
    """What of a suspect or a suite notices that the code in `place` is wrong; empty where nothing does."""
    if tests.startswith(ORACLE):
        return oracle(place, tests.removeprefix(ORACLE), BASELINES[given.of])
    return pytest(place, [tests], given.limit, given.workers)


def note(listed: Path, identity: str, form: str, result: str) -> None:
    """Write one result down; another process may do the same."""
    with listed.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        mutants = yaml.safe_load(file)
        next(m for m in mutants if m["id"] == identity).setdefault("results", {})[form] = result
        file.seek(0)
        file.truncate()
        file.write(written(mutants))


def written(mutants: list[Mutant]) -> str:
    """The list as it is kept, with its code line by line."""
    yaml.SafeDumper.add_representer(str, _as_text)
    return yaml.safe_dump(mutants, sort_keys=False, width=1000, allow_unicode=True)


def _as_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


def left(mutant: Mutant, form: str, suites: list[str]) -> list[str]:
    """Of these suites, or of its suspects, those that a mutant has yet to meet; none for one that was killed."""
    result = str(mutant.get("results", {}).get(form, SURVIVED))
    if not result.startswith(SURVIVED):
        return []
    outlived = result.removeprefix(SURVIVED).split()
    return [tests for tests in suites or mutant["suspects"] if not any(_holds(met, tests) for met in outlived)]


def _holds(suite: str, tests: str) -> bool:
    """Whether tests are a suite, or in it: a folder, a file, or a test with its parameters."""
    return tests.startswith(suite) and tests[len(suite) :][:1] in ("", "/", ":", "[")


def run(mutant: Mutant, suites: list[str], commit: str, given: argparse.Namespace) -> str:
    """How the mutant fares against these suites."""
    outlived = str(mutant.get("results", {}).get(given.form, SURVIVED)).split()
    with worktree(commit) as place, applied(mutant, given.form, place):
        for tests in suites:
            killer = noticed(place, tests, given)
            if killer:
                return killer
            outlived.append(tests)
    return " ".join(outlived)


def check(mutants: list[Mutant], form: str, commit: str) -> None:
    """Raise where a form does not apply or import."""
    with worktree(commit) as place:
        for mutant in mutants:
            with applied(mutant, form, place):
                if not mutant[form]["file"].endswith(".py"):
                    continue
                module = mutant[form]["file"].partition("/")[2].removesuffix(".py").replace("/", ".")
                source = f"import sys; sys.path[:0] = ['operator', 'trainer_image']; import {module}"
                subprocess.run([sys.executable, "-c", source], cwd=place, check=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["check", "control", "run", "table"])
    parser.add_argument("ids", nargs="*")
    parser.add_argument("--of", choices=BASELINES, default="operator")
    parser.add_argument("--form", choices=["baseline", "present"], default="baseline")
    parser.add_argument("--suite", nargs="*", default=[])
    parser.add_argument("--limit", type=float, default=900, help="seconds for each run of pytest")
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    # The worktree is removed then, too, and pytest is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    listed = Path(__file__).with_name(f"{given.of}.yaml")
    commit = BASELINES[given.of] if given.form == "baseline" else "HEAD"
    listed_mutants = yaml.safe_load(listed.read_text())
    mutants = [m if given.form in m else {**m, given.form: m["baseline"]} for m in listed_mutants]
    if given.what == "check":
        check(mutants, given.form, commit)
    elif given.what == "control":
        with worktree(commit) as place:
            for tests in given.suite or sorted({tests for m in mutants for tests in m["suspects"]}):
                began_s = time.monotonic()
                killer = noticed(place, tests, given)
                print(f"{time.monotonic() - began_s:6.0f} s  {tests}  {killer or 'passed'}", flush=True)
    elif given.what == "table":
        for mutant in mutants:
            print(f"{mutant['id']:28}  {mutant.get('results', {}).get(given.form, 'not run')}")
    for mutant in mutants if given.what == "run" else []:
        suites = left(mutant, given.form, given.suite)
        if not suites or (given.ids and mutant["id"] not in given.ids):
            continue
        began_s = time.monotonic()
        result = run(mutant, suites, commit, given)
        note(listed, mutant["id"], given.form, result)
        print(f"{time.monotonic() - began_s:6.0f} s  {mutant['id']}  {result}", flush=True)


if __name__ == "__main__":
    main()
