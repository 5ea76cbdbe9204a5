#!/usr/bin/env python3
"""What the trainer did before and does now, through its commands alone: the oracle of a restructuring.

`manifests.yaml` lists cases: manifests, and the commands that they are given to. Each case runs under the code of two
checkouts, in turn, with the same Python, inputs and environment, in a folder of its own. Compared are exit codes, what
was printed, the summary for the pod, and the files of the results: weights byte by byte, or within the case's
`tolerance`. What is a time, a speed, a measured size or a path of the machine is left out (`_NOISE`, `_VOLATILE`), and
so are checkpoints and pictures. Nothing of the trainer is imported: a program is what its checkout's pyproject.toml
says.

    tests/oracle/run.py list                      the cases
    tests/oracle/run.py compare [ID ...]          BASELINE with this checkout as it is: these cases, else all
    tests/oracle/run.py compare --before COMMIT --after COMMIT-or-FOLDER

It prints a line for each case, with what differs below it, and ends with 1 where something does. Differences that are
meant are listed with their reason under `accepted` in `manifests.yaml`. What a commit did is kept in build/oracle, so
that the next comparison runs one side alone; what a folder does never is. It is no test itself: a side takes some
twelve minutes of one core; `--workers 2` runs two cases at once.
"""

import argparse
import difflib
import fnmatch
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests.oracle.inputs import lay_out  # noqa: E402 - found by the path above

BASELINE = "cb33db52"
"""The commit before the trainer was restructured."""
LISTED = Path(__file__).with_name("manifests.yaml")
KEPT = REPOSITORY / "build/oracle"
LIMIT_S = 600
"""Of a command, which takes some ten seconds where nothing else runs."""
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")

