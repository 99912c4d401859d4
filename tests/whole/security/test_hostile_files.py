"""Whatever a sweep file holds, it is read or refused within bounds of time and memory."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest
from helpers.fuzz import TIMES, examples
from helpers.paths import ROOT, TESTS
from helpers.sweeps.sweep_files import PLAIN

from trial.config.yaml_file import MAX_BYTES

BIG = MAX_BYTES - 4096
"""Characters that fill a file and leave room for a few keys."""
SPACE = "space: {lora.r: [2, 4]}\nsampler: grid\n"


def repeated(piece: str, size: int = BIG) -> str:
    return piece * (size // len(piece))


def lines(line: str, most: int = BIG) -> str:
    """Numbered lines of so many characters."""
    found, size, number = [], 0, 0
    while size < most:
        found.append(line.format(n=number))
        size, number = size + len(found[-1]) + 1, number + 1
    return "\n".join(found) + "\n"


def derived(expression: str) -> str:
    value = json.dumps(expression)
    return f"space:\n  lora.r: [2, 4]\n  lora.lora_alpha: {{expression: {value}}}\nsampler: grid\n"


def aliases(levels: int, times: int, leaf: str) -> str:
    found = [f"a0: &a0 [{leaf}, {leaf}]"]
    for level in range(1, levels):
        found.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * times)}]")
    return "\n".join(found) + "\n"


LONG = [
    "a", "a:", "a.", "://", "a://", "a://b:", "a:b@", ":@", "?a", "&token", "?key=", "-", "eyJ-",
    "eyJaaaaaaaaaaaa.", "eyJaaaaaaaaaaaa.eyJaaaaaaaaaaaaa", "-----BEGIN ", "hf_", "sk-", "_token",
    "api_key_", "9", "0x", "1_", "1e", ".", "é", "'", "~", "a b ", "\\n", "[", "{", "%s", "${", "!",
]  # fmt: skip
PLACES = {
    "comment": "# {text}\n" + SPACE,
    "question": "question: {quoted}\n" + SPACE,
    "name": "name: {quoted}\n" + SPACE,
    "key": "{quoted}: 1\n" + SPACE,
    "space-key": "space:\n  lora.r: [2, 4]\n  {quoted}: [1, 2]\n",
    "rank-pattern-key": "base: {lora: {rank_pattern: {{quoted}: 2}}}\n" + SPACE,
    "choice": "space: {lora.r: [2, 4], data.path: [{quoted}, b]}\nsampler: grid\n",
    "sampler": "sampler: {quoted}\nspace: {lora.r: [2]}\n",
    "model": "base: {model: {name_or_path: {quoted}}}\n" + SPACE,
    "training": "base: {training: {{quoted}: 1}}\n" + SPACE,
    "strategy": "base: {training: {eval_strategy: {quoted}}}\n" + SPACE,
    "number": "base: {training: {max_steps: {quoted}}}\n" + SPACE,
    "objective": "base: {objective: {quoted}}\n" + SPACE,
    "storage": "enqueue: [{lora.r: {quoted}}]\n" + SPACE,
    "condition": "space: {lora.r: [2, 4], lora.bias: {value: none, when: {{quoted}: 1}}}\n",
}


def filled(form: str, text: str, quoted: str) -> str:
    return form.replace("{text}", text).replace("{quoted}", quoted)


def long_texts() -> dict[str, str]:
    """Each piece in a comment, and in one other place; every place with some pieces."""
    found = {}
    others = [place for place in PLACES if place != "comment"]
    for number, piece in enumerate(LONG):
        places = others if TIMES > 1 else [others[number % len(others)]]
        for place in ("comment", *places):
            quoted = json.dumps(repeated(piece), ensure_ascii=False)
            if len(quoted) > BIG + 100:
                quoted = json.dumps(repeated(piece, BIG // 2), ensure_ascii=False)
            text = filled(PLACES[place], repeated(piece), quoted)
            found[f"{place}-{number}"] = text
    return found


MANY = {
    "keys": "key{n}: 1",
    "space": "  key{n}: [1, 2]",
    "training": "    key{n}: 1",
    "lora": "    key{n}: 1",
    "same": "a: 1",
    "choices": "    - {n}",
    "texts": "    - x{n}",
    "enqueued": "  - {{lora.r: {n}}}",
    "enqueued-unknown": "  - {{key{n}: 1}}",
    "variables": "  v{n}: [1, 2]",
    "derived": "  v{n}: {{expression: lora.r + {n}}}",
    "chained": "  w1{n}: {{expression: w{n} + 1}}",
    "conditions": "    - {{value: {n}, when: {{lora.bias: x{n}}}}}",
    "branches": "    - {{value: {n}, when: {{lora.r: 2}}}}",
    "allowed": "      - {n}",
    "objectives": "  - {{metric: m{n}, direction: minimize}}",
    "warm-start": "  - s{n}",
    "rank-pattern": "      k{n}: 1",
    "merges": "- <<: *a",
}
HEADS = {
    "space": "sampler: grid\nspace:\n",
    "training": SPACE + "base:\n  training:\n",
    "lora": SPACE + "base:\n  lora:\n",
    "choices": "space:\n  lora.r:\n",
    "texts": "space:\n  data.path:\n",
    "enqueued": SPACE + "enqueue:\n",
    "enqueued-unknown": SPACE + "enqueue:\n",
    "variables": SPACE + "variables:\n",
    "derived": SPACE + "variables:\n",
    "chained": SPACE + "variables:\n",
    "conditions": "space:\n  lora.bias: [none, all]\n  lora.r:\n",
    "branches": "space:\n  lora.lora_alpha:\n",
    "allowed": "space:\n  lora.r:\n  - value: 4\n    when:\n      lora.bias:\n",
    "objectives": SPACE + "objectives:\n",
    "warm-start": SPACE + "warm_start:\n",
    "rank-pattern": SPACE + "base:\n  lora:\n    rank_pattern:\n",
    "merges": "x: &a {b: 1, c: 2}\ny:\n",
}


def many_values() -> dict[str, str]:
    """Many entries of each kind: as many as fit, and as many as are allowed."""
    found = {}
    for name, line in MANY.items():
        for size in (BIG, 8000, 2000):
            found[f"many-{name}-{size}"] = HEADS.get(name, "") + lines(line, size)
    return found


def nested() -> dict[str, str]:
    """Collections in collections, by brackets, by indentation, by aliases."""
    deep = "\n".join(f"{' ' * depth}a:" for depth in range(480))
    key = "k" * 3000
    return {
        "nested-lists": repeated("["),
        "nested-maps": repeated("{a: "),
        "nested-whole": "a: " + "[" * (BIG // 2) + "]" * (BIG // 2),
        "nested-keys": "? " * (BIG // 2),
        "nested-blocks": deep,
        "nested-dashes": repeated("- "),
        "nested-quotes": repeated("\"'"),
        "aliases-wide": aliases(40, 9, "x"),
        "aliases-doubled": aliases(60, 2, "x"),
        "aliases-texts": f"t: &t {'x' * (BIG // 2)}\nu: [{', '.join(['*t'] * 15000)}]\n" + SPACE,
        "aliases-choices": f"question: &t {'x' * (BIG // 2)}\nspace:\n  data.path: ["
        + ", ".join(["*t"] * 15000)
        + "]\n",
        "aliases-keys": "l: &l [" + "1," * 9000 + "]\n"
        + "".join(f"{' ' * depth}{key}:\n" for depth in range(30))
        + f"{' ' * 31}x: *l\n",
        "chain": SPACE + "variables:\n  v0: [1, 2]\n"
        + "".join(f"  v{n}: {{expression: v{n - 1} + 1}}\n" for n in range(1, 200)),
        "anchors": lines("- &a{n} x"),
        "tags": lines("- !t{n} x"),
        "merges-chained": "x0: &x0 {a: 1}\n" + lines("x{n}: &x{n} {{<<: *x0, b{n}: 1}}"),
        "documents": repeated("---\n"),
        "directives": repeated("%TAG ! tag:x,2000:\n"),
        "folded": "question: >\n" + repeated("  a\n\n"),
        "spaces": "question: a" + " " * BIG + "\n" + SPACE,
        "numbers": "space:\n  lora.r: [" + repeated("9", BIG // 2) + "]\n",
        "powers": "space:\n  lora.r: [" + repeated("1e999999999, ") + "]\n",
    }  # fmt: skip


EXPRESSIONS = [
    "'%0999999999d' % 5", "'%999999999s' % 'a'", "'%*d' % 999999999", "'a' % 1", "b'%09999d' % 5",
    "'a' * 999999999", "999999999 * 'a'", "2 ** 999999999", "9 ** 9 ** 9 ** 9", "2.0 ** 99999",
    "(-9) ** 999999999", "10 ** -999999999", "1 << 999999999999", "1 << 63", "-1 << 99999",
    "abs(1 << 999)", "int('9' + '9')", "int('1' + '0')", "round(1e308, 999999999)",
    "round(3, -999999999)", "round(7, -99999999)", "float('1e999')", "int(1e308)",
    "int(1e308) ** 9",
    "max('a', 'b')", "min(1)", "max('abc')", "max()", "'a' + 'b'", "~99999", "5 & 3 | 8 ^ 1",
    "9223372036854775807 * 9223372036854775807 * 9223372036854775807 * 9223372036854775807",
    "ceil(1e308)", "floor(-1e308) * ceil(1e308)", "exp(700) * exp(700)", "1e308 ** 2", "1j ** 9",
    "(1).__class__", "[1] * 9", "(1, 2) * 9", "{1: 2}", "f'{1:9999}'", "lambda: 1",
    "[x for x in y]",
    "'a' in 'b' * 3", "1 if 2 else 3", "...", "b'a' * 999999999", "max(1, *[2])", "int(x=1)",
    "+" * 400 + "1", "(" * 240 + "1" + ")" * 240, "not " * 120 + "1", "1" + "+1" * 240,
    "1" + "*9" * 240, "1" + "**1" * 160, "0 or " * 120 + "1", "1 < 2" + " < 3" * 100,
    "1 if 1 else " * 40 + "1", "a." * 240 + "b", "abs(" * 98 + "1" + ")" * 98, "9" * 490,
    "'" + "a" * 490 + "' + '" + "'", "a" * 100_000, "1" + "+1" * 50_000, "(" * 100_000,
    "-" * 99_999,
]  # fmt: skip


def expressions() -> dict[str, str]:
    return {f"expression-{number}": derived(text) for number, text in enumerate(EXPRESSIONS)}


ATOMS = ["1", "9", "lora.r", "'a'", "'%09999999d'", "1e308", "9223372036854775807", "True", "0.5"]
JOINS = ["+", "-", "*", "/", "//", "%", "**", "<<", ">>", "&", "|", "^", "<", "==", "and", "in"]
CALLS = ["abs", "int", "float", "max", "round", "exp", "ceil", "sqrt", "~", "-", "not "]


def random_expression(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.2:
        return rng.choice(ATOMS)
    if rng.random() < 0.25:
        inside = [random_expression(rng, depth - 1) for _ in range(rng.randint(1, 2))]
        return f"{rng.choice(CALLS)}({', '.join(inside)})"
    sides = [random_expression(rng, depth - 1) for _ in range(2)]
    return f"({sides[0]} {rng.choice(JOINS)} {sides[1]})"


def random_expressions() -> dict[str, str]:
    rng = random.Random(0)
    texts = [random_expression(rng, rng.randint(1, 5)) for _ in range(examples(150))]
    return {f"random-{number}": derived(text) for number, text in enumerate(texts)}


def random_fillings() -> dict[str, str]:
    """A piece of a few characters, repeated until the file is full, at a random place."""
    rng = random.Random(1)
    found = {}
    for number in range(examples(20)):
        pieces = "".join(rng.choice(LONG) for _ in range(rng.randint(1, 4)))
        text = rng.choice(["", "a", "x: "]) + repeated(pieces, BIG // 2)
        place = rng.choice(list(PLACES))
        quoted = rng.choice([json.dumps(text, ensure_ascii=False), text])[: BIG + 100]
        found[f"filled-{place}-{number}"] = filled(PLACES[place], text, quoted)
    return found


KINDS = [long_texts, many_values, nested, expressions, random_expressions, random_fillings]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_hostile_file_is_read_or_refused_within_bounds(kind, tmp_path):
    files = []
    (tmp_path / "plain.yaml").write_text(PLAIN)
    for name, text in kind().items():
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_bytes(text.encode("utf-8"))
    done = subprocess.run(
        [sys.executable, TESTS / "helpers/sweeps/bounded_load.py", tmp_path / "plain.yaml", *files],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (rows[-1:], done.returncode, done.stderr[-2000:])
    assert len(rows) == 2 * len(files)
