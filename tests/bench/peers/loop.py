"""The plain PyTorch and PEFT loop, one trial after another, one thread; run by the peers' Python.

python tests/bench/peers/loop.py FOLDER WORK [WORK ...]
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from material import Work, encode, lora_settings, points
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

WARM = 5
"""Steps of a trial before the first that counts, which pay what is paid once."""


def tensors(tokenizer: Any, path: Path, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels, [rows, length]."""
    found = encode(tokenizer, path, length)
    ids, labels = ([row[name] for row in found] for name in ("input_ids", "labels"))
    return torch.tensor(ids), torch.tensor(labels)


def rate(step: int, steps: int) -> float:
    """Share of the learning rate: a short linear start, then a cosine to nothing."""
    warm = math.ceil(0.03 * steps)
    if step < warm:
        return step / warm
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(1, steps - warm))


def train(
    base: Any, work: Work, point: tuple[int, float], data: list[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[Any, float]:
    """One trial; returns the base model as it was and the seconds of its optimizer steps."""
    torch.manual_seed(42)
    rank, learning_rate = point
    lora = LoraConfig(**lora_settings(rank))
    model = get_peft_model(base, lora)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, eps=1e-6, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, work.steps))
    (ids, labels), held_out = data
    order = torch.randperm(len(ids)).repeat(1 + work.steps * work.batch // len(ids))
    spent = 0.0
    model.train()
    for step in range(work.steps):
        began = time.perf_counter()
        chosen = order[step * work.batch : (step + 1) * work.batch]
        loss = model(input_ids=ids[chosen], labels=labels[chosen]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss.item()
        spent += time.perf_counter() - began
        if (step + 1) % work.eval_every == 0:
            evaluate(model, work, held_out)
    return model.unload(), spent


def evaluate(model: Any, work: Work, data: tuple[torch.Tensor, torch.Tensor]) -> None:
    """The eval loss, thrown away."""
    model.eval()
    with torch.no_grad():
        for ids, labels in zip(*(side.split(work.eval_batch) for side in data), strict=True):
            model(input_ids=ids, labels=labels)
    model.train()


def main(folder: Path, works: list[Work]) -> None:
    torch.set_num_threads(1)
    told = {}
    for work in works:
        tokenizer = AutoTokenizer.from_pretrained(work.model)
        base = AutoModelForCausalLM.from_pretrained(work.model, torch_dtype=torch.float32)
        base.config.use_cache = False
        data = [
            tensors(tokenizer, folder / name, work.length)
            for name in ("train.jsonl", "eval.jsonl")
        ]  # fmt: skip
        short = Work(**{**json.loads(work.words()[0]), "steps": WARM, "eval_every": WARM})
        base, _ = train(base, short, (8, 1e-3), data)
        seconds = 0.0
        for point in points(work.trials):
            base, spent = train(base, work, point, data)
            seconds += spent
        told[work.cell] = seconds / (work.trials * work.steps)
    print(json.dumps({f"step_seconds_{cell}": value for cell, value in told.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Work.parse(text) for text in sys.argv[2:]])
