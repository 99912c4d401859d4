"""What a packed job cannot train: base models and adapters over which slots are not independent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch

from trial.model.router_loss import router_loss_factor
from trial.store import failure_kinds


class NotPackableError(ValueError):
    """The base model or the trial's adapter cannot be trained in a packed job."""


OF_CLASSIFIERS = ("classifier", "summary", "cls_")
"""Parts of the names of dropout settings that a causal language model does not use."""
PROBE_TOKENS = 16
"""Tokens of the pass that looks for random numbers."""


def refuse_router_loss(base: Any) -> None:
    """Refuse a mixture whose router has a loss of its own: it is one mean over all slots' tokens.

    Raises:
        NotPackableError: its configuration asks for such a loss.
    """
    if router_loss_factor(base):
        raise NotPackableError("the loss of the base model's router is one mean over all slots")


def refuse_own_dropout(base: Any) -> None:
    """Refuse a base model with dropout: torch draws one mask for the rows of all slots.

    Raises:
        NotPackableError: it has dropout.
    """
    modules = any(isinstance(part, torch.nn.Dropout) and part.p for part in base.modules())
    if modules or (settings := own_dropout(base.config.get_text_config().to_dict())):
        name = "" if modules else f" ({settings[0]})"
        raise NotPackableError(f"the base model has dropout of its own{name}")


def own_dropout(settings: Mapping[str, Any]) -> list[str]:
    """Names of a model configuration's dropout probabilities that are not 0.

    Models that call torch's dropout function have no dropout module: OPT, Bloom, Falcon.
    """
    return [
        name
        for name, value in settings.items()
        if "drop" in name
        and not any(part in name for part in OF_CLASSIFIERS)
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and value > 0
    ]


def refuse_random_passes(base: Any, inputs: dict[str, Any]) -> None:
    """Refuse a base model whose training passes depend on random numbers, whatever they are for.

    Two passes over a few tokens, with other seeds, find it.

    Args:
        base: The base model.
        inputs: What the model gets besides the batch.

    Raises:
        NotPackableError: the passes differ.
    """
    ids = torch.arange(PROBE_TOKENS, device=base.device).unsqueeze(0) % base.config.vocab_size
    base.train()
    with torch.random.fork_rng(), torch.no_grad():
        outputs = []
        for seed in range(2):
            torch.manual_seed(seed)
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            outputs.append(base(**batch, **inputs).logits.float())
    first, second = outputs
    if float((first - second).abs().max()) > 1e-3 * float(first.abs().max()):
        raise NotPackableError("the base model draws random numbers in training")


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


def refuse_failing_passes(base: Any, run: Callable[[], object]) -> None:
    """Refuse a base model that cannot work with slots in the place of its layers.

    Some models look at more of a layer than its output. Where such a model fails without slots too,
    the trainer that the trial then gets says so.

    Args:
        base: The base model with slots.
        run: A pass through it.

    Raises:
        NotPackableError: it fails, in training or in evaluation, and not for memory.
    """
    for training in (True, False):
        base.train(training)
        try:
            with torch.no_grad():
                run()
        except Exception as error:
            if failure_kinds.classify(error) == "out_of_memory":
                raise
            reason = failure_kinds.cause_of(error, None).message
            raise NotPackableError(f"the base model fails with slots: {reason}") from error
