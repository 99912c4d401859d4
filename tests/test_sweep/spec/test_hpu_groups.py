"""Which HPUs may work together, row by row."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.spec.hpu_groups import SIZES, free_group, groups, per_node


@pytest.mark.parametrize(
    ("cards", "count", "expected"),
    [
        (8, 1, [[0], [1], [2], [3], [4], [5], [6], [7]]),
        (8, 2, [[0, 1], [2, 3], [4, 5], [6, 7]]),
        (8, 4, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (8, 8, [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (6, 4, [[0, 1, 2, 3]]),
        (6, 2, [[0, 1], [2, 3], [4, 5]]),
        (3, 2, [[0, 1]]),
        (1, 1, [[0]]),
        (4, 8, []),
        (0, 1, []),
    ],
)
def test_groups_are_aligned(cards, count, expected):
    assert [list(group) for group in groups(cards, count)] == expected


@pytest.mark.parametrize("count", [0, 3, 5, 6, 7, 16, -1])
def test_no_other_group_exists(count):
    with pytest.raises(ValueError, match=rf"1, 2, 4, 8 cards, got {count}"):
        groups(8, count)


@pytest.mark.parametrize(
    ("cards", "count", "taken", "expected"),
    [
        (8, 1, set(), (0,)),
        (8, 2, {0}, (2, 3)),
        # What Ray itself gave in this state was 0,2.
        (8, 2, {1, 3}, (4, 5)),
        (8, 2, {1, 3, 5, 7}, None),
        (8, 4, {3}, (4, 5, 6, 7)),
        (8, 4, {3, 4}, None),
        (8, 8, set(), (0, 1, 2, 3, 4, 5, 6, 7)),
        (8, 8, {7}, None),
        # Small groups go where something is broken already.
        (8, 1, {0}, (1,)),
        (8, 1, {0, 1}, (2,)),
        (8, 1, {0, 1, 2}, (3,)),
        (8, 2, {0, 1}, (2, 3)),
        (8, 1, {4}, (5,)),
        (8, 2, {4, 5}, (6, 7)),
        (8, 1, {0, 4, 5, 6}, (7,)),
        (6, 1, set(), (4,)),
        (6, 4, {4, 5}, (0, 1, 2, 3)),
        (2, 4, set(), None),
    ],
)
def test_the_group_that_is_given(cards, count, taken, expected):
    assert free_group(cards, count, taken) == expected


@given(st.sets(st.integers(0, 7)), st.sampled_from(SIZES), st.integers(0, 8))
def test_a_group_is_free_aligned_and_found_when_there_is_one(taken, count, cards):
    found = free_group(cards, count, taken)
    possible = [
        set(range(first, first + count))
        for first in range(8)
        if first % count == 0 and first + count <= cards
    ]
    if found is None:
        assert all(group & taken for group in possible)
    else:
        assert set(found) in possible
        assert not set(found) & taken


@given(st.lists(st.sampled_from(SIZES), max_size=8))
def test_groups_handed_out_one_after_the_other_never_overlap(counts):
    taken: set[int] = set()
    for count in counts:
        group = free_group(8, count, taken)
        if group is not None:
            assert not taken & set(group)
            taken |= set(group)


@pytest.mark.parametrize("order", itertools.permutations([4, 2, 1, 1]))
def test_a_full_node_fits_in_any_order(order):
    """Filling the broken blocks first leaves room for the large group, whatever comes first."""
    taken: set[int] = set()
    for count in order:
        group = free_group(8, count, taken)
        assert group is not None
        taken |= set(group)


@pytest.mark.parametrize(
    ("devices", "expected"),
    [(1, 1), (2, 2), (4, 4), (8, 8), (16, 8), (24, 8), (3, None), (6, None), (12, None), (0, None)],
)
def test_cards_on_each_node(devices, expected):
    assert per_node(devices) == expected
