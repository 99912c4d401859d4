"""Every figure of speed beside its peers, in one run: `make bench`, `make bench-quick`.

python tests/bench/bench.py [--gpu] [--quick] [--only a,d] [--rounds N] [--scratch FOLDER]
    [--page FILE] [--rewrite FILE.json]

Peers live in a virtual environment of their own (build/peers), made on first use from
peers/requirements-peers.txt; BENCH_PEERS_PYTHON names a Python that has them already. Arms take
turns; ratios are taken within a round, medians over rounds.
Writes the page and, beside it, the measured values as JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from arms import Measured, gpu_name, machine, measure  # noqa: E402
from figures import cpu, gpu  # noqa: E402
from page import page  # noqa: E402
from peers import environment  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="the figures of a CUDA GPU")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller work")
    parser.add_argument("--only", help="letters of figures: a,d")
    parser.add_argument("--rounds", type=int, help="rounds of every figure")
    parser.add_argument("--scratch", type=Path, help="keep what the arms write here")
    parser.add_argument("--page", type=Path, help="where the page goes")
    parser.add_argument("--rewrite", type=Path, help="write a page anew from its values")
    asked = parser.parse_args()
    if asked.rewrite:
        return rewrite(asked.rewrite)
    environment.install(say)
    scratch = asked.scratch or Path(tempfile.mkdtemp(prefix="bench-"))
    scratch.mkdir(parents=True, exist_ok=True)
    wanted = asked.only.split(",") if asked.only else None
    made = (gpu if asked.gpu else cpu).figures(asked.quick, scratch, asked.rounds)
    chosen = [figure for figure in made if not wanted or figure.key in wanted]
    began, version = time.time(), commit()
    measured: list[Measured] = []
    folder = scratch if asked.quick or wanted else REPOSITORY / "docs"
    target = asked.page or folder / ("bench-gpu.md" if asked.gpu else "bench.md")
    for figure in chosen:
        for found in measure(figure, scratch, say):
            # After every round: a run that is cut off has told what it has.
            write(target, [*measured, found], asked, began, version)
        measured.append(found)
    print(target.read_text())
    say(f"written: {target}")
    if asked.scratch is None and target.parent != scratch:
        shutil.rmtree(scratch)
    return 0


def write(
    target: Path,
    measured: list[Measured],
    asked: argparse.Namespace,
    began: float,
    version: str,
) -> None:
    """The page and the values behind it."""
    about = {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime(began)) + " UTC",
        "minutes": round((time.time() - began) / 60, 1),
        "quick": asked.quick,
        "command": "make bench-gpu" if asked.gpu else "make bench",
        "machine": {**machine(), **({"gpu": gpu_name()} if asked.gpu else {})},
        "commit": version,
        "peers": environment.versions(),
        "apart": environment.python() != Path(sys.executable),
    }
    target.write_text(page(measured, about), encoding="utf-8")
    values = about | {"figures": {found.figure.key: found.record() for found in measured}}
    target.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def rewrite(source: Path) -> int:
    """Write the page of a finished run anew from its JSON file; nothing is measured."""
    values = json.loads(source.read_text(encoding="utf-8"))
    module = gpu if "gpu" in values["machine"] else cpu
    made = module.figures(values["quick"], Path(tempfile.gettempdir()), None)
    kept = values["figures"]
    measured = [Measured(item, **kept[item.key]) for item in made if item.key in kept]
    source.with_suffix(".md").write_text(page(measured, values), encoding="utf-8")
    return 0


def commit() -> str:
    """What is measured, as far as git knows; a page that is written changes the tree."""
    words = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    return done.stdout.strip()


def say(text: str) -> None:
    """Progress, apart from the page."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
