"""The loss that balances the experts of a mixture, where the model's configuration asks for it."""

from __future__ import annotations

from typing import Any

COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef", "moe_loss_weight")
"""Names under which transformers' models hold the factor of their `aux_loss`."""


def router_loss_factor(model: Any) -> float:
    """What `aux_loss` of the model's outputs is multiplied with in its training loss.

    0 without `output_router_logits`: transformers' models then compute no such loss.

    Raises:
        ValueError: the model's factor is under none of the known names.
    """
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    if not getattr(base.config, "output_router_logits", False):
        return 0.0
    for holder in (base, base.config):
        for name in COEFFICIENTS:
            if isinstance(factor := getattr(holder, name, None), int | float):
                return float(factor)
    raise ValueError(
        f"model.name_or_path: {base.config.model_type} has `output_router_logits`, and the factor "
        f"of its loss is under none of {', '.join(COEFFICIENTS)}"
    )
