"""What a training found, as a line of JSON."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "results/hyperparameters.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training. `sums` are the summed losses in nats of each held-out row after it, `tokens` their target tokens,
    in the order of `rows.make_rows`. `training_loss` is that of its last steps; `tokens_trained` counts all tokens."""

    setting: str
    seed: int
    sums: tuple[float, ...]
    tokens: tuple[int, ...]
    steps: int
    training_loss: float
    tokens_trained: int
    trainable_parameters: int
    seconds: float

    @property
    def key(self) -> tuple[str, int]:
        """What makes it this run and no other."""
        return self.setting, self.seed

    def to_line(self) -> str:
        """One line of JSON with its end."""
        return json.dumps(asdict(self), separators=(",", ":")) + "\n"

    @classmethod
    def from_line(cls, line: str) -> "Run":
        """Read what `to_line` wrote. Raises `ValueError` and `TypeError` for anything else."""
        found = json.loads(line)
        return cls(**{**found, "sums": tuple(found["sums"]), "tokens": tuple(found["tokens"])})


def append(path: Path, run: Run) -> None:
    """Record a finished run."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(run.to_line())


def read(path: Path) -> list[Run]:
    """Those that are recorded; a last line that a kill cut off is taken off the file."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [Run.from_line(line) for line in whole.splitlines()]


def by_setting(runs: Iterable[Run], setting: str) -> dict[int, Run]:
    """The runs of a setting by seed."""
    return {run.seed: run for run in runs if run.setting == setting}
