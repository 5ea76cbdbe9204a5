"""The study's data set: facts about invented ships to recall, and orders to rewrite by a rule, from a seed.

Recall is what rank should matter for: 48 facts that no model has read, each of some 10 bits. The training asks for a
fact in 12 or more phrasings, a held-out question in one in which the training never asks for it. The rule has to be
applied to orders that the training never shows. So held-out rows measure what was learned, and not which rows were
seen.
"""

import random
from dataclasses import dataclass
from typing import Literal

Kind = Literal["recall", "rule"]
SEED = 20261127
TRAINED, HELD_OUT = {"recall": 600, "rule": 400}, {"recall": 120, "rule": 80}

_SHIPS = (
    *("Heron", "Falcon", "Otter", "Lantern", "Willow", "Badger", "Comet", "Maple"),
    *("Raven", "Thistle", "Beacon", "Orchid", "Walrus", "Saffron", "Juniper", "Pelican"),
    *("Cedar", "Mirage", "Tempest", "Lotus", "Bison", "Ember", "Cobalt", "Violet"),
)
_PORTS = (
    "Dover",
    "Bergen",
    "Lisbon",
    "Hamburg",
    "Naples",
    "Cork",
    "Porto",
    "Odessa",
    "Malmo",
    "Genoa",
    "Calais",
    "Riga",
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
    "cargo": (
        *("Freight of {}?", "Hold of {}?", "What does {} carry?", "{}: goods?", "Load of {}?"),
        *("{} carries what?", "Name {}'s freight.", "What is in {}?", "{}, cargo?", "What will {} deliver?"),
        *("{} brings what?", "Goods aboard {}?", "What fills {}?", "{}'s load?", "Cargo list, {}:"),
    ),
    "captain": (
        *("Captain of {}?", "Who commands {}?", "Master of {}?", "{}: captain?", "Skipper of {}?"),
        *("{} obeys whom?", "Name {}'s captain.", "Who leads {}?", "{}, master?", "Who steers {}?"),
        *("{} is whose?", "Chief aboard {}?", "Who runs {}?", "{}'s skipper?", "Crew list, {}:"),
    ),
}
_TRAINED_PHRASINGS = 12
_ORDERS = ("{n} {c} to {p}{u}", "{p}: {n} {c}{u}", "{c} for {p}, {n}{u}")
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
    """Of the 15 phrasings of each fact at least 12 are trained, which ones is drawn for each; others are held out."""
    trained: list[Row] = []
    either: list[Row] = []
    for topic, names in (("cargo", _CARGO), ("captain", _CAPTAINS)):
        for ship in _SHIPS:
            answer = f"{draw.choice(names)} {draw.randint(10, 10 + _MOST - 1)}"
            asked = [
                Row(kind="recall", prompt=phrasing.format(ship), answer=answer)
                for phrasing in draw.sample(_PHRASINGS[topic], len(_PHRASINGS[topic]))
            ]
            trained += asked[:_TRAINED_PHRASINGS]
            either += asked[_TRAINED_PHRASINGS:]
    draw.shuffle(either)
    further = TRAINED["recall"] - len(trained)
    return Rows(training=(*trained, *either[:further]), held_out=tuple(either[further : further + HELD_OUT["recall"]]))


def _rule(draw: random.Random) -> Rows:
    """An order becomes a record: the port's letters backwards, the goods' first letter, the number, a mark of haste."""
    wanted = TRAINED["rule"] + HELD_OUT["rule"]
    found: dict[str, Row] = {}
    while len(found) < wanted:
        port, goods, crates = draw.choice(_PORTS), draw.choice(_CARGO), draw.randint(10, 10 + _MOST - 1)
        urgent = draw.random() < 0.5
        order = draw.choice(_ORDERS).format(n=crates, c=goods, p=port, u="!" if urgent else "")
        record = f"{port[2::-1].upper()}-{goods[0]}{crates}{'!' if urgent else ''}"
        found[order] = Row(kind="rule", prompt=order, answer=record)
    rows = list(found.values())
    return Rows(training=tuple(rows[: TRAINED["rule"]]), held_out=tuple(rows[TRAINED["rule"] :]))
