"""The built-in datasets, read from a file that comes with the project.

The same rows on every Python and platform. `make_rows` wrote them, once.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("rows.jsonl.gz")
"""A line of JSON a row: `dataset`, `question`, `answer`."""


@cache
def read(dataset: str) -> list[Mapping[str, str]]:
    """All rows (`question`, `answer`) of a dataset, in the order of the file."""
    records = map(json.loads, gzip.decompress(FILE.read_bytes()).decode("utf-8").splitlines())
    return [
        {"question": record["question"], "answer": record["answer"]}
        for record in records
        if record["dataset"] == dataset
    ]


def write(datasets: Mapping[str, Iterable[Mapping[str, str]]], file: Path = FILE) -> None:
    """Write the rows of all datasets; the same rows give the same bytes with the same zlib."""
    lines = [
        json.dumps({"dataset": name, **row}) + "\n"
        for name, rows in datasets.items()
        for row in rows
    ]
    file.write_bytes(gzip.compress("".join(lines).encode("utf-8"), mtime=0))


def content_hash(rows: Iterable[Mapping[str, str]]) -> str:
    """Hash of rows, independent of how they are stored."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row['question']}\0{row['answer']}\0".encode())
    return digest.hexdigest()[:16]
