"""The reference of every key of a sweep file, generated from the pydantic fields.

python -m sweep.loading.key_reference docs/keys.md
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jinja2
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sweep.spec.expression import FUNCTIONS
from sweep.spec.spec import (
    BudgetSpec,
    ConfirmSpec,
    FailuresSpec,
    ObjectiveSpec,
    PrunerSpec,
    ResourceSpec,
    SamplerSpec,
    StopSpec,
    SweepSpec,
)
from trial.config.sections import (
    DataConfig,
    DeepSpeedSection,
    EvaluationSection,
    LoraSection,
    ModelConfig,
    ObjectiveSection,
)
from trial.config.trial_config import TrialConfig

SECTIONS: dict[str, tuple[str, type[BaseModel]]] = {
    "Top level": ("", SweepSpec),
    "objective": ("objective.", ObjectiveSpec),
    "budget": ("budget.", BudgetSpec),
    "base": ("base.", TrialConfig),
    "base.model": ("base.model.", ModelConfig),
    "base.data": ("base.data.", DataConfig),
    "base.lora": ("base.lora.", LoraSection),
    "base.objective": ("base.objective.", ObjectiveSection),
    "base.evaluation": ("base.evaluation.", EvaluationSection),
    "base.deepspeed": ("base.deepspeed.", DeepSpeedSection),
    "sampler": ("sampler.", SamplerSpec),
    "pruner": ("pruner.", PrunerSpec),
    "stop": ("stop.", StopSpec),
    "resources": ("resources.", ResourceSpec),
    "confirm": ("confirm.", ConfirmSpec),
    "failures": ("failures.", FailuresSpec),
}

HIDDEN = {"version", "origin", "options", "objectives"}

TEMPLATE = """\
# Every key of a sweep file

Written by `python -m sweep.loading.key_reference docs/keys.md`; a test keeps it current.
`base.training` takes any `TrainingArguments` or `GaudiTrainingArguments` name and PEFT's
`loraplus_lr_ratio`, `base.lora` any PEFT `LoraConfig` name.
{% for title, rows in sections.items() %}
## {{ title }}

| key | default | meaning |
|---|---|---|
{% for row in rows -%}
| `{{ row.key }}` | {{ row.default }} | {{ row.meaning }} |
{% endfor %}
{%- if title == "Top level" %}
`objective: seconds` is `objective: {metric: seconds}`; several are a list under `objectives`.
`budget: {device_hours: 20}` is another way to write `stop: {device_hours: 20}`.

## A dimension of `space` or `variables`

| written | means |
|---|---|
| `[4, 8, 16]` | one of these values |
| `{choices: [4, 8, 16]}` | the same, where other keys stand beside it |
| `{low: 1e-5, high: 1e-3, log: true}` | a number, ends included; `log`: even by ratio |
| `{low: 0.0, high: 0.1, step: 0.05}` | in steps from `low` on; a grid needs steps or a list |
| `{low: 4, high: 64}` | a whole number, since both ends are |
| `{expression: 2 * lora.r}` | computed: + - * / // % **, comparisons, `a if c else b` |
| `{value: 8}` | always this value, where it is to hold only under a condition |
| `{..., when: {lora.r: [16, 32]}}` | only for these values of another; else the base's |
| `[{..., when: ...}, {..., when: ...}]` | branches: at most one of them holds |

Functions of an expression: {{ functions }}.
{% endif %}
{%- endfor %}"""


def render() -> str:
    """The reference as Markdown."""
    rows = {title: _rows(prefix, model) for title, (prefix, model) in SECTIONS.items()}
    text = jinja2.Environment(autoescape=False, keep_trailing_newline=True).from_string(TEMPLATE)
    return text.render(sections=rows, functions=", ".join(f"`{name}`" for name in FUNCTIONS))


def _rows(prefix: str, model: type[BaseModel]) -> list[dict[str, str]]:
    return [
        {
            "key": f"{prefix}{name}",
            "default": _default(field),
            "meaning": " ".join((field.description or "").split()).replace("|", "\\|"),
        }
        for name, field in model.model_fields.items()
        if name not in HIDDEN
    ]


def _default(field: FieldInfo) -> str:
    value: Any = field.get_default(call_default_factory=True) if not field.is_required() else ""
    if isinstance(value, BaseModel | tuple) or value in ("", {}, []):
        return ""
    written = yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
    return f"`{written}`"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(), encoding="utf-8")
