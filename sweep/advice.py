"""What a careful colleague would say about a sweep that is valid and yet may mislead."""

from __future__ import annotations

from sweep.spec import SweepSpec


def advice(spec: SweepSpec) -> list[str]:
    """Warnings, a sentence each; empty when there is nothing to say."""
    return []
