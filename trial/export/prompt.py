"""The prompt format of a trial as the chat template of the exported tokenizer. Torch-free."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from trial.config.sections import DataConfig
from trial.data.prompts import CHAT_TEMPLATE, PROMPT_FORMATS, PromptFormat, choose_format

FILE = "prompt_format.json"
EXAMPLE = [{"role": "user", "content": "QUESTION"}]


def format_name(data: DataConfig, tokenizer: Any, model_type: str) -> str:
    """The prompt format that the trial's `data.prompt_format` means, never `auto`."""
    family = f"{model_type} {os.path.basename(str(tokenizer.name_or_path))}"
    has_template = bool(tokenizer.chat_template)
    return choose_format(data.prompt_format, has_template=has_template, family=family)


def apply_format(tokenizer: Any, name: str, *, together: bool) -> None:
    """Make the chat template of `tokenizer` write prompts as in the prompt format `name`.

    `together`: prompt and answer were tokenized as one text (`data.tokenize`).
    """
    if name != CHAT_TEMPLATE:
        tokenizer.chat_template = template_of(PROMPT_FORMATS[name], tokenizer, together=together)


def template_of(tags: PromptFormat, tokenizer: Any, *, together: bool) -> str:
    """A Jinja chat template that writes the tags around questions and answers as in training.

    It starts with the special tokens that the tokenizer puts before a text, since texts of a chat
    template are tokenized without any, and ends an answer that nothing follows with eos.

    Tokenized `together`, the space before an answer belongs to the answer's first token: a prompt
    ends before it. Then also an answer that a question follows ends with eos, unless the format has
    a mark of its own for that.
    """
    after = tags.answer_end
    if together and not after.strip():
        after = f"{tokenizer.eos_token}{after}"
    strip = ".rstrip(' ')" if together else ""
    texts = (_special_start(tokenizer), tags.question_start, tags.question_end, after)
    first, start, end, after = (json.dumps(text) for text in texts)
    return (
        f"{{{{ {first} }}}}"
        "{% set ns = namespace(system='', end='') %}"
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}"
        "{% set ns.system = ns.system + message['content'] + '\\n\\n' %}"
        "{% elif message['role'] == 'assistant' %}"
        f"{{{{ ns.end{strip} if message['content'][:1].isspace() else ns.end }}}}"
        "{% set ns.end = '' %}"
        f"{{{{ message['content'] + (eos_token if loop.last else {after}) }}}}"
        "{% else %}"
        f"{{{{ ns.end + {start} + ns.system + message['content'] }}}}"
        f"{{% set ns.system = '' %}}{{% set ns.end = {end} %}}"
        "{% endif %}"
        "{% endfor %}"
        f"{{{{ ns.end{strip} }}}}"
    )


def _special_start(tokenizer: Any) -> str:
    """Text of the special tokens that the tokenizer puts before every text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a", add_special_tokens=True)["input_ids"]
    starts = (at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
    return "".join(tokenizer.convert_ids_to_tokens(whole[: next(starts, 0)]))


def example(tokenizer: Any) -> str:
    """A prompt as text; empty where the chat template cannot write one."""
    try:
        text = tokenizer.apply_chat_template(EXAMPLE, tokenize=False, add_generation_prompt=True)
    except Exception:
        return ""
    return str(text)


def write_format(name: str, folder: Path) -> None:
    """Write the name of the prompt format, and the text around a question, as JSON."""
    content: dict[str, Any] = {"prompt_format": name}
    if name != CHAT_TEMPLATE:
        tags = PROMPT_FORMATS[name]
        content |= {field: getattr(tags, field) for field in tags.__slots__}
    (folder / FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
