"""The content of a file, decompressed as its ending says. Torch-free."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from trial.config.errors import ConfigError, Problem

ZIP = ".zip"
_FAILURES = (
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError),
    *(zlib.error, lzma.LZMAError, zipfile.BadZipFile),
)
"""What a damaged file raises, one with a password, or a compression that Python does not know."""


def content_of(file: Path, key: str) -> bytes:
    """The content of a file; `key` is the one that errors name.

    Raises:
        ConfigError: it cannot be read or decompressed, or is an archive of several files.
    """
    ending = file.suffix.lower()
    member = only_member(file, key) if ending == ZIP else ""
    try:
        if member:
            with zipfile.ZipFile(file) as archive:
                return archive.read(member)
        return _DECOMPRESS.get(ending, bytes)(file.read_bytes())
    except _FAILURES as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError([Problem(key, f"{file}: a readable file", reason[:120])]) from error


def only_member(file: Path, key: str) -> str:
    """The name of the only file in a ZIP archive; what macOS adds to archives does not count.

    Raises:
        ConfigError: there is none or there are several, or it is no archive.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except _FAILURES as error:
        raise ConfigError([Problem(key, f"{file}: a ZIP archive", str(error)[:120])]) from error
    names = [name for name in names if not name.startswith("__MACOSX/")]
    if len(names) != 1:
        rule = f"{file}: an archive of one file; unpack it and name the file to read"
        raise ConfigError([Problem(key, rule, f"{len(names)}: {', '.join(names)[:100]}")])
    return names[0]


def _unzstd(content: bytes) -> bytes:
    import pyarrow

    with pyarrow.input_stream(pyarrow.py_buffer(content), compression="zstd") as stream:
        whole: bytes = stream.read()
    return whole


_DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": _unzstd,
}
