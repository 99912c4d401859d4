"""Reads files and datasets as tables of raw cells; errors name file and line. Torch-free."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trial.config.errors import ConfigError, Problem, nearest
from trial.config.paths import COMPRESSED_ENDINGS, DATA_ENDINGS
from trial.config.sections import DataConfig
from trial.data.files.compressed import content_of, only_member
from trial.model import hub

BUILTIN = "builtin:"
DELIMITERS = ",;\t|"
SNIFFED_RECORDS = 50
"""Records from which the delimiter of a CSV file is guessed."""

_WHOLE = "train"
"""The split that is all of a file."""
_SPLIT_KEYS = {"data.path": "data.split", "data.eval_split": "data.eval_split"}
"""The key that asks for a split, by the key under which a table is read."""


@dataclass(frozen=True, slots=True)
class Table:
    """Raw records and their line or row numbers in the source."""

    source: str
    """The file or dataset, as the user named it."""
    unit: str
    """What `numbers` count: `line` or `row`, from 1."""
    columns: tuple[str, ...]
    records: list[Mapping[str, Any]]
    numbers: list[int]

    def location(self, index: int) -> str:
        """Source and line of a record, in words."""
        return f"{self.source} {self.unit} {self.numbers[index]}"


def refuse(key: str, expected: str, got: str = "", near: str = "") -> ConfigError:
    """A `ConfigError` of one problem."""
    return ConfigError([Problem(key, expected, got, near)])


def read_table(path: str, config: DataConfig, split: str, key: str = "data.path") -> Table:
    """Read `path`; `split` is for datasets only, and `key` is the one that errors name.

    Raises:
        ConfigError: it is missing, a folder, empty or malformed, or a file of which a split is
            asked for.
    """
    if not path.strip():
        raise refuse(key, "a file, a dataset or a built-in name", repr(path))
    kind = source_kind(path, config.format, key)
    if kind == "dataset":
        return _read_dataset(path, config, split, key)
    if config.tokenize != "apart" and key in _SPLIT_KEYS and split != _WHOLE:
        split_key = _SPLIT_KEYS[key]
        right = "null" if split_key == "data.eval_split" else _WHOLE
        raise refuse(split_key, f"{right}, since {path} has no splits", repr(split))
    if kind == "builtin":
        return _read_builtin(path, key)
    file = Path(path).expanduser()
    _check_file(file, path, key)
    table = READERS[kind](file, config, key)
    if not table.records:
        raise refuse(key, f"{path}: at least one row", "none")
    return table


def source_kind(path: str, declared: str, key: str = "data.path") -> str:
    """`builtin`, `dataset`, or a key of `READERS`.

    Raises:
        ConfigError: the ending is unknown and `data.format` is `auto`.
    """
    if path.startswith(BUILTIN):
        return "builtin"
    if declared != "auto":
        return declared
    file = Path(path).expanduser()
    if file.is_dir():
        return "dataset"
    ending = _ending(file)
    if file.suffix.lower() == ".zip" and file.is_file():
        ending = _ending(Path(only_member(file, key)))
    if ending in DATA_ENDINGS:
        return DATA_ENDINGS[ending]
    if not file.exists() and hub.HUB_ID.fullmatch(path):
        return "dataset"
    if not file.exists():
        raise missing(path, key)
    raise refuse(
        key,
        f"a file that ends in {', '.join(DATA_ENDINGS)} (or also in "
        f"{', '.join(COMPRESSED_ENDINGS)}), or `data.format` beside it (`text` for any plain text);"
        " an archive is unpacked first, another kind of table saved as Parquet or CSV",
        repr(path),
    )


def _ending(file: Path) -> str:
    """The ending of a file's name, without that of its compression."""
    name = file.name.lower()
    is_compressed = file.suffix.lower() in COMPRESSED_ENDINGS
    return Path(name.removesuffix(file.suffix.lower()) if is_compressed else name).suffix


def missing(path: str, key: str) -> ConfigError:
    """The error of a path that does not exist, with the nearest name in its folder."""
    file = Path(path).expanduser()
    if not file.parent.is_dir():
        return refuse(key, "an existing file; its folder does not exist either", repr(path))
    near = nearest(file.name, sorted(item.name for item in file.parent.iterdir()))
    return refuse(key, "an existing file", repr(path), str(file.with_name(near)) if near else "")


