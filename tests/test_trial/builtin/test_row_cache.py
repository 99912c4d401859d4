"""Rows are extracted once, and also where they cannot be kept."""

from typing import Any

from trial.builtin.row_cache import cached_rows


def test_rows_are_extracted_once_from_the_same_sources(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source, calls = tmp_path / "module.py", []
    source.write_text("x = 1")

    def extract() -> list[Any]:
        calls.append(source.read_text())
        return [{"question": "x?", "answer": calls[-1]}]

    first = cached_rows("rows", [source], extract)
    assert first == [{"question": "x?", "answer": "x = 1"}]
    assert cached_rows("rows", [source], extract) == first
    source.write_text("x = 22")
    assert cached_rows("rows", [source], extract)[0]["answer"] == "x = 22"
    for broken in (tmp_path / "cache").rglob("*.json"):
        broken.write_text("[{")
    assert cached_rows("rows", [source], extract)[0]["answer"] == "x = 22"
    assert calls == ["x = 1", "x = 22", "x = 22"]


def test_rows_are_returned_where_the_cache_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cached_rows("rows", [], lambda: [{"question": "x?", "answer": "1"}])
