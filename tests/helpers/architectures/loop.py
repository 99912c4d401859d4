"""One trial of a tiny model, solo and packed, and a plain PEFT loop that must learn the same."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from helpers.architectures.families import Family, make_family
from helpers.training.models import make_tokenizer
from helpers.training.packed import pack
from helpers.training.train import Material
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, set_seed

from trial.config.errors import Problem
from trial.config.trial_config import TrialConfig
from trial.data.prepare import PreparedData, prepare
from trial.model.load import load_tokenizer
from trial.multi_lora.packable import NotPackableError
from trial.preflight.checks import preflight
from trial.rehearsal.rehearse import Rehearsal
from trial.store.records import Result

STEPS, ROWS, RATE, SEED = 4, 4, 5e-3, 42
"""Optimizer steps, rows of each, and the first learning rate, which falls to 0 in a line."""


@dataclass
class Outcome:
    """What became of one architecture: eval losses in nats per token after the last step."""

    problems: list[Problem]
    """What `check` refuses."""
    solo: Result
    before: float = math.nan
    plain: float = math.nan
    packed: float | None = None
    """The worse of two trials in one job; None where they train alone."""


class Architectures(Material):
    """Trials of tiny models of many architectures over the same rows."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.tokenizer = make_tokenizer()

    def trial(self, name: str, family: Family) -> TrialConfig:
        """The trial, its base model made anew if need be."""
        path = self.root / "bases" / name.replace(", ", "-")
        if not path.exists():
            make_family(path, family, self.tokenizer)
        sections = family.sections
        return self.config(
            model={"name_or_path": str(path), **sections.get("model", {})},
            lora={"r": 4, "lora_alpha": 16, "lora_dropout": 0.0, **sections.get("lora", {})},
            data={"eval_fraction": 0.25},
            keep="last",
            training={
                "max_steps": STEPS,
                "eval_steps": STEPS,
                "logging_steps": STEPS,
                "learning_rate": RATE,
                "lr_scheduler_type": "linear",
                "warmup_ratio": 0.0,
                "seed": SEED,
                "per_device_train_batch_size": ROWS,
                "per_device_eval_batch_size": 12,
                "save_strategy": "no",
                "eval_on_start": True,
            },
        )

    def check(self, config: TrialConfig) -> list[Problem]:
        """What `gaudi-sweep check` finds in a sweep of this trial."""
        return preflight(config) or Rehearsal("cpu").problems([config])

    def outcome(self, name: str, family: Family) -> Outcome:
        """Check the trial, train it alone, by the plain loop, and in a packed job of two."""
        config = self.trial(name, family)
        problems = self.check(config)
        _, solo = self.train(config)
        found = Outcome(problems, solo)
        if solo.eval_loss is None or solo.initial_eval_loss is None:
            return found
        found.before = solo.initial_eval_loss
        tokenizer = load_tokenizer(config.model)
        found.plain = plain_loss(config, prepare(config.data, tokenizer))
        found.packed = self.packed_loss(config, solo.eval_loss)
        return found

    def packed_loss(self, config: TrialConfig, solo: float) -> float | None:
        """The eval loss of two equal trials in one job, that which is further from `solo`."""
        asked = config.model_copy(update={"packed": True})
        try:
            _, results = pack(self, asked, asked, slots=2)
        except NotPackableError:
            return None
        losses = [math.nan if r is None or r.eval_loss is None else r.eval_loss for r in results]
        return max(losses, key=lambda loss: math.inf if math.isnan(loss) else abs(loss - solo))


def plain_loss(config: TrialConfig, data: PreparedData) -> float:
    """The eval loss after training by transformers, PEFT and torch alone, on the trial's tokens."""
    section: dict[str, Any] = config.model.model_dump()
    attention = {"attn_implementation": section["attn_implementation"]}
    base = AutoModelForCausalLM.from_pretrained(section["name_or_path"], **attention)
    base.config.use_cache = False
    set_seed(SEED)
    modules = config.lora.target_modules
    lora = LoraConfig(
        r=4,
        lora_alpha=16,
        target_modules=modules if isinstance(modules, str) else list(modules),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, lora).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, eps=1e-6, weight_decay=0.0)
    for step, numbers in enumerate(batches(len(data.train))):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        rows = [data.train[number] for number in numbers]
        model(
            **{name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        ).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return row_by_row(model, data)


def batches(rows: int) -> list[list[int]]:
    """Row numbers of every batch of the first epoch: a permutation drawn from the seed."""
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(rows, generator=generator).tolist()
    return [order[start : start + ROWS] for start in range(0, STEPS * ROWS, ROWS)]


def row_by_row(model: Any, data: PreparedData) -> float:
    """Cross-entropy in nats per token that counts, each row alone and without padding."""
    model.eval()
    total, count = 0.0, 0
    for row in (data.eval[number] for number in range(len(data.eval))):
        size = int(row["attention_mask"].sum())
        with torch.no_grad():
            logits = model(input_ids=row["input_ids"][None, :size]).logits[0].double()
        for log_probabilities, label in zip(
            logits[:-1].log_softmax(-1), row["labels"][1:size], strict=True
        ):
            if label != -100:
                total -= float(log_probabilities[label])
                count += 1
    return total / count
