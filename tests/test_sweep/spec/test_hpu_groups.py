"""Which HPUs of a node may work together."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.spec.hpu_groups import GROUP_SIZES, aligned_groups, free_group, hpus_per_node


@pytest.mark.parametrize(
    ("hpus", "size", "expected"),
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
def test_groups_are_aligned(hpus, size, expected):
    assert [list(group) for group in aligned_groups(hpus, size)] == expected


@pytest.mark.parametrize("size", [0, 3, 5, 6, 7, 16, -1])
def test_no_other_group_exists(size):
    with pytest.raises(ValueError, match=rf"1, 2, 4, 8 HPUs, got {size}"):
        aligned_groups(8, size)


@pytest.mark.parametrize(
    ("hpus", "size", "held", "expected"),
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
def test_the_group_that_is_given(hpus, size, held, expected):
    assert free_group(hpus, size, held) == expected


@given(st.sets(st.integers(0, 7)), st.sampled_from(GROUP_SIZES), st.integers(0, 8))
def test_a_group_is_free_aligned_and_found_when_there_is_one(held, size, hpus):
    found = free_group(hpus, size, held)
    possible = [
        set(range(first, first + size))
        for first in range(8)
        if first % size == 0 and first + size <= hpus
    ]
    if found is None:
        assert all(group & held for group in possible)
    else:
        assert set(found) in possible
        assert not set(found) & held


@given(st.lists(st.sampled_from(GROUP_SIZES), max_size=8))
def test_groups_handed_out_one_after_the_other_never_overlap(counts):
    held: set[int] = set()
    for size in counts:
        group = free_group(8, size, held)
        if group is not None:
            assert not held & set(group)
            held |= set(group)


@pytest.mark.parametrize("order", itertools.permutations([4, 2, 1, 1]))
def test_a_full_node_fits_in_any_order(order):
    """Filling the broken blocks first leaves room for the large group, whatever comes first."""
    held: set[int] = set()
    for size in order:
        group = free_group(8, size, held)
        assert group is not None
        held |= set(group)


@pytest.mark.parametrize(
    ("devices", "expected"),
    [(1, 1), (2, 2), (4, 4), (8, 8), (16, 8), (24, 8), (3, None), (6, None), (12, None), (0, None)],
)
def test_hpus_on_each_node(devices, expected):
    assert hpus_per_node(devices) == expected
