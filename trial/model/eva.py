"""The start of an adapter that `init_lora_weights: eva` takes from the training rows.

EVA (Paischer et al. 2024, arXiv:2410.07170) sets every A to the leading right singular vectors of
its layer's inputs, and gives layers whose inputs vary more a higher rank. PEFT computes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from trial.config.config_rules import EVA
from trial.config.errors import ConfigError, Problem
from trial.config.trial_config import TrialConfig

IGNORED = -100
"""The label of a token that does not count."""
logger = logging.getLogger(__name__)


class Rows(Protocol):
    """Rows of tokens: `input_ids`, `attention_mask` and `labels`, each [columns]."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int) -> dict[str, torch.Tensor]: ...


def wants_eva(config: TrialConfig) -> bool:
    """Whether the trial's adapter starts from its training rows."""
    return bool(config.lora.r) and (config.lora.model_extra or {}).get("init_lora_weights") == EVA


def saved_lora_config(checkpoint: Path | None) -> Any:
    """PEFT's configuration of the adapter in a checkpoint, with EVA's ranks; None without one."""
    if checkpoint is None or not (checkpoint / "adapter_config.json").is_file():
        return None
    from peft import LoraConfig

    config = LoraConfig.from_pretrained(str(checkpoint))
    config.inference_mode = False
    return config


def initialize(
    model: Any, rows: Rows, collate: Callable[[list[Any]], Any], config: TrialConfig, device: Any
) -> None:
    """Set the start of a PEFT model's adapter, in place; its rows are drawn by the trial's seed.

    Args:
        model: PEFT model whose `init_lora_weights` is eva.
        rows: The training rows.
        collate: Makes a batch of a list of rows.
        config: The trial.
        device: Where the model computes.

    Raises:
        ConfigError: the rows have too few tokens, or a layer too few inputs, for so many
            components.
    """
    from peft import initialize_lora_eva_weights

    settings = model.peft_config["default"]
    ranks = [settings.r, *(settings.rank_pattern or {}).values()]
    components = round(max(ranks) * settings.eva_config.rho)
    counted = settings.eva_config.use_label_mask
    batches = EvaBatches(
        rows,
        collate,
        _row_groups(rows, components, config, counted=counted),
    )
    if next(model.parameters()).is_meta:
        # A model without weights (trial.rehearsal) has no inputs to take a start from.
        return
    model.to(device)
    # Every rank computes the same from the same rows.
    initialize_lora_eva_weights(
        model, batches, gather_distributed_inputs=False, show_progress_bar=False
    )
    for name, weight in model.named_parameters():
        if "lora_" in name:
            # Layers of a new rank are in the base model's type; PEFT casts adapters to float32.
            weight.data = weight.data.float()
    found = model.peft_config["default"].rank_pattern
    logger.info("eva: %d layers have another rank than %d", len(found), config.lora.r)


@dataclass(frozen=True, slots=True)
class EvaBatches:
    """Batches of training rows, as often as they are asked for."""

    rows: Rows
    collate: Callable[[list[Any]], Any]
    groups: list[list[int]]
    """Row numbers of each batch."""

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[Any]:
        return (self.collate([self.rows[row] for row in group]) for group in self.groups)


def _row_groups(
    rows: Rows, components: int, config: TrialConfig, *, counted: bool
) -> list[list[int]]:
    """Row numbers of batches that each have at least `components` tokens; PEFT skips smaller ones.

    `counted`: only tokens with a label are taken.
    """
    training = config.training
    generator = torch.Generator().manual_seed(training["seed"])
    groups: list[list[int]] = []
    group: list[int] = []
    tokens = 0
    for number in torch.randperm(len(rows), generator=generator).tolist():
        row = rows[number]
        seen = row["labels"] != IGNORED if counted else row["attention_mask"].bool()
        tokens += int(seen.sum())
        group.append(number)
        if tokens >= components and len(group) >= training["per_device_train_batch_size"]:
            groups.append(group)
            group, tokens = [], 0
    if not groups and tokens >= components:
        groups.append(group)
    if not groups:
        rule = f"a rank times eva_config.rho of at most {tokens}, the tokens of the training rows"
        raise ConfigError([Problem("lora.r", rule, str(components))])
    return groups
