"""Attention without a look at the mask, which no recording could take.

transformers asks a mask on the device whether it hides anything, and waits for the answer. A packed
job's batches are padded on the right alone (`trial.data.collate.with_full_attention`): causal
attention is all they need, as an attention function gets it for which transformers knows no masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAME = "causal_sdpa"


@contextmanager
def causal_only(base: Any) -> Iterator[bool]:
    """Let a base model attend without masks, where that is the same; whether it is."""
    if not _is_the_same(base):
        yield False
        return
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(NAME, sdpa_attention_forward)
    base.config._attn_implementation = NAME
    try:
        yield True
    finally:
        base.config._attn_implementation = "sdpa"


def _is_the_same(base: Any) -> bool:
    config = base.config
    if config._attn_implementation != "sdpa":
        return False
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    windows = getattr(config, "sliding_window", None) is not None or layers != {"full_attention"}
    return not windows and bool(getattr(base, "_supports_attention_backend", False))
