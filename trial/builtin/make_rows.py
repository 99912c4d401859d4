"""Makes the built-in rows anew, in about two minutes on two CPU cores.

    python -m trial.builtin.make_rows [FILE]

They were made once, and `rows.jsonl.gz` holds them. `builtin:python-docs` can be repeated exactly
from git's history. The answers of the code rows are sampled: where sums round otherwise, some
differ.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trial.builtin import frozen_rows, make_tiny_llama, model_path
from trial.builtin.code_rows import FORGET, RETAIN, code_rows
from trial.builtin.docs_rows import docs_rows
from trial.builtin.project_source import python_files


def main(file: Path) -> None:
    """Draw the rows from the project's source at its commit, and write them."""
    files = python_files()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(model_path(), torch_dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    known = "".join(make_tiny_llama.corpus())
    forget = code_rows(files, FORGET, model, tokenizer, known)
    forgotten = {row["answer"] for row in forget}
    retain = code_rows(files, RETAIN, model, tokenizer, known)
    datasets = {
        "python-docs": docs_rows(files),
        "code-forget": forget,
        "code-retain": [row for row in retain if row["answer"] not in forgotten],
    }
    frozen_rows.write(datasets, file)
    for name, rows in datasets.items():
        print(f"{name}: {len(rows)} rows, {frozen_rows.content_hash(rows)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else frozen_rows.FILE)