_VOLATILE = re.compile(
    r"(duration|saved).*|time|seconds|digest|tokens_?per_?second|peak_?memory_?bytes|size_bytes", re.IGNORECASE
)
"""Keys of JSON, whatever is in them."""
_MEASURED_ADVICE = "EstimateOff"
"""Comes and goes with the memory that the process happened to take."""
_DROPPED = re.compile(
    r"INFO step \d+/|\| (durationSeconds|tokensPerSecond|peakMemoryBytes) \||The peak was .* instead of"
)
"""Lines that are about nothing but times and measured sizes; steps with their losses are in metrics.jsonl."""
_NOISE = (
    (re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ "), ""),
    (re.compile(r"\d+ tokens/s"), "# tokens/s"),
    (re.compile(r"\bin \d+(\.\d+)? s\b"), "in # s"),
    # Of a whole result, whose log and metrics have times in them.
    (re.compile(r"sha256:[0-9a-f]{12}…"), "sha256:#…"),
    (re.compile(r"^(pvc://\S+ \(sha256:)[0-9a-f]{64}"), r"\1#"),
)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_WIDEST = 400
"""Characters of a difference that are printed."""
_NOT_COMPARED = {".png", ".pt", ".bin"}

Json = Any
Facts = dict[str, Any]
"""What was observed: a value, or the lines of a text, under the name of its place."""


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


_SOURCE = _sha256(Path(__file__).read_bytes())
"""What is left out of what was observed is decided here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Manifests, each `variants` of `spec`, and commands: those with FILE in them once for each of the manifests.

    `tolerance` is how far numbers may be apart, and `weights` the norm of a weight's difference as a share of its norm.
    """

    id: str
    spec: Json = field(default_factory=dict)
    variants: Mapping[str, Json] = field(default_factory=lambda: {"run": {}})
    does: Sequence[str] = ("lora-trainer run -f FILE",)
    tolerance: float = 0.0
    weights: float = 0.0

    def manifest(self, variant: str) -> Json:
        """The manifest of a variant."""
        base = {
            "model": {"uri": "pvc://models/tiny"},
            "dataset": {"uri": "pvc://data/chats.jsonl", "validationFraction": "0.2"},
            "lora": {"rank": 4},
            "training": {
                "maxSteps": 4,
                "effectiveBatchSize": 8,
                "learningRate": "0.01",
                "kernels": "Reference",
            },
            "output": {"uri": f"pvc://adapters/{variant}"},
        }
        return {
            "apiVersion": "lora-operator.io/v1alpha1",
            "kind": "LoRAFineTune",
            "metadata": {"name": variant},
            "spec": merged(merged(base, self.spec), self.variants[variant]),
        }


def merged(base: Json, changes: Json) -> Json:
    """Sections merged into sections; None removes a field."""
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    found = {name: merged(base.get(name), value) for name, value in changes.items()}
    return {name: value for name, value in {**base, **found}.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A checkout; `commit` where it is one's, whose observations may be kept."""

    name: str
    code: Path
    commit: str = ""

    def observed(self, case: Case, inputs: Path, inputs_digest: str) -> Path:
        """A folder with `facts.json` of the case, and the weights of its results."""
        place = KEPT / (self.commit or self.name) / case.id
        key = _sha256(f"{case!r} {inputs_digest} {[version(name) for name in LIBRARIES]} {_SOURCE}".encode())
        if self.commit and (place / "key").is_file() and (place / "key").read_text() == key:
            return place
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        with tempfile.TemporaryDirectory(prefix="oracle-") as folder:
            facts = observe(case, self.code, inputs, Path(folder), place)
        (place / "facts.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
        (place / "key").write_text(key)
        return place


def observe(case: Case, code: Path, inputs: Path, folder: Path, kept: Path) -> Facts:
    """Run the case in an empty folder; weights of its results go to `kept`."""
    shutil.copytree(inputs, folder, dirs_exist_ok=True)
    (folder / "tmp").mkdir()
    given = {path.relative_to(folder) for path in folder.rglob("*")}
    facts: Facts = {}
    for number, (command, variant) in enumerate(commands(case, folder), start=1):
        facts |= run(f"{number}. {variant or command}", command, variant, code, folder)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts) or name.parts[0] in ("tmp", "summaries")
        if path.is_file() and name not in given and not hidden and path.suffix != ".yaml":
            facts |= content(str(name), path, folder)
            if path.suffix == ".safetensors":
                (kept / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, kept / name)
    return facts


def commands(case: Case, folder: Path) -> Iterator[tuple[str, str]]:
    """Each command, with the manifest that it is about, which is written first; a * is whatever is there by then."""
    for template in case.does:
        for variant in case.variants if "FILE" in template else ("",):
            if variant:
                (folder / f"{variant}.yaml").write_text(yaml.safe_dump(case.manifest(variant)), encoding="utf-8")
            yield template.replace("FILE", f"{variant}.yaml").replace("VARIANT", variant), variant


def run(name: str, command: str, variant: str, code: Path, folder: Path) -> Facts:
    """One command: its exit code, what it printed, and its summary."""
    program, *arguments = shlex.split(command)
    arguments = [last(argument, folder) for argument in arguments]
    summary = folder / "summaries" / f"{name[:2]}json"
    summary.parent.mkdir(exist_ok=True)
    if program == "lora-trainer":
        arguments += ["--claims", "claims", "--configmaps", "configmaps"]
    if arguments[0] in ("run", "preflight"):
        arguments += ["--termination-log", str(summary.relative_to(folder))]
    if arguments[0] == "run" and "--resume" not in arguments:
        arguments += ["--uid", str(uuid.uuid5(uuid.NAMESPACE_URL, variant))]
    scripts = tomllib.loads((code / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, _, function = scripts[program].partition(":")
    start = f"import sys; from {module} import {function}; sys.argv[0] = {program!r}; sys.exit({function}())"
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "LORA_", "AWS_", "PYTEST"))},
        "PYTHONPATH": os.pathsep.join(str(code / part) for part in ("operator", "trainer_image")),
        "TMPDIR": str(folder / "tmp"),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "100",
        "TERM": "dumb",
        # So that results do not depend on how many cores are free; both sides run beside each other, too.
        "OMP_NUM_THREADS": "1",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", start, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return {f"{name}, exit code": f"none within {LIMIT_S} s"}
    facts: Facts = {f"{name}, exit code": done.returncode}
    facts |= {f"{name}, stdout": lines(done.stdout, folder), f"{name}, stderr": lines(done.stderr, folder)}
    if summary.is_file():
        facts |= flat(f"{name}, summary", json.loads(summary.read_text(encoding="utf-8")))
    return facts


def last(argument: str, folder: Path) -> str:
    """What a pattern in an argument stands for; the argument itself without one."""
    found = sorted(folder.glob(argument)) if "*" in argument else []
    return str(found[-1].relative_to(folder)) if found else argument


def content(name: str, path: Path, folder: Path) -> Facts:
    """What is compared of a file."""
    if path.suffix in _NOT_COMPARED:
        return {name: "is there"}
    if path.suffix == ".safetensors":
        return dict(tensors(name, path))
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return {f"{name}:{i}{key}": v for i, row in enumerate(text.splitlines(), 1) for key, v in flat("", row).items()}
    if path.suffix == ".json":
        found = json.loads(text)
        sealed = {
            f"{name}, digest of {entry['path']}": entry["sha256"] == _sha256((path.parent / entry["path"]).read_bytes())
            for entry in (found.get("files", []) if isinstance(found, dict) else [])
            if "sha256" in entry and (path.parent / entry["path"]).is_file()
        }
        return flat(name, found) | sealed
    return {name: lines(text, folder)}


def tensors(name: str, path: Path) -> Iterator[tuple[str, str]]:
    """Each tensor of a file of safetensors by type, shape and bytes, and the file's metadata."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for tensor, found in json.loads(data[8:start]).items():
        if tensor == "__metadata__":
            yield f"{name}, metadata", json.dumps(found)
        else:
            begin, end = found["data_offsets"]
            digest = _sha256(data[start + begin : start + end])[:16]
            yield f"{name}::{tensor}", f"{found['dtype']} {found['shape']} {digest}"


def flat(name: str, found: Json) -> Facts:
    """The values of JSON under their paths, without those that differ from run to run."""
    if isinstance(found, str) and found.startswith("{"):
        found = json.loads(found)
    if isinstance(found, dict):
        parts = [(f"{name}.{key}", value) for key, value in found.items() if not _VOLATILE.fullmatch(key)]
        # A file's own digest changes with the times in it: it is checked where the file is.
        parts = [(key, value) for key, value in parts if not ("path" in found and key.endswith(".sha256"))]
    elif isinstance(found, list):
        if not any(isinstance(one, dict) for one in found):
            return {name: found}
        # By what it is about, so that one more or less does not move the others.
        named = [(one.get("code") or one.get("path") or i, one) for i, one in enumerate(found)]
        parts = [(f"{name}[{key}]", one) for key, one in named if key != _MEASURED_ADVICE]
    else:
        return {name: found}
    return {path: value for key, part in parts for path, value in flat(key, part).items()}


def lines(text: str, folder: Path) -> list[str]:
    """What was printed, without what differs from run to run."""
    kept = (line for line in text.replace(str(folder), "HERE").splitlines() if not _DROPPED.search(line))
    return [_quiet(line) for line in kept]


def _quiet(line: str) -> str:
    for pattern, instead in _NOISE:
        line = pattern.sub(instead, line)
    return line.rstrip()


def differences(case: Case, before: Path, after: Path) -> list[str]:
    """What differs, a line each."""
    facts = [json.loads((place / "facts.json").read_text(encoding="utf-8")) for place in (before, after)]
    found: list[str] = []
    for name in {**facts[0], **facts[1]}:
        if name not in facts[1]:
            found.append(f"{name}: gone, was {facts[0][name]}")
        elif name not in facts[0]:
            found.append(f"{name}: new, {facts[1][name]}")
        elif "::" in name:
            found += weights(case, name, [f[name] for f in facts], before, after)
        elif all(isinstance(f[name], list) and f[name] and isinstance(f[name][0], str) for f in facts):
            found += [f"{name}: {line}" for line in texts(facts[0][name], facts[1][name], case.tolerance)]
        elif not close(facts[0][name], facts[1][name], case.tolerance):
            found.append(f"{name}: {facts[0][name]!r} -> {facts[1][name]!r}")
    return found


def weights(case: Case, name: str, told: list[str], before: Path, after: Path) -> Iterator[str]:
    """How far a weight is off, if it is too far."""
    if told[0] == told[1]:
        return
    if told[0].rpartition(" ")[0] != told[1].rpartition(" ")[0]:
        yield f"{name}: {told[0]} -> {told[1]}"
        return
    file, _, tensor = name.partition("::")
    old, new = (load_file(place / file)[tensor].double() for place in (before, after))
    off = float((new - old).norm() / old.norm()) if float(old.norm()) else math.inf
    if not off <= case.weights:
        yield f"{name}: off by {off:.1e} of its norm"


def texts(old: list[str], new: list[str], tolerance: float) -> Iterator[str]:
    """Lines that are gone (-) or new (+)."""
    was, now = ([_NUMBER.sub("#", line) if tolerance else line for line in text] for text in (old, new))
    for kind, i, j, k, m in difflib.SequenceMatcher(None, was, now, autojunk=False).get_opcodes():
        pairs = list(zip(old[i:j], new[k:m], strict=True)) if kind == "equal" else []
        alike = [close(one, other, tolerance) for one, other in pairs] or [False] * max(j - i, m - k)
        yield from (f"- {line}" for line, same in zip(old[i:j], alike, strict=False) if not same)
        yield from (f"+ {line}" for line, same in zip(new[k:m], alike, strict=False) if not same)


def close(old: Json, new: Json, tolerance: float) -> bool:
    """Whether values are equal, or numbers, those in texts too, no further apart than the tolerance."""
    if old == new and type(old) is type(new):
        return True
    if isinstance(old, float) and isinstance(new, float):
        return abs(old - new) <= tolerance
    if not (tolerance and isinstance(old, str) and isinstance(new, str)):
        return False
    if _NUMBER.sub("#", old) != _NUMBER.sub("#", new):
        return False
    pairs = zip(_NUMBER.findall(old), _NUMBER.findall(new), strict=True)
    return all(abs(float(a) - float(b)) <= tolerance + _last_digit(a) for a, b in pairs)


def _last_digit(number: str) -> float:
    """What rounding may have changed; a whole number is no rounded one."""
    digits = re.search(r"\.(\d+)", number)
    return 1.01 * 10.0 ** -len(digits[1]) if digits else 0.0


@contextmanager
def side(name: str, given: str) -> Iterator[Side]:
    """A folder with a checkout as it is, or that of a commit, which is gone after the block."""
    if Path(given).is_dir():
        yield Side(name=name, code=Path(given).resolve())
        return
    git = ["git", "-C", str(REPOSITORY)]
    parsed = subprocess.run(
        [*git, "rev-parse", "--short=12", f"{given}^{{commit}}"], check=True, capture_output=True, text=True
    )
    with tempfile.TemporaryDirectory(prefix="oracle-") as folder:
        code = Path(folder) / "code"
        subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(code), given], check=True)
        try:
            # Of the other side nothing is kept: a commit compared with itself is to show that the comparison is quiet.
            yield Side(name=name, code=code, commit=parsed.stdout.strip() if name == "before" else "")
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(code)], check=True)


def cases(chosen: list[str]) -> tuple[list[Case], list[Json]]:
    """The cases whose ids match, and the accepted differences."""
    listed = yaml.safe_load(LISTED.read_text(encoding="utf-8"))
    found = [Case(**entry) for entry in listed["cases"]]
    wanted = [case for case in found if not chosen or any(fnmatch.fnmatch(case.id, one) for one in chosen)]
    if not wanted:
        raise SystemExit(f"no case is called {' or '.join(chosen)}: run.py list")
    return wanted, listed["accepted"]


def compare(wanted: list[Case], accepted: list[Json], given: argparse.Namespace) -> bool:
    """Print a line for each case; whether all are equal."""
    equal = 0
    with ExitStack() as stack:
        inputs = lay_out(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="oracle-"))))
        digest = _digest_of(inputs)
        sides = [stack.enter_context(side(name, getattr(given, name))) for name in ("before", "after")]

        def both(case: Case) -> tuple[list[str], float]:
            began_s = time.monotonic()
            before, after = (one.observed(case, inputs, digest) for one in sides)
            return differences(case, before, after), time.monotonic() - began_s

        with ThreadPoolExecutor(given.workers) as pool:
            for case, (found, took_s) in zip(wanted, pool.map(both, wanted), strict=True):
                left = [line for line in found if not _is_accepted(f"{case.id}: {line}", accepted)]
                known = f", {len(found) - len(left)} accepted" if len(found) > len(left) else ""
                print(f"{took_s:5.0f} s  {case.id:28}{f'{len(left)} differ' if left else 'equal'}{known}", flush=True)
                for line in left[: given.most]:
                    print(f"             {line[:_WIDEST]}", flush=True)
                equal += not left
    print(f"{equal} of {len(wanted)} cases are equal", flush=True)
    return equal == len(wanted)


def _is_accepted(line: str, accepted: list[Json]) -> bool:
    return any(re.search(one["match"], line) for one in accepted)


def _digest_of(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return _sha256("".join(f"{path.relative_to(folder)} {_sha256(path.read_bytes())}" for path in files).encode())


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["list", "compare"])
    parser.add_argument("ids", nargs="*", help="of cases; * is a pattern")
    parser.add_argument("--before", default=BASELINE, help="a commit, or a folder with a checkout")
    parser.add_argument("--after", default=str(REPOSITORY), help="the same")
    parser.add_argument("--workers", type=int, default=1, help="cases at once")
    parser.add_argument("--most", type=int, default=12, help="differences that are printed of a case")
    given = parser.parse_args()
    wanted, accepted = cases(given.ids)
    if given.what == "list":
        for case in wanted:
            print(f"{case.id:24} {len(case.variants):3} manifests, {'; '.join(case.does)}")
        return 0
    return 0 if compare(wanted, accepted, given) else 1


if __name__ == "__main__":
    sys.exit(main())
