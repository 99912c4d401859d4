"""What both sides train on: the same rows, the same tiny Llama, the same ranges.

Standard library alone: it is imported in the peers' environment as well.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]
MODEL = REPOSITORY / "trial" / "builtin" / "tiny-llama"
"""Hidden 128, 4 layers, 2048 tokens."""

WORDS = (
    "red",
    "green",
    "blue",
    "small",
    "large",
    "round",
    "flat",
    "warm",
    "cold",
    "old",
    "new",
    "stone",
    "river",
    "cloud",
    "bird",
    "tree",
    "house",
    "road",
    "moon",
    "sun",
)
TRAIN_ROWS, EVAL_ROWS = 256, 32
RANKS = (2, 4, 8, 16)
RATES = (1e-4, 1e-2)
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Work:
    """One sweep's worth of training."""

    trials: int = 12
    steps: int = 60
    batch: int = 1
    length: int = 64
    eval_every: int = 20
    eval_batch: int = 16
    eval_rows: int = 32
    model: str = str(MODEL)
    device: str = "cpu"
    """On a GPU the base model is in bfloat16, and its products with it."""

    @property
    def cell(self) -> str:
        """Batch and length: `2x128`."""
        return f"{self.batch}x{self.length}"

    def words(self) -> list[str]:
        """The work as command-line words; `parse` reads them."""
        return [json.dumps({name: getattr(self, name) for name in self.__slots__})]

    @classmethod
    def parse(cls, text: str) -> Work:
        """What `words` wrote."""
        return cls(**json.loads(text))


def rows(length: int = 0) -> list[dict[str, str]]:
    """Questions of a few tokens, answers longer than any row: no batch has padding to trim."""
    draw, words = random.Random(0), max(160, length * 5 // 4)
    return [
        {
            "question": f"list {number} {draw.choice(WORDS)}:",
            "answer": " ".join(draw.choice(WORDS) for _ in range(words)),
        }
        for number in range(TRAIN_ROWS + EVAL_ROWS)
    ]


def write_rows(folder: Path, length: int = 0) -> tuple[Path, Path]:
    """The rows as two JSONL files, to train on and to evaluate on."""
    lines = [json.dumps(row) + "\n" for row in rows(length)]
    paths = folder / "train.jsonl", folder / "eval.jsonl"
    paths[0].write_text("".join(lines[:TRAIN_ROWS]))
    paths[1].write_text("".join(lines[TRAIN_ROWS:]))
    return paths


def read_rows(path: Path) -> list[dict[str, str]]:
    """What `write_rows` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def encode(tokenizer: Any, path: Path, length: int) -> list[dict[str, list[int]]]:
    """Rows as the peers tokenise them: question masked, cut to `length`."""
    found = []
    for row in read_rows(path):
        prompt = tokenizer(row["question"])["input_ids"]
        answer = tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
        ids = (prompt + answer)[:length]
        labels = ([IGNORED] * len(prompt) + answer)[:length]
        found.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return found


def lora_settings(rank: int) -> dict[str, Any]:
    """The peers' `LoraConfig`."""
    return {
        "r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
    }  # fmt: skip


def trainer_settings(work: Work, rate: float) -> dict[str, Any]:
    """What all peers' training arguments have in common."""
    return {
        "max_steps": work.steps,
        "learning_rate": rate,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.03,
        "per_device_train_batch_size": work.batch,
        "per_device_eval_batch_size": work.eval_batch,
        "eval_strategy": "steps",
        "eval_steps": work.eval_every,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def points(count: int) -> list[tuple[int, float]]:
    """Rank and learning rate of so many trials, mixed, for arms that run no sampler."""
    low, high = RATES
    draw = random.Random(0)
    return [
        (RANKS[i % len(RANKS)], low * (high / low) ** draw.random()) for i in range(count)
    ]  # fmt: skip


def trial_content(work: Work, folder: Path, rank: int, rate: float) -> dict[str, Any]:
    """One trial as `config.json` has it."""
    half = work.device != "cpu"
    return {
        "model": {"name_or_path": work.model, "dtype": "bfloat16" if half else "float32"},
        "data": {
            "path": str(folder / "train.jsonl"),
            "eval_path": str(folder / "eval.jsonl"),
            "max_length": work.length,
            "prompt_format": "plain",
            "max_eval_samples": work.eval_rows,
        },
        "lora": {"r": rank, "lora_alpha": 2 * rank},
        "training": {
            "learning_rate": rate,
            "max_steps": work.steps,
            "per_device_train_batch_size": work.batch,
            "per_device_eval_batch_size": work.eval_batch,
            "eval_steps": work.eval_every,
            "logging_steps": 10,
            "bf16": half,
        },
        "device": work.device,
    }


def sweep_content(work: Work, folder: Path, pack: str | int | None) -> dict[str, Any]:
    """The sweep as a file says it; JSON is YAML."""
    base = trial_content(work, folder, 8, 1e-3)
    resources: dict[str, Any] = {"concurrency": 2}
    if pack is not None:
        resources["pack"] = pack
    return {
        "question": "How long does it take?",
        "base": base,
        "space": {
            "lora.r": list(RANKS),
            "lora.lora_alpha": {"expression": "2 * lora.r"},
            "training.learning_rate": {"low": RATES[0], "high": RATES[1], "log": True},
        },
        "sampler": {"name": "tpe", "seed": 0},
        "pruner": "none",
        "stop": {"trials": work.trials},
        "resources": resources,
    }
