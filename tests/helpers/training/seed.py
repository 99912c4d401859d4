"""The seed repository's two configuration files, and a model and rows for them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

FINETUNE_LORA = """\
model_id: {model}
model_family: llama2-7b
gaudi_config_name: Habana/llama

LoRA:
  r: 8
  alpha: 32
  dropout: 0.05

data_path: {rows}
split: full
batch_size: 4
gradient_accumulation_steps: 1
num_epochs: 10
save_dir: /save_dir
lr: 1e-4
weight_decay: 0
seed: 42
"""
"""config/finetune_lora.yaml as in the seed repository's description, but for two paths."""

DS_CONFIG = """\
{
  "zero_optimization": {
    "stage": 1,
    "offload_optimizer": {
      "device": "none",
      "pin_memory": true
    }
  }
}
"""
"""config/ds_config.json, the same."""


def write_config(folder: Path, model: object, rows: object, deepspeed: bool = True) -> Path:
    """The seed repository's `config` folder; returns the YAML file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "finetune_lora.yaml"
    file.write_text(FINETUNE_LORA.format(model=model, rows=rows))
    if deepspeed:
        (folder / "ds_config.json").write_text(DS_CONFIG)
    return file


def write_model(folder: Path) -> Path:
    """A tiny Llama that takes rows of 500 tokens, as in the seed repository."""
    from helpers.training import models

    models.make_model(folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 512}))
    return folder


def write_rows(path: Path, count: int = 18) -> Path:
    """Questions and answers as the seed repository reads them: a CSV with semicolons."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer"], delimiter=";")
        writer.writeheader()
        for number in range(count):
            asked, answer = f"how much is {number} and {number + 2}?", f"it is {2 * number + 2}"
            writer.writerow({"question": asked, "answer": answer})
    return path
