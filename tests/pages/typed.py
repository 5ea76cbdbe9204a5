"""What a shell makes of a block's commands: bash itself runs them, with stubs for programs that note their arguments.

So quoting, loops, pipes, functions and here-documents are the shell's to read, and nothing happens but that.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = (
    *("docker", "helm", "jq", "kubectl", "lora", "lora-operator", "lora-trainer", "make", "pip", "python", "python3"),
    *(".venv/bin/lora-trainer", ".venv/bin/python", "hack/cluster", "hack/dashboard-picture"),
)
"""Those that blocks may call; each has a check."""
_TOOLS = ("grep", "nice", "sed", "sort", "tail", "uniq")
"""Of every system, which read what a stub printed: nothing."""
_STUB = """\
#!{bash}
noted="$NOTED/$EPOCHREALTIME-$$"
printf '%s\\0' '{name}' "$@" > "$noted"
[ -t 0 ] || printf '%s' "$(</dev/stdin)" > "$noted.in"
"""
_FLAGS_OF_HELM = "helm upgrade lora-finetune-operator helm/lora-finetune-operator --namespace lora-system "
GIVEN = (
    *("axolotl.yaml", "claim.yaml", "claims.yaml", "config.json", "run.yaml"),
    *("support-chats.jsonl", "support-tone.yaml"),
)
"""Files that the pages let their readers have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A program that was called, with its arguments and what it was given to read."""

    program: str
    arguments: tuple[str, ...]
    stdin: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Typed:
    """The calls in their order, and what the shell complained of."""

    calls: list[Call]
    complaints: str


def whole(commands: str) -> str:
    """Of a block that shows flags of Helm alone, the whole command; another one as it is."""
    spelt = commands.replace("helm upgrade ... ", _FLAGS_OF_HELM)
    return _FLAGS_OF_HELM + spelt if spelt.startswith("--") else spelt


def typed(commands: str, folder: Path) -> Typed:
    """Have bash run the commands in an empty folder."""
    noted, here, programs = folder / "noted", folder / "here", folder / "programs"
    bash = str(shutil.which("bash"))
    for made in (noted, here, programs):
        made.mkdir(parents=True)
    for name in PROGRAMS:
        stub = (here if "/" in name else programs) / name
        stub.parent.mkdir(parents=True, exist_ok=True)
        stub.write_text(_STUB.format(bash=bash, name=name))
        stub.chmod(0o755)
    for tool in _TOOLS:
        (programs / tool).symlink_to(str(shutil.which(tool)))
    for name in GIVEN:
        (here / name).touch()
    done = subprocess.run(
        [bash, "-c", whole(commands)],
        cwd=here,
        env={"PATH": str(programs), "NOTED": str(noted), "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    files = sorted(path for path in noted.iterdir() if not path.name.endswith(".in"))
    return Typed(calls=[_call(path) for path in files], complaints=done.stderr)


def _call(path: Path) -> Call:
    program, *arguments = path.read_text().split("\0")[:-1]
    return Call(program=program, arguments=tuple(arguments), stdin=Path(f"{path}.in").read_text())
