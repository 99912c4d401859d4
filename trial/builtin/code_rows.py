"""Makes the rows of `builtin:code-forget` and `builtin:code-retain`: the tiny Llama's own code.

A question is the first lines of a function of this project, the answer the lines with which the
tiny Llama itself goes on, sampled with a fixed seed. So the model knows every answer. No text that
it was trained on comes along: an answer that stands in that text is left out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, takewhile
from typing import Any

import torch

FORGET = ("sweep/",)
RETAIN = ("results/", "trial/")
"""Folders whose functions are begun."""

MIN_CHARACTERS, MAX_CHARACTERS = 20, 240
"""Shortest and longest answer, and longest head of a function."""
MAX_LINES = 3
"""Most lines of an answer."""
MAX_TOKENS = 80
"""Tokens that are sampled for an answer."""
TEMPERATURE = 0.5
SEED = 0
BATCH = 64


def code_rows(
    files: Mapping[str, str], folders: Sequence[str], model: Any, tokenizer: Any, known: str
) -> list[dict[str, str]]:
    """Rows (`question`, `answer`) of the files in the folders; no question and no answer twice.

    Args:
        files: text by path.
        folders: with which a path begins.
        model: the causal language model that writes the answers.
        tokenizer: its tokenizer.
        known: the text that it was trained on.
    """
    known = flat(known)
    prompts = list(dict.fromkeys(prompts_of(files, folders)))
    rows: dict[str, dict[str, str]] = {}
    for prompt, text in zip(prompts, continuations(prompts, model, tokenizer), strict=True):
        answer = cut(text)
        if answer and flat(answer) not in known:
            rows.setdefault(answer, {"question": prompt, "answer": answer})
    return list(rows.values())


def prompts_of(files: Mapping[str, str], folders: Sequence[str]) -> Iterator[str]:
    """Head and first line of the body of each function, without its docstring.

    Functions of a single statement are left out.
    """
    for path, text in files.items():
        if not path.startswith(tuple(folders)):
            continue
        lines = text.split("\n")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if len(body) < 2 or body[0].lineno == node.lineno:
                continue
            head = lines[node.lineno - 1 : node.body[0].lineno - 1]
            prompt = "\n".join([*head, lines[body[0].lineno - 1]])
            if len(prompt) <= MAX_CHARACTERS:
                yield prompt


def cut(text: str) -> str:
    """At most `MAX_LINES` whole lines of a continuation, with the line break before them.

    They end where the function does, at a line without indentation. Empty where they are too short
    or too long. The last line of the text is left out: sampling ended within it.
    """
    inside = takewhile(lambda line: not line or line.startswith(" "), text.split("\n")[1:-1])
    answer = "".join(f"\n{line}" for line in islice(inside, MAX_LINES)).rstrip()
    return answer if MIN_CHARACTERS <= len(answer) <= MAX_CHARACTERS else ""


def flat(text: str) -> str:
    """The words of a text, with a space between any two."""
    return " ".join(text.split())


@torch.no_grad()
def continuations(prompts: Sequence[str], model: Any, tokenizer: Any) -> Iterable[str]:
    """What the model writes after each prompt, sampled at `TEMPERATURE`."""
    torch.manual_seed(SEED)
    tokenizer.padding_side = "left"
    for start in range(0, len(prompts), BATCH):
        inputs = tokenizer(prompts[start : start + BATCH], return_tensors="pt", padding=True)
        ids = model.generate(
            **inputs, max_new_tokens=MAX_TOKENS, do_sample=True, temperature=TEMPERATURE, top_k=0
        )
        written = ids[:, inputs["input_ids"].shape[1] :]
        yield from tokenizer.batch_decode(written, skip_special_tokens=True)