def _check_file(file: Path, path: str, key: str) -> None:
    if file.is_dir():
        raise refuse(key, "a file, since `data.format` names a file format", f"the folder {path!r}")
    if not file.exists():
        raise missing(path, key)
    if file.stat().st_size == 0:
        raise refuse(key, "a file with rows", f"{path!r}, which is empty")


def _text(file: Path, key: str) -> str:
    """UTF-8 text with line ends as newlines, without a byte order mark."""
    content = content_of(file, key)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Its positions are those of the text after the mark, which is in the first line.
        line = error.object[: error.start].count(b"\n") + 1
        got = f"{error.object[error.start]:#04x}"
        raise refuse(key, f"{file} line {line}: UTF-8 text", got) from error
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _records(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """CSV records with the line that each starts on; blank lines are skipped."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 1
    for cells in reader:
        if cells:
            yield start, cells
        start = reader.line_num + 1


def _sniff(text: str) -> str:
    """The delimiter that gives the first records the most columns, equally many in each."""

    def score(delimiter: str) -> tuple[int, int]:
        widths = []
        try:
            for _, cells in zip(range(SNIFFED_RECORDS), _records(text, delimiter), strict=False):
                widths.append(len(cells[1]))
        except csv.Error:
            pass
        if not widths or widths[0] < 2:
            return (0, 0)
        return (sum(width == widths[0] for width in widths), widths[0])

    return max(DELIMITERS, key=score)


def _read_csv(file: Path, config: DataConfig, key: str) -> Table:
    text = _text(file, key)
    if config.delimiter is not None and len(config.delimiter) != 1:
        raise refuse("data.delimiter", "one character", repr(config.delimiter))
    delimiter = config.delimiter or _sniff(text)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    numbered = _records(text, delimiter)
    columns: list[str] = []
    records: list[Mapping[str, Any]] = []
    numbers: list[int] = []
    try:
        columns = [name.strip() for name in next(numbered, (1, []))[1]]
        for line, cells in numbered:
            if len(cells) != len(columns):
                rule = f"{len(columns)} columns as in the header (delimiter {delimiter!r})"
                raise refuse(key, f"{file} line {line}: {rule}", str(len(cells)))
            records.append(dict(zip(columns, cells, strict=True)))
            numbers.append(line)
    except csv.Error as error:
        line = (numbers[-1] if numbers else 0) + 1
        raise refuse(key, f"{file}, record after line {line}: CSV", str(error)) from error
    return Table(str(file), "line", tuple(columns), records, numbers)


def _read_json(file: Path, config: DataConfig, key: str) -> Table:
    text = _text(file, key)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return _read_jsonl(file, config, key)
        rule = f"{file} line {error.lineno}: JSON ({error.msg})"
        raise refuse(key, rule, _line_text(text, error)) from error
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        got = f"an object of {', '.join(content)[:80]}" if isinstance(content, dict) else repr(rows)
        raise refuse(key, f'{file}: a list of rows, or {{"data": [rows]}}', got[:100])
    rows = [part for row in rows for part in _questions(row)]
    return _from_objects(str(file), "row", list(enumerate(rows, 1)), key)


def _questions(article: Any) -> list[Any]:
    """The rows of an article of SQuAD's own files, which nest paragraphs and questions."""
    paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
    is_nested = isinstance(paragraphs, list) and all(
        isinstance(p, dict) and isinstance(p.get("qas"), list) for p in paragraphs
    )
    if not paragraphs or not is_nested:
        return [article]
    about = {name: value for name, value in article.items() if name != "paragraphs"}
    return [
        {**about, "context": paragraph.get("context"), **question}
        for paragraph in paragraphs
        for question in paragraph["qas"]
    ]


def _read_jsonl(file: Path, config: DataConfig, key: str) -> Table:
    numbered: list[tuple[int, Any]] = []
    for number, line in enumerate(_text(file, key).split("\n"), 1):
        if not line.strip():
            continue
        try:
            numbered.append((number, json.loads(line)))
        except json.JSONDecodeError as error:
            rule = f"{file} line {number}: a JSON object ({error.msg}, column {error.colno})"
            raise refuse(key, rule, repr(line[:80])) from error
    return _from_objects(str(file), "line", numbered, key)


def _line_text(text: str, error: json.JSONDecodeError) -> str:
    lines = text.splitlines() or [""]
    return repr(lines[min(error.lineno, len(lines)) - 1][:80])


def _from_objects(source: str, unit: str, numbered: list[tuple[int, Any]], key: str) -> Table:
    for number, row in numbered:
        if not isinstance(row, dict):
            raise refuse(key, f"{source} {unit} {number}: an object of columns", repr(row)[:80])
    columns = dict.fromkeys(name for _, row in numbered for name in row)
    rows, numbers = [row for _, row in numbered], [number for number, _ in numbered]
    return Table(source, unit, tuple(columns), rows, numbers)


def _read_parquet(file: Path, config: DataConfig, key: str) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        is_compressed = file.suffix.lower() in COMPRESSED_ENDINGS
        source = pyarrow.BufferReader(content_of(file, key)) if is_compressed else file
        content = pyarrow.parquet.read_table(source)
    except (pyarrow.ArrowException, OSError) as error:
        raise refuse(key, f"{file}: a Parquet file", str(error).splitlines()[0][:120]) from error
    return _from_rows(str(file), content.column_names, content.to_pylist())


_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")


def _read_text(file: Path, config: DataConfig, key: str) -> Table:
    """One row a paragraph, where blank lines separate them; else one row a line."""
    text = _text(file, key)
    whole = text.strip("\n")
    separator = _BLANK_LINES if _BLANK_LINES.search(whole) else re.compile("\n")
    records: list[Mapping[str, Any]] = []
    numbers, start, line = [], 0, 1
    for end, following in [*(gap.span() for gap in separator.finditer(text)), (len(text),) * 2]:
        piece = text[start:end].lstrip("\n")
        if piece.strip():
            records.append({"text": piece.rstrip("\n")})
            numbers.append(line + text.count("\n", start, end - len(piece)))
        line += text.count("\n", start, following)
        start = following
    return Table(str(file), "line", ("text",), records, numbers)


READERS: dict[str, Callable[[Path, DataConfig, str], Table]] = {
    "csv": _read_csv,
    "json": _read_json,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "text": _read_text,
}


def _from_rows(source: str, columns: list[str], rows: list[dict[str, Any]]) -> Table:
    records: list[Mapping[str, Any]] = list(rows)
    return Table(source, "row", tuple(columns), records, list(range(1, len(rows) + 1)))


def _read_builtin(path: str, key: str) -> Table:
    from trial.builtin import DATASETS

    if path not in DATASETS:
        rule = f"a built-in dataset: {', '.join(DATASETS)}"
        raise refuse(key, rule, repr(path), nearest(path, list(DATASETS)))
    rows = [dict(row) for row in DATASETS[path]()]
    return _from_rows(path, list(rows[0]), rows)


def _read_dataset(path: str, config: DataConfig, split: str, key: str) -> Table:
    """A dataset saved by `save_to_disk`, a folder of data files, or one of the hub."""
    folder = Path(path).expanduser()
    if folder.is_dir() and not any(folder.iterdir()):
        raise refuse(key, "a dataset", f"the folder {path!r}, which is empty")
    if not folder.is_dir():
        _check_hub(path, key)
    import datasets

    datasets.disable_progress_bars()
    try:
        if any((folder / name).is_file() for name in _SAVED):
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(str(folder) if folder.is_dir() else path, config.name)
    except Exception as error:  # the library raises a type of its own for each way to fail
        message = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        raise refuse(key, f"{path}: a dataset that can be read", message[:200]) from error
    table = _select_split(loaded, split, path, key)
    return _from_rows(f"{path} [{split}]", table.column_names, table.to_list())


_SAVED = ("dataset_info.json", "dataset_dict.json")


def _check_hub(path: str, key: str) -> None:
    """Raise `ConfigError` for a name that is in no local cache and not on the hub."""
    from huggingface_hub import constants

    # As `datasets.config.HF_DATASETS_CACHE` has it, without the second that its import takes.
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    cached = (prepared / path.replace("/", "___"), hub.repository_cache("dataset", path))
    if any(folder.is_dir() for folder in cached):
        return
    if reason := hub.unavailable_reason("dataset", path):
        near = missing(path, key).problems[0].near
        rule = "an existing file or folder, or a hub dataset (none here, none in the local cache)"
        raise refuse(key, f"{rule}; {reason}", repr(path), near)


def _select_split(loaded: Any, split: str, path: str, key: str) -> Any:
    """The split of a dataset dictionary; a single dataset has no splits and is returned itself."""
    splits = list(loaded) if hasattr(loaded, "keys") else []
    if not splits:
        return loaded
    if split not in splits:
        name = "data.eval_split" if key == "data.eval_split" else "data.split"
        rule = f"a split of {path}: {', '.join(splits)}"
        raise refuse(name, rule, repr(split), nearest(split, splits))
    return loaded[split]
