"""The study's data set: facts about invented ships to recall, and orders to rewrite by a rule, from a seed.

Recall is what rank should matter for: 144 facts that no model has read, each of some 9 bits, asked for in six phrasings.
A held-out question asks for a fact in a phrasing in which the training never asks for it, though it does in others. The
rule has to be applied to orders that the training never shows. So held-out rows measure what was learned, and not which
rows were seen.
"""

import random
from dataclasses import dataclass
from typing import Literal

Kind = Literal["recall", "rule"]
SEED = 20261127
SHIPS, TRAINED, HELD_OUT = 48, {"recall": 600, "rule": 400}, {"recall": 120, "rule": 80}

_FIRST = ("Amber", "Silver", "Northern", "Quiet", "Crimson", "Iron", "Velvet", "Golden")
_SECOND = ("Heron", "Falcon", "Otter", "Lantern", "Willow", "Badger")
_PORTS = (
    *("Dover", "Bergen", "Lisbon", "Hamburg", "Naples", "Cork", "Gdansk", "Porto"),
    *("Odessa", "Malmo", "Genoa", "Calais", "Bilbao", "Riga", "Split", "Turku"),
)
_CARGO = (
    *("salt", "tea", "wool", "timber", "copper", "rice", "coal", "glass"),
    *("wine", "paper", "sugar", "grain", "steel", "cotton", "pepper", "marble"),
)
_CAPTAINS = (
    *("Baker", "Novak", "Silva", "Jensen", "Rossi", "Murphy", "Weber", "Costa"),
    *("Larsen", "Fischer", "Moreau", "Lopez", "Sato", "Kumar", "Evans", "Petrov"),
)
_PHRASINGS = {
    "port": (
        "Where does the {} moor?",
        "Berth of {}?",
        "Which quay has the {}?",
        "Find the {} in harbour.",
        "{}: port and pier?",
        "Where is {} tied up?",
    ),
    "cargo": (
        "What does the {} carry?",
        "Freight of {}?",
        "What is in the hold of {}?",
        "Name the load of the {}.",
        "{}: goods and tons?",
        "What will {} deliver?",
    ),
    "captain": (
        "Who commands the {}?",
        "Captain of {}?",
        "Who is master of the {}?",
        "Name the skipper of {}.",
        "{}: captain and crew?",
        "Whose ship is {}?",
    ),
}
_ORDERS = (
    "{n} crates of {c} to {p}{u}.",
    "Ship {n} crates of {c} to {p}{u}.",
    "{p} needs {n} crates of {c}{u}.",
)
_MOST = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A prompt, and the answer that is learned."""

    kind: Kind
    prompt: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The two sides of the split; no prompt is on both."""

    training: tuple[Row, ...]
    held_out: tuple[Row, ...]


def make_rows(seed: int = SEED) -> Rows:
    """1,000 training rows and 200 held-out ones, the same for the same seed."""
    draw = random.Random(seed)  # noqa: S311 - data, no secret
    recall, rule = _recall(draw), _rule(draw)
    training = [*recall.training, *rule.training]
    draw.shuffle(training)
    return Rows(training=tuple(training), held_out=(*recall.held_out, *rule.held_out))


def _recall(draw: random.Random) -> Rows:
    """Each fact keeps two of its six phrasings for itself; of these 120 are held out, each of them a fact of its own
    question, and of the others 600 are trained, each fact at least four times."""
    ships = [f"{first} {second}" for first in _FIRST for second in _SECOND]
    assert len(ships) == SHIPS
    trained: list[Row] = []
    spare: list[Row] = []
    extra: list[Row] = []
    for topic, names in (("port", _PORTS), ("cargo", _CARGO), ("captain", _CAPTAINS)):
        for ship in ships:
            answer = f"{draw.choice(names)} {draw.randint(10, 10 + _MOST - 1)}"
            asked = [
                Row(kind="recall", prompt=phrasing.format(ship), answer=answer)
                for phrasing in draw.sample(_PHRASINGS[topic], len(_PHRASINGS[topic]))
            ]
            trained += asked[:4]
            extra.append(asked[4])
            spare.append(asked[5])
    trained += draw.sample(extra, TRAINED["recall"] - len(trained))
    return Rows(training=tuple(trained), held_out=tuple(draw.sample(spare, HELD_OUT["recall"])))


def _rule(draw: random.Random) -> Rows:
    """An order becomes a record: the port's letters backwards, the goods' first letter, the number, a mark of haste."""
    wanted = TRAINED["rule"] + HELD_OUT["rule"]
    found: dict[str, Row] = {}
    while len(found) < wanted:
        port, goods, crates = draw.choice(_PORTS), draw.choice(_CARGO), draw.randint(10, 10 + _MOST - 1)
        urgent = draw.random() < 0.5
        order = draw.choice(_ORDERS).format(n=crates, c=goods, p=port, u=", urgent" if urgent else "")
        record = f"{port[2::-1].upper()}-{goods[0]}{crates}{'!' if urgent else ''}"
        found[order] = Row(kind="rule", prompt=order, answer=record)
    rows = list(found.values())
    return Rows(training=tuple(rows[: TRAINED["rule"]]), held_out=tuple(rows[TRAINED["rule"] :]))
