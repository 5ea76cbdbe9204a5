"""How a step's rows are spread over processes and micro-batches."""

from hypothesis import example, given
from hypothesis import strategies as st

from lora_trainer.model.rope import STEADY, Frequencies
from lora_trainer.train.batches import MicroBatchLimit, micro_batches
from lora_trainer.train.packs import cut, room, spread

LENGTHS = st.lists(st.integers(2, 300), min_size=1, max_size=40)
TOKENS = st.integers(20, 700)
FREQUENCIES = st.one_of(
    st.just(STEADY),
    st.builds(Frequencies, switches=st.lists(st.integers(2, 300), max_size=2).map(lambda at: tuple(sorted(at)))),
    st.builds(Frequencies, grow=st.integers(2, 300)),
)


def loads(lengths: list[int], batches: list[list[int]]) -> list[int]:
    """Tokens of each micro-batch."""
    return [sum(lengths[row] for row in batch) for batch in batches]


@given(LENGTHS, TOKENS, st.integers(0, 9))
@example([9, 6, 7, 11, 12, 10, 12, 12, 8, 10, 2, 9, 8, 9, 8, 6, 11, 5], 22, 0)
def test_packs_are_even_and_within_the_budget(lengths: list[int], tokens: int, at_least: int) -> None:
    """Every row once; a row that is longer alone; no more packs than best fit needs, or than were asked for; the
    fullest first. Those that cannot be even are best fit's."""
    limit = MicroBatchLimit(tokens=tokens, longest=max(lengths), packed=True)
    packs = cut(lengths, limit, at_least=at_least)
    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    shared = [load for load, pack in zip(loads(lengths, packs), packs, strict=True) if lengths[pack[0]] <= tokens]
    assert all(load <= tokens for load in shared)
    assert all(len(pack) == 1 for pack in packs if lengths[pack[0]] > tokens)
    even = max(shared, default=0) - min(shared, default=0) <= max((n for n in lengths if n <= tokens), default=0)
    assert even or sorted(packs) == sorted(micro_batches(lengths, limit))
    assert min(len(lengths), at_least) <= len(packs) <= max(at_least, len(micro_batches(lengths, limit)))
    assert loads(lengths, packs) == sorted(loads(lengths, packs), reverse=True)
    assert packs == cut(lengths, limit, at_least=at_least)


@given(LENGTHS, TOKENS, st.integers(1, 9), st.tuples(st.booleans(), st.booleans()), FREQUENCIES)
def test_processes_share_the_rows_of_a_step(
    lengths: list[int], tokens: int, processes: int, ways: tuple[bool, bool], frequencies: Frequencies
) -> None:
    """Every row once, in packs as many on each where layers are collectives, and about as many tokens on each."""
    packed, fsdp = ways
    limit = MicroBatchLimit(tokens=tokens, longest=max(lengths), packed=packed, frequencies=frequencies)
    found = spread(lengths, limit, processes, fsdp=fsdp)
    assert sorted(row for each in found for batch in each for row in batch) == list(range(len(lengths)))
    sums = [sum(loads(lengths, each)) for each in found]
    assert max(sums) - min(sums) <= max(lengths)
    most = max(map(len, found))
    if packed and fsdp:
        assert all(len(each) == min(most, sum(map(len, each))) for each in found)
    assert sum(lengths) <= room(lengths, limit, processes, fsdp=fsdp)


@given(LENGTHS, TOKENS, st.integers(0, 20), st.booleans(), FREQUENCIES)
def test_rows_of_other_frequencies_are_never_together(
    lengths: list[int], tokens: int, at_least: int, packed: bool, frequencies: Frequencies
) -> None:
    """Every row once, within the budget, and no more micro-batches than are made or asked for: a process that has more
    of them than it makes passes would leave rows out."""
    limit = MicroBatchLimit(tokens=tokens, longest=max(lengths), packed=packed, frequencies=frequencies)
    for parts in (cut(lengths, limit, at_least=at_least), micro_batches(lengths, limit)):
        assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
        assert all(len({frequencies.at(lengths[row]) for row in part}) == 1 for part in parts)
        padded = [len(part) * max(lengths[row] for row in part) for part in parts]
        sizes = loads(lengths, parts) if packed else padded
        assert all(len(part) == 1 or size <= tokens for part, size in zip(parts, sizes, strict=True))
    assert len(cut(lengths, limit, at_least=at_least)) <= max(at_least, len(cut(lengths, limit)))


def test_packs_of_other_frequencies_are_shared_out_to_the_fullest() -> None:
    """Where more are asked for, the rows of 100 take them before those of 10."""
    lengths = [100] * 4 + [10] * 4
    limit = MicroBatchLimit(tokens=400, longest=100, packed=True, frequencies=Frequencies(switches=(50,)))
    assert loads(lengths, cut(lengths, limit)) == [400, 40]
    assert loads(lengths, cut(lengths, limit, at_least=3)) == [200, 200, 40]
    assert loads(lengths, cut(lengths, limit, at_least=9)) == [100] * 4 + [10] * 4


def test_sixteen_chats_are_two_packs_of_eight() -> None:
    """And not one of 4,096 tokens beside one of 1,400; on eight processes each has two."""
    limit = MicroBatchLimit(tokens=4096, longest=341, packed=True)
    assert loads([341] * 16, cut([341] * 16, limit)) == [2728, 2728]
    eight = spread([341] * 16, limit, 8, fsdp=False)
    assert [loads([341] * 16, each) for each in eight] == [[682]] * 8
    assert room([341] * 16, limit, 8, fsdp=False) == 8 * 4096


def test_packs_that_cannot_be_even_stay_within_the_budget() -> None:
    """Rows of 6, 6, 4, 4, 4 into two packs of 12: the even spread would hold 14 and 10."""
    lengths = [6, 6, 4, 4, 4]
    assert loads(lengths, cut(lengths, MicroBatchLimit(tokens=12, longest=6, packed=True))) == [12, 12]


def test_padded_rows_stay_with_rows_of_their_length() -> None:
    """Padding would cost more than an even spread gains."""
    lengths = [100, 10, 100, 10, 10]
    limit = MicroBatchLimit(tokens=200, longest=100)
    assert cut(lengths, limit, at_least=4) == micro_batches(lengths, limit)
