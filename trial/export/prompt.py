"""The prompt format of a trial as the chat template of the exported tokenizer. Torch-free."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from trial.config.sections import DataConfig
from trial.data.prompts import CHAT_TEMPLATE, PROMPT_FORMATS, PromptFormat, choose_format
from trial.data.text.template_file import read_template, template_hash
from trial.store.records import DataSummary

FILE = "prompt_format.json"
EXAMPLE = [{"role": "user", "content": "QUESTION"}]


def format_name(data: DataConfig, tokenizer: Any, model_type: str) -> str:
    """The prompt format that the trial's `data.prompt_format` means, never `auto`."""
    family = f"{model_type} {os.path.basename(str(tokenizer.name_or_path))}"
    has_template = data.chat_template is not None or bool(tokenizer.chat_template)
    return choose_format(data.prompt_format, has_template=has_template, family=family)


def apply_format(tokenizer: Any, name: str, *, together: bool, own: str = "") -> None:
    """Make the chat template of `tokenizer` write prompts as in the prompt format `name`.

    Args:
        tokenizer: the base model's.
        name: never `auto`.
        together: prompt and answer were tokenized as one text (`data.tokenize`).
        own: text of the user's own template (`data.chat_template`); empty for none.
    """
    if own:
        tokenizer.chat_template = own
    elif name != CHAT_TEMPLATE:
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


def own_template(data: DataConfig, summary: DataSummary | None) -> str:
    """Text of the trial's `data.chat_template`; empty without.

    Raises:
        ValueError: the file is not what it was when the trial read it, or cannot be read.
    """
    if data.chat_template is None:
        return ""
    text = read_template(data.chat_template)
    if summary is not None and summary.chat_template_hash not in ("", template_hash(text)):
        raise ValueError(f"{data.chat_template}: the chat template has changed since the trial")
    return text


def write_format(name: str, folder: Path, template: str = "") -> None:
    """Write the name of the prompt format, and the text around a question, as JSON.

    `template` is the name of the user's own template.
    """
    content: dict[str, Any] = {"prompt_format": name}
    if template:
        content["chat_template"] = template
    if name != CHAT_TEMPLATE:
        tags = PROMPT_FORMATS[name]
        content |= {field: getattr(tags, field) for field in tags.__slots__}
    (folder / FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
