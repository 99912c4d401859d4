"""What a packed job cannot train: base models and adapters over which slots are not independent."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch


class NotPackableError(ValueError):
    """The base model or the trial's adapter cannot be trained in a packed job."""


def refuse_own_dropout(base: Any) -> None:
    """Refuse a base model with dropout: torch draws one mask for the rows of all slots.

    Raises:
        NotPackableError: it has dropout.
    """
    config = base.config
    modules = any(isinstance(part, torch.nn.Dropout) and part.p for part in base.modules())
    if modules or getattr(config, "attention_dropout", None) or getattr(config, "attn_pdrop", None):
        raise NotPackableError("the base model has dropout of its own")


def refuse_routed_layers(base: Any, names: Iterable[str], inputs: dict[str, Any]) -> None:
    """Refuse adapters on layers that get a part of the tokens, as experts of a mixture do.

    Such a layer cannot tell which slot its tokens belong to. A pass over four tokens finds it.

    Args:
        base: The base model.
        names: Paths of the layers that have adapters.
        inputs: What the model gets besides the batch.

    Raises:
        NotPackableError: there is such a layer.
    """
    ids = torch.arange(4, device=base.device).unsqueeze(0)
    partial = set(names)
    with ExitStack() as hooks, torch.no_grad():
        for name in tuple(partial):

            def check(_: Any, args: tuple[torch.Tensor, ...], name: str = name) -> None:
                if args[0].shape[:-1].numel() == ids.numel():
                    partial.discard(name)

            hook = base.get_submodule(name).register_forward_pre_hook(check)
            hooks.callback(hook.remove)
        base.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs)
    if partial:
        raise NotPackableError(f"{min(partial)} gets a part of the batch")
