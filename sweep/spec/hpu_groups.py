"""Which HPUs of a node may work together: aligned groups of 1, 2, 4 or 8 cards. Pure.

Gaudi's cards talk to each other in the groups 0,1 | 2,3 | 4,5 | 6,7 and 0-3 | 4-7 only; Ray would
give a trial any that are free.
"""

from __future__ import annotations

from collections.abc import Set

SIZES = (1, 2, 4, 8)
"""Cards of one node that a trial can have."""


def per_node(devices: int) -> int | None:
    """Cards a trial of `devices` HPUs holds on each of its nodes; None when it cannot be placed."""
    if devices in SIZES:
        return devices
    return None if devices < 1 or devices % SIZES[-1] else SIZES[-1]


def groups(cards: int, count: int) -> list[range]:
    """The aligned groups of `count` cards on a node that has `cards`, by index.

    Module ids may be any (virtual machines); alignment goes by their order on the node.

    Raises:
        ValueError: `count` is no size of a group.
    """
    if count not in SIZES:
        raise ValueError(f"a group has {', '.join(map(str, SIZES))} cards, got {count}")
    return [range(first, first + count) for first in range(0, cards - count + 1, count)]


def free_group(cards: int, count: int, taken: Set[int]) -> tuple[int, ...] | None:
    """The free aligned group that leaves the largest groups whole; None when there is none."""
    free = [group for group in groups(cards, count) if taken.isdisjoint(group)]
    if not free:
        return None
    best: range = min(free, key=lambda group: (_broken(group, taken, cards), group.start))
    return tuple(best)


def _broken(group: range, taken: Set[int], cards: int) -> list[int]:
    """How many free cards share each larger block with the group, largest block first."""
    blocks = []
    for size in reversed(SIZES):
        if size > len(group):
            first = group.start // size * size
            block = range(first, min(first + size, cards))
            blocks.append(len(set(block) - taken))
    return blocks
