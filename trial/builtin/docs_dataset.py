"""`builtin:python-docs`: what the functions and classes of Python's standard library do.

Extracted at run time from the docstrings of the installed Python, by parsing the source; no module
is imported. Another patch release of Python may word some differently: the data hash shows it.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from trial.builtin.row_cache import cached_rows

_NAMES = """
abc argparse ast asyncio.base_events asyncio.events asyncio.futures asyncio.locks
asyncio.protocols asyncio.queues asyncio.runners asyncio.streams asyncio.tasks asyncio.transports
base64 bdb bz2 calendar cmd code codecs collections concurrent.futures._base configparser
contextlib copy csv dataclasses difflib dis doctest email.charset email.generator email.header
email.message email.policy email.utils enum filecmp fileinput fnmatch fractions ftplib functools
glob gzip hashlib heapq hmac html.parser http.client http.cookiejar http.cookies http.server
imaplib inspect ipaddress json.decoder json.encoder linecache logging logging.config
logging.handlers lzma mailbox mimetypes multiprocessing.connection multiprocessing.context
multiprocessing.managers multiprocessing.pool multiprocessing.process
multiprocessing.shared_memory numbers operator optparse os pdb pickle pickletools pkgutil platform
plistlib poplib pprint pstats pyclbr pydoc queue random sched secrets selectors shelve shlex
shutil smtplib socket socketserver ssl statistics string subprocess symtable sysconfig tarfile
tempfile textwrap threading timeit tokenize trace traceback tracemalloc turtle types typing
unittest.case unittest.loader unittest.mock unittest.result unittest.suite urllib.parse
urllib.request urllib.robotparser uuid warnings wave weakref webbrowser wsgiref.handlers
wsgiref.headers wsgiref.util xml.dom.minidom xml.etree.ElementTree xml.sax.handler
xml.sax.xmlreader xmlrpc.client xmlrpc.server zipapp zipfile zipimport zoneinfo
"""
MODULES = tuple(_NAMES.split())
"""Modules that the rows ask about. The tiny Llama was trained on none of them."""

MIN_CHARACTERS, MAX_CHARACTERS = 20, 160
"""Shortest and longest answer; a longer paragraph is cut after the last sentence that fits."""
MAX_ARGUMENTS = 5
"""Most arguments of a function that its question names."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

_CLASS_QUESTIONS = ("What is `{name}`?", "What is the class `{name}` for?")
_FUNCTION_QUESTIONS = (
    "What does `{name}` do?",
    "What is `{name}` for?",
    "Describe `{name}`.",
)


@cache
def read() -> list[Mapping[str, str]]:
    """All rows (`question`, `answer`), in the order of the modules and of their source."""
    files = {name: file for name in MODULES if (file := source_file(name)) is not None}
    return cached_rows("python-docs", files.values(), lambda: _extract_rows(files))


def _extract_rows(files: Mapping[str, Path]) -> list[Mapping[str, str]]:
    rows: list[Mapping[str, str]] = []
    answers: set[str] = set()
    for module, file in files.items():
        for name, node in _definitions(ast.parse(file.read_bytes()), module):
            answer = summary(ast.get_docstring(node) or "")
            # A docstring under two names would be in both training and eval set.
            if answer and answer not in answers:
                answers.add(answer)
                rows.append({"question": question(name, node), "answer": answer})
    return rows


def source_file(module: str) -> Path | None:
    """Where the installed Python keeps a module's source; None where it has none."""
    stem = Path(sysconfig.get_path("stdlib"), *module.split("."))
    candidates = (stem.with_suffix(".py"), stem / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def _definitions(tree: ast.Module, module: str) -> Iterator[tuple[str, Definition]]:
    """Public functions, classes and methods of a module with their full names."""
    package = ".".join(part for part in module.split(".") if not part.startswith("_"))
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield f"{package}.{node.name}", node
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, Definition) and not inner.name.startswith("_"):
                    yield f"{package}.{node.name}.{inner.name}", inner


def question(name: str, node: Definition) -> str:
    """The question about a definition, in a phrasing chosen by the hash of its name."""
    is_class = isinstance(node, ast.ClassDef)
    phrasings = _CLASS_QUESTIONS if is_class else _FUNCTION_QUESTIONS
    choice = hashlib.sha256(name.encode()).digest()[0] % len(phrasings)
    signature = name if isinstance(node, ast.ClassDef) else f"{name}({_arguments(node)})"
    return phrasings[choice].format(name=signature)


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    names = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
    shown = [name for name in names if name not in ("self", "cls")]
    more = ["..."] if len(shown) > MAX_ARGUMENTS else []
    return ", ".join(shown[:MAX_ARGUMENTS] + more)


def summary(docstring: str) -> str:
    """The first paragraph of a docstring as one line; empty where it is too short."""
    text = " ".join(docstring.split("\n\n")[0].split())
    if len(text) > MAX_CHARACTERS:
        text = text[: text.rfind(". ", 0, MAX_CHARACTERS) + 1]
    return text if len(text) >= MIN_CHARACTERS and not text.startswith((">>>", "@")) else ""
