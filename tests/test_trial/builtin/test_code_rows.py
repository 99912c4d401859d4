"""Code rows: where a function is cut, and that the tiny Llama knows its own answers."""

import inspect
from itertools import pairwise

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from trial.builtin import code_rows, frozen_rows, model_path
from trial.builtin.code_rows import cut, prompts_of

SOURCE = '''
class A:
    def f(self, x):
        """Left out.

        All of it.
        """
        y = x
        return y

    def g(self): return 1
    def h(self):
        return 2
'''


def test_a_function_is_cut_after_the_first_line_of_its_body():
    prompts = list(prompts_of({"trial/a.py": SOURCE, "tests/b.py": SOURCE}, ["trial/"]))
    assert prompts == ["    def f(self, x):\n        y = x"]


def test_an_answer_is_whole_lines():
    written = "ignored\n    if x is None:\n        return 1\n    z = 2\n    return z\n    retu"
    assert cut(written) == "\n    if x is None:\n        return 1\n    z = 2"
    assert cut("ignored\n    x = [1, 2, 3, 4]\n\ndef g():\n    pass\n") == "\n    x = [1, 2, 3, 4]"
    assert cut("ignored\n    a = 1\n    retu") == ""


@torch.no_grad()
def nats(model, tokenizer, rows):
    """Cross-entropy per answer token, mean over rows."""
    losses = []
    for row in rows:
        prompt = len(tokenizer(row["question"])["input_ids"])
        ids = torch.tensor([tokenizer(row["question"] + row["answer"])["input_ids"]])
        logits = model(input_ids=ids).logits[0, prompt - 1 : -1]
        losses.append(cross_entropy(logits, ids[0, prompt:]))
    return torch.stack(losses).mean().item()


def test_the_tiny_llama_knows_the_answers_better_than_code_that_it_has_not_seen(one_thread):
    model = AutoModelForCausalLM.from_pretrained(model_path(), torch_dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    lines = inspect.getsource(code_rows).splitlines()
    parts = ["\n".join(lines[start : start + 3]) for start in range(0, len(lines), 3)]
    unseen = [{"question": a, "answer": f"\n{b}"} for a, b in pairwise(parts)]
    control = nats(model, tokenizer, unseen)
    for dataset in ("code-forget", "code-retain"):
        assert nats(model, tokenizer, frozen_rows.read(dataset)[::16]) < control - 0.5
