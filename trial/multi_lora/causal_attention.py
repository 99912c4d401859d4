"""Causal attention without masks, which CUDA graphs need.

transformers looks at a mask's values to find out whether it hides anything, and so waits for the
device, which no graph can capture. Batches of a packed job are padded on the right alone
(`trial.data.collate.with_full_attention`), so causal attention is all they need. transformers
leaves the mask out for an attention function for which it has no way to make masks: the same one by
another name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trial.devices import compat

NAME = "causal_sdpa"
"""The name under which the attention function is registered."""


@contextmanager
def maskless_attention(base: Any) -> Iterator[bool]:
    """Let a base model attend without masks where the result is the same; yields whether it does.

    Changes the model's attention function, and sets it back at the end.
    """
    if not is_causal_sdpa(base):
        yield False
        return
    register_maskless_sdpa()
    compat.set_attention_name(base, NAME)
    try:
        yield True
    finally:
        compat.set_attention_name(base, "sdpa")


def register_maskless_sdpa() -> None:
    """Register transformers' SDPA attention function as `NAME`, for which it makes no masks."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(NAME, sdpa_attention_forward)


def is_causal_sdpa(base: Any) -> bool:
    """Whether all layers use transformers' SDPA over all earlier tokens, without windows."""
    config = base.config
    if compat.attention_name(base) != "sdpa":
        return False
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    windows = getattr(config, "sliding_window", None) is not None or layers != {"full_attention"}
    return not windows and compat.looks_attention_up(base)
