"""The model card of an export. Torch-free."""

from __future__ import annotations

import jinja2

from trial.config.trial_config import TrialConfig
from trial.export.verify import Measured
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
{% if result.data and result.data.date -%}
| date that the prompts name | {{ result.data.date }} |
{% endif -%}
| held-out loss | {{ '%.4f'|format(result.eval_loss) }} nats per completion token |
| measured again | {{ measured or 'not measured' }} |
{% if result.initial_eval_loss is not none -%}
| before training | {{ '%.4f'|format(result.initial_eval_loss) }} |
{% endif -%}
| optimizer steps | {{ result.best_step or result.steps }} of {{ result.max_steps }} |
| learning rate | {{ config.training.learning_rate }} |
| seed | {{ config.training.seed }} |
| trained on | {{ result.device }} |

{% if measured -%}
"Measured again" is the loss of these files on the same held-out tokens, loaded in a fresh process
by {{ measured.libraries }} alone.
{%- else -%}
Nobody has loaded these files again and measured their loss.
{%- endif %}

## Prompts

Trained with the prompt format `{{ prompt_format }}`. The tokenizer beside the weights has it as its
chat template; ask with no other:

```python
ids = tokenizer.apply_chat_template(
    [{"role": "user", "content": "QUESTION"}], add_generation_prompt=True, return_tensors="pt"
)
```
{% if prompt %}
which is the text (between the lines of dashes)

```
-----
{{ prompt }}
-----
```
{% endif %}
## Load it

```python
{% if merged or not config.lora.r -%}
model = AutoModelForCausalLM.from_pretrained("THIS FOLDER", torch_dtype="auto")
{%- else -%}
base = AutoModelForCausalLM.from_pretrained(
    "{{ config.model.name_or_path }}", torch_dtype=torch.{{ config.model.dtype }}
)
model = PeftModel.from_pretrained(base, "THIS FOLDER")
{%- endif %}
tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER")
```

Train it again: copy `config.trial.json` to an empty folder as `config.json`, then
`python -m trial FOLDER`.
"""


def card(
    config: TrialConfig,
    result: Result,
    *,
    merged: bool,
    measured: Measured | None,
    prompt_format: str,
    prompt: str,
) -> str:
    """The model card, in Markdown.

    Args:
        config: of the trial.
        result: of the trial.
        merged: the weights are the merged model's.
        measured: the loss of the exported files; None where it was not measured.
        prompt_format: name of the prompt format, never `auto`.
        prompt: an example of a prompt in that format, or an empty text.
    """
    origin = config.origin
    title = f"{origin.study}, trial {origin.number}" if origin else "A single run"
    template = jinja2.Environment(autoescape=False, keep_trailing_newline=True).from_string(CARD)
    return template.render(
        config=config,
        result=result,
        merged=merged,
        title=title,
        measured=measured,
        prompt_format=prompt_format,
        prompt=prompt,
    )
