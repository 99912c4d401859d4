"""One trial after another through Hugging Face's Trainer, in one process, on one GPU.

python tests/bench/peers/trainer.py FOLDER WORK [WORK ...]

Imports and base model are paid once, as in no script that is started for each trial. A few steps
of each work are not measured.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from material import Work, encode, lora_settings, points, trainer_settings, write_rows
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

WARM = 5
"""Steps of a trial before the first that counts, which pay what is paid once."""


class Steps(TrainerCallback):
    """Sums up the seconds between a step's begin and its end."""

    def __init__(self) -> None:
        self.seconds, self.began = 0.0, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds += time.perf_counter() - self.began


def train(base: Any, work: Work, point: tuple[int, float], data: list[Any], out: Path) -> Any:
    """One trial; returns the base model as it was, and the seconds of its optimizer steps."""
    set_seed(42)
    rank, rate = point
    lora = LoraConfig(**lora_settings(rank))
    arguments = TrainingArguments(
        output_dir=str(out),
        **trainer_settings(work, rate),
        bf16=True,
        use_cpu=work.device == "cpu",
        # The loss alone: without it every evaluation gathers all logits.
        prediction_loss_only=True,
    )
    steps = Steps()
    model = get_peft_model(base, lora)
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=default_data_collator,
        train_dataset=data[0],
        eval_dataset=data[1],
        callbacks=[steps],
    )
    trainer.train()
    model.save_pretrained(out / "adapter")
    return model.unload(), steps.seconds


def main(folder: Path, works: list[Work]) -> None:
    told = {}
    for work in works:
        home = folder / work.cell
        home.mkdir()
        tokenizer = AutoTokenizer.from_pretrained(work.model)
        base = AutoModelForCausalLM.from_pretrained(work.model, torch_dtype="bfloat16")
        base.config.use_cache = False
        data = [encode(tokenizer, path, work.length) for path in write_rows(home, work.length)]
        short = replace(work, steps=WARM, eval_every=WARM)
        base, _ = train(base, short, (8, 1e-3), data, home / "first")
        seconds, began = 0.0, time.perf_counter()
        for number, point in enumerate(points(work.trials)):
            base, spent = train(base, work, point, data, home / str(number))
            seconds += spent
        wall = time.perf_counter() - began
        told[f"step_seconds_{work.cell}"] = seconds / (work.trials * work.steps)
        told[f"wall_seconds_{work.cell}"] = wall
        told[f"trials_per_hour_{work.cell}"] = 3600 * work.trials / wall
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Work.parse(text) for text in sys.argv[2:]])
