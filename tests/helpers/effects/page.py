"""Writes docs/effects.md: what each key of `training` and `lora` does, measured.

PYTHONPATH=.:tests .venv/bin/python -m helpers.effects.page docs/effects.md
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from helpers.effects import lora_fields, training_arguments
from helpers.training.train import Material

from trial.config import config_rules
from trial.config.packing_rules import SHARED, VARIED

HEAD = """# What each key of `training` and `lora` does

Written by `PYTHONPATH=.:tests .venv/bin/python -m helpers.effects.page docs/effects.md`.
`tests/test_trial/effects/test_training_arguments.py` and `test_lora_fields.py` beside it
measure the same.

## Training arguments that act on the losses

Eval losses in nats per token after 4, 8 and 12 steps of a tiny Llama on a CPU: with the values of
the first row, and with those of each other row beside them.

| argument | values | eval losses | in a packed job |
|---|---|---|---|"""

LORA_HEAD = """
## Fields of LoraConfig

A tiny Llama after 4 steps, with an output layer of its own or tied to the embeddings, in float32
and bfloat16: the trial's eval loss, and what the saved adapter's differs from it, read by plain
transformers and PEFT. Every trained tensor is float32 and has moved, where nothing else is said.

| field | values | untied, float32 | untied, bfloat16 | tied, float32 | tied, bfloat16 |
|---|---|---|---|---|---|"""

REFUSED = "A new configuration may give the default of these, or leave them out:"


def render(material: Material) -> str:
    """The page."""
    lines = [HEAD, _row("(none)", training_arguments.BASE, _train(material, {}), "")]
    for name, values in sorted(training_arguments.ACTING.items()):
        needs = training_arguments.NEED_A_PACKAGE.get(name)
        found = f"not measured: needs {needs}" if needs else _train(material, values)
        lines.append(_row(f"`{name}`", values, found, _packs(name)))
    lines += ["", "## Refused", "", REFUSED, _names(training_arguments.refused_arguments()) + "."]
    lines += ["", "## Without effect on the losses", "", "| arguments | about |", "|---|---|"]
    lines.append(f"| {_names(training_arguments.SAME)} | measured: the same losses |")
    by_reason: dict[str, list[str]] = {}
    for name, reason in training_arguments.WITHOUT_EFFECT.items():
        by_reason.setdefault(reason, []).append(name)
    lines += [f"| {_names(names)} | {reason} |" for reason, names in by_reason.items()]
    lines.append(f"| {_names(training_arguments.hpu_arguments())} | a Gaudi alone; not measured |")
    return "\n".join([*lines, *_lora_lines(material), ""])


def _packs(name: str) -> str:
    if name in VARIED:
        return "beside other values"
    return "trials of one value" if name in SHARED else "trains alone"


def _names(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _row(name: str, values: Mapping[str, Any], found: str, packs: str) -> str:
    return f"| {name} | `{json.dumps(values)}` | {found} | {packs} |"


def _train(material: Material, values: Mapping[str, Any]) -> str:
    folder, result = material.train(material.config(training={**training_arguments.BASE, **values}))
    shown = " ".join(f"{loss:.4f}" for loss in training_arguments.losses(folder))
    return shown if result.state == "complete" else f"{result.state}: {result.cause}"


def _lora_lines(material: Material) -> list[str]:
    """The table of the fields of LoraConfig."""
    lines = [LORA_HEAD]
    for name, values in lora_fields.LORA.items():
        cells = [
            _cell(material, name, family, dtype)
            for family in lora_fields.FAMILIES
            for dtype in lora_fields.DTYPES
        ]
        lines.append(f"| `{name}` | `{json.dumps(values)}` | {' | '.join(cells)} |")
    refused = _names(config_rules.refused_lora_fields())
    return [
        *lines,
        "",
        f"Refused by name: {refused}; of `init_lora_weights` corda, loftq, lora_ga.",
    ]


def _cell(material: Material, name: str, family: str, dtype: str) -> str:
    measured = lora_fields.measure_lora(material, name, family, dtype, setattr)
    if measured.refused:
        return "refused"
    problems = [] if measured.types == {torch.float32} else ["not float32"]
    problems += [f"{len(measured.still)} still"] if measured.still else []
    return ", ".join([f"{measured.table:.4f} {measured.reloaded - measured.table:+.0e}", *problems])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Path(sys.argv[1]).write_text(render(Material(Path(folder))), encoding="utf-8")
