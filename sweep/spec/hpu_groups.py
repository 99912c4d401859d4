"""Which HPUs of a node may work together: aligned groups of 1, 2, 4 or 8.

Gaudi's HPUs talk to each other in the groups 0,1 | 2,3 | 4,5 | 6,7 and 0-3 | 4-7 only (Gaudi's
documentation of HABANA_VISIBLE_MODULES); Ray would give a trial any that are free. HPUs go by their
index among the node's HPUs in the order of their module ids, since the ids themselves may start
anywhere (virtual machines).
"""

from __future__ import annotations

from collections.abc import Set

GROUP_SIZES = (1, 2, 4, 8)
"""HPUs of one node that a trial can have."""


def hpus_per_node(devices: int) -> int | None:
    """HPUs that a trial of `devices` HPUs holds on each of its nodes; None when none can fit it."""
    if devices in GROUP_SIZES:
        return devices
    return None if devices < 1 or devices % GROUP_SIZES[-1] else GROUP_SIZES[-1]


def aligned_groups(hpus: int, size: int) -> list[range]:
    """The aligned groups of `size` HPUs on a node that has `hpus`, by index.

    Raises:
        ValueError: No group has that size.
    """
    if size not in GROUP_SIZES:
        raise ValueError(f"a group has {', '.join(map(str, GROUP_SIZES))} HPUs, got {size}")
    return [range(first, first + size) for first in range(0, hpus - size + 1, size)]


def free_group(hpus: int, size: int, held: Set[int]) -> tuple[int, ...] | None:
    """The free aligned group that leaves the largest groups whole; None when there is none.

    Args:
        hpus: HPUs of the node.
        size: HPUs of the group.
        held: Indices of the HPUs that other trials hold.
    """
    free = [group for group in aligned_groups(hpus, size) if held.isdisjoint(group)]
    if not free:
        return None
    best: range = min(free, key=lambda group: (_free_around(group, held, hpus), group.start))
    return tuple(best)


def _free_around(group: range, held: Set[int], hpus: int) -> list[int]:
    """Free HPUs in each larger block around a group, largest block first.

    The fewer are free, the less a trial breaks up by taking the group.
    """
    counts = []
    for size in reversed(GROUP_SIZES):
        if size > len(group):
            first = group.start // size * size
            block = range(first, min(first + size, hpus))
            counts.append(len(set(block) - held))
    return counts
