"""Export a trained trial: adapter or merged model, model card, configuration.

python -m trial.export runs/x/trials/00007 out [--merge]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import jinja2

from trial.config.trial_config import TrialConfig
from trial.store.files import write_atomically
from trial.store.folders import TrialFolder
from trial.store.records import Result

CARD = """\
---
base_model: {{ config.model.name_or_path }}
library_name: {{ 'transformers' if merged or not config.lora.r else 'peft' }}
tags: [{{ 'lora' if config.lora.r else 'full-fine-tuning' }}, gaudi-sweep]
---

# {{ title }}

{% if config.lora.r -%}
A LoRA adapter{{ ', merged into its base model,' if merged }} of rank {{ config.lora.r }} \
(alpha {{ config.lora.lora_alpha }}, dropout {{ config.lora.lora_dropout }}\
{{ ', rank-stabilised' if config.lora.use_rslora }}).
{%- else -%}
A fully fine-tuned model.
{%- endif %}

| | |
|---|---|
| base model | {{ config.model.name_or_path }} (hash {{ result.model_hash }}) |
| data | {{ config.data.path }} (hash {{ result.data_hash }}) |
| held-out loss | {{ '%.4f'|format(result.eval_loss) }} nats per completion token |
{% if result.initial_eval_loss is not none -%}
| before training | {{ '%.4f'|format(result.initial_eval_loss) }} |
{% endif -%}
| optimizer steps | {{ result.best_step or result.steps }} of {{ result.max_steps }} |
| learning rate | {{ config.training.learning_rate }} |
| seed | {{ config.training.seed }} |
| trained on | {{ result.device }} |

Train it again: copy `config.trial.json` to an empty folder as `config.json`, then
`python -m trial FOLDER`.
"""


def export(folder: TrialFolder, target: Path, merge: bool = False) -> Path:
    """Write the trial's weights, card and configuration to `target`, which must not exist.

    Raises:
        ValueError: the trial has no result with weights, or `target` exists.
    """
    result, config = folder.read_result(), folder.read_config()
    source = folder.adapter if config.lora.r else folder.model
    if result is None or result.eval_loss is None or not source.exists():
        state = result.state if result else "not finished"
        raise ValueError(f"{folder.path}: nothing to export, the trial is {state}")
    if target.exists():
        raise ValueError(f"{target}: exists already")
    merged = merge and config.lora.r > 0
    if merged:
        _merge(config, source, target)
    else:
        shutil.copytree(source, target)
    write_atomically(target / "README.md", card(config, result, merged))
    plain = config.model_copy(update={"origin": None})
    write_atomically(target / "config.trial.json", plain.model_dump_json(indent=2) + "\n")
    return target


def card(config: TrialConfig, result: Result, merged: bool) -> str:
    """The model card, in Markdown. `merged`: the weights are the merged model's."""
    origin = config.origin
    title = f"{origin.study}, trial {origin.number}" if origin else "A single run"
    template = jinja2.Environment(autoescape=False, keep_trailing_newline=True).from_string(CARD)
    return template.render(config=config, result=result, merged=merged, title=title)


def _merge(config: TrialConfig, adapter: Path, target: Path) -> None:
    from peft import PeftModel

    from trial.model.load import load_base, load_tokenizer

    model = PeftModel.from_pretrained(
        load_base(config.model, None), str(adapter)
    ).merge_and_unload()
    model.save_pretrained(target)
    load_tokenizer(config.model).save_pretrained(target)


def main() -> int:
    """Run the command; returns 0, or 2 after a message on standard error."""
    parser = argparse.ArgumentParser(prog="python -m trial.export", description=__doc__)
    parser.add_argument("trial", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--merge", action="store_true")
    given = parser.parse_args()
    try:
        print(export(TrialFolder(given.trial), given.target, given.merge))
    except (OSError, ValueError, json.JSONDecodeError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
