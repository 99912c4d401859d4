"""Keep the learning curves of a finished grid sweep as the one file that the replays read.

python -m sweep run tests/bench/curves/tiny_llama.yaml --runs runs
python tests/bench/replay/record.py runs/tiny_llama tests/bench/curves/tiny_llama.csv
python tests/bench/replay/record.py --losses runs/tiny_llama_joint \
    tests/bench/curves/tiny_llama_joint.csv
python tests/bench/replay/record.py --share runs/tiny_llama_packed runs/tiny_llama
python tests/bench/replay/record.py --start runs/tiny_llama
python tests/bench/replay/record.py --imports

A row a trial: its parameters, the seconds it spent by phase, its eval loss at every step. With
`--losses` without the seconds: those of a packed or a busy worker are no trial's own.

`--share` says what a trial takes of a device in the same grid with `resources.pack`, over what it
takes alone; `--start` what a worker's first trial takes more than a later one, until it trains;
`--imports` what a fresh process takes to import what a trial needs, the median of five.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from sweep.driver.simulated_executor import PHASES
from trial.store.folders import StudyFolder


def main() -> int:
    if sys.argv[1] == "--imports":
        print(f"imports {median(imports() for _ in range(5)):.2f} seconds")
        return 0
    if sys.argv[1] == "--share":
        packed, alone = (taken(StudyFolder(Path(path))) for path in sys.argv[2:])
        print(f"share {packed / alone:.3f}: {packed:.2f} and {alone:.2f} seconds a trial")
        return 0
    if sys.argv[1] == "--start":
        print(f"start {start(StudyFolder(Path(sys.argv[2]))):.2f} seconds")
        return 0
    study, target = StudyFolder(Path(sys.argv[-2])), Path(sys.argv[-1])
    phases = () if sys.argv[1] == "--losses" else PHASES
    with open(target, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        for row in rows(study, phases):
            writer.writerow(row)
    print(f"{target}: {target.stat().st_size / 1e3:.0f} kB")
    return 0


def taken(study: StudyFolder) -> float:
    """Seconds of a device that a trial takes, start-up aside: the median over the trials."""
    results = [folder.read_result() for _, folder in study.all_trials()]
    complete = [result.seconds for result in results if result and result.state == "complete"]
    return median(sum(seconds.model_dump().values()) - seconds.startup for seconds in complete)


def imports() -> float:
    """Seconds from the start of a process until all is imported that a trial on a CPU needs."""
    begun = time.monotonic()
    words = [sys.executable, "-c", "from trial.preload import preload; preload('cpu')"]
    subprocess.run(words, check=True, capture_output=True)
    return time.monotonic() - begun


def start(study: StudyFolder) -> float:
    """Seconds that a worker's first trial takes more than a later one before it trains."""
    results = [folder.read_result() for _, folder in study.all_trials()]
    spent = [result.seconds.startup + result.seconds.load for result in results if result]
    return spent[0] - median(spent[1:])


def rows(study: StudyFolder, phases: Sequence[str] = PHASES) -> list[list[object]]:
    """The table, its heading first."""
    found: list[list[object]] = []
    for number, folder in study.all_trials():
        result, evaluations = folder.read_result(), folder.read_evaluations()
        origin = folder.read_config().origin
        if result is None or result.state != "complete" or origin is None:
            raise ValueError(f"trial {number} is not complete: the grid has a hole")
        steps = [row.step for row in evaluations]
        if not found:
            found.append([*origin.params, *phases, *steps])
        elif found[0][len(origin.params) + len(phases) :] != steps:
            raise ValueError(f"trial {number} was evaluated at other steps than the first")
        seconds = [round(getattr(result.seconds, phase), 4) for phase in phases]
        losses = [round(row.eval_loss, 5) for row in evaluations]
        found.append([*origin.params.values(), *seconds, *losses])
    return found


if __name__ == "__main__":
    sys.exit(main())
