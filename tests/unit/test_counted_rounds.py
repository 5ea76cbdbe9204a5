"""Pods that train together end together, round after round: each round counts once, however many pods there were."""

import dataclasses
import random
from datetime import datetime, timedelta

import pytest
from tests.unit.builders import NOW, ended_pod, make_job, running_pod
from tests.unit.test_retries import PEER, PREEMPTED, SAVED, count_pods, stored

from lora_operator.decision.retries import MOST_COUNTED, Cause, Retries
from lora_operator.views.model import PodView

GOING = (make_job(),)


class Chance:
    """A run of several nodes, as chance has it: which node fails how, in which order, and what is seen in between."""

    def __init__(self, seed: int, nodes: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - no secret
        self.nodes = nodes
        self.gone_by_half = bool(seed % 2)
        self.retries = Retries()
        self.there: list[PodView] = []
        self.rounds = {Cause.ERROR: 0, Cause.PREEMPTED: 0}

    def look(self, pods: list[PodView]) -> None:
        """A process looks, and stores what it counts."""
        self.retries = stored(count_pods(self.retries, GOING, [*self.there, *pods]))
        assert len(self.retries.counted) <= MOST_COUNTED

    def end(self, living: PodView, pod: PodView, at: datetime) -> PodView:
        """The living pod has ended as that one did."""
        finished_at = at + self.seconds(30)
        trainer = dataclasses.replace(pod.trainer, started_at=living.trainer.started_at, finished_at=finished_at)
        return dataclasses.replace(
            living, phase=pod.phase, conditions=pod.conditions, deleting=pod.deleting, trainer=trainer
        )

    def seconds(self, most: int) -> timedelta:
        """Some time."""
        return timedelta(seconds=self.random.randint(0, most))

    def begin(self, number: int, at: datetime) -> list[PodView]:
        """The pods of a round run."""
        pods = []
        for index in range(self.nodes):
            pod, made_at = running_pod(index=index), at + self.seconds(20)
            trainer = dataclasses.replace(pod.trainer, started_at=made_at + timedelta(seconds=30))
            name = f"{number}-{index}"
            pods.append(dataclasses.replace(pod, name=name, uid=name, created_at=made_at, trainer=trainer))
        return pods

    def play(self, number: int, at: datetime) -> None:
        """One node fails or is preempted, and all others end with it."""
        pods, cause = self.begin(number, at), self.random.randrange(self.nodes)
        why = self.random.choice(list(self.rounds))
        self.rounds[why] += 1
        for index in self.random.sample(range(self.nodes), self.nodes):
            followers = (ended_pod(76, PEER), ended_pod(143, SAVED))
            first = PREEMPTED if why is Cause.PREEMPTED else ended_pod(1)
            end = first if index == cause else self.random.choice(followers)
            pods[index] = self.end(pods[index], end, at + timedelta(hours=1))
            if self.random.random() < 3 / self.nodes:
                self.look(pods)
        self.look(pods)
        self.there += pods
        if self.gone_by_half:
            self.there = [pod for pod in self.there if self.random.random() < 0.7]


@pytest.mark.parametrize("seed", [2, 3, 5])
@pytest.mark.parametrize(("nodes", "rounds"), [(64, 6), (8, 40), (2, 150)])
def test_each_round_counts_once_also_where_the_list_of_counted_pods_is_full(nodes: int, rounds: int, seed: int) -> None:
    """Whether the pods that ended stay, as Jobs keep them, or go one after the other."""
    assert nodes * rounds > MOST_COUNTED
    chance = Chance(seed, nodes)
    for number in range(rounds):
        chance.play(number, NOW - timedelta(hours=2 * (rounds - number)))
    assert {cause: chance.retries.of(cause) for cause in chance.rounds} == chance.rounds
