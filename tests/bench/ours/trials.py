"""Whole trials from their folders, in one of our ways; the folders are prepared beforehand.

python tests/bench/ours/trials.py process|solo|packed HOME... [--slots K] [--steps]

Each HOME has folders under `trials/`. `process` is `python -m trial` once for each, `solo` trains
one after the other in this process, `packed` as one job of K slots (K = 1: the hot job). `--steps`
trains the first folder of each home beforehand, unmeasured, and says what an optimizer step costs:
seconds of all trials in their steps, by the trials' own clocks, over the number of steps. `--slots
1,0` packs the first home in one slot and the second in as many as pay, over one base model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY))


def in_processes(folders: list[Path]) -> None:
    """A fresh process for each."""
    for folder in folders:
        command = [sys.executable, "-m", "trial", str(folder)]
        subprocess.run(command, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)


class Here:
    """Trains in this process, over one process cache."""

    def __init__(self, slots: int | None, device: str) -> None:
        import torch

        from trial.preload import finish_imports, preload
        from trial.training.process_cache import ProcessCache

        preload(device)  # As every worker of a sweep does.
        torch.set_num_threads(1)
        self.slots = slots
        self.process_cache = ProcessCache(finish_imports)
        self.slots_taken = 0
        """Slots of the last job; 0 if it did not say."""

    def train(self, folders: list[Path]) -> None:
        """Every folder to its end.

        Raises:
            RuntimeError: one did not complete.
        """
        from trial.store.folders import TrialFolder

        trials = [TrialFolder(folder) for folder in folders]
        if self.slots is None:
            results = [self._solo(trial) for trial in trials]
        else:
            from trial.packed.job import train_packed

            results = train_packed(trials, slots=self.slots, process_cache=self.process_cache)
            self.slots_taken = int(getattr(trials[0].read_attempts()[-1], "slots", 0))
        for trial, result in zip(trials, results, strict=True):
            if result is None or result.state != "complete":
                raise RuntimeError(f"{trial.path}: {result}")

    def _solo(self, trial: Any) -> Any:
        from trial.store.log_capture import capture
        from trial.train import train

        with capture(trial):
            return train(trial, None, self.process_cache)


def step_seconds(folders: list[Path]) -> float:
    """Seconds in optimizer steps over the number of steps, of all trials together."""
    from trial.store.folders import TrialFolder

    results = [result for path in folders if (result := TrialFolder(path).read_result())]
    spent = sum(result.seconds.first_step + result.seconds.train for result in results)
    return spent / sum(result.steps for result in results)


def content_of(folder: Path) -> dict[str, Any]:
    """A trial as its file has it."""
    return json.loads((folder / "config.json").read_text())


def cell(folder: Path) -> str:
    """Batch and length of a trial: `2x128`."""
    content = content_of(folder)
    batch = content["training"]["per_device_train_batch_size"]
    return f"{batch}x{content['data']['max_length']}"


def train_homes(how: str, homes: list[Path], slots: list[int], steps: bool) -> dict[str, float]:
    """Train everything; what an optimizer step costs in each home."""
    measured: dict[str, float] = {}
    here = None
    if how != "process":
        first = next((homes[0] / "trials").iterdir())
        here = Here(slots[0] if how == "packed" else None, content_of(first)["device"])
    for number, home in enumerate(homes):
        folders = sorted((home / "trials").iterdir())
        name = cell(folders[0])
        if here is not None and len(slots) > 1:
            here.slots = slots[number]
            name = f"{name}_K={here.slots or 'auto'}"
        if here is None:
            in_processes(folders)
            continue
        if steps:
            here.train(folders[:1])
            folders = folders[1:]
        began = time.perf_counter()
        here.train(folders)
        if steps:
            measured[f"step_seconds_{name}"] = step_seconds(folders)
            wall = time.perf_counter() - began
            measured[f"wall_seconds_{name}"] = wall
            measured[f"trials_per_hour_{name}"] = 3600 * len(folders) / wall
        if here.slots is not None:
            measured[f"slots_{name}"] = here.slots_taken
    return measured


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("how", choices=["process", "solo", "packed"])
    parser.add_argument("homes", nargs="+", type=Path)
    parser.add_argument("--slots", default="1")
    parser.add_argument("--steps", action="store_true")
    asked = parser.parse_args()
    began = time.perf_counter()
    try:
        slots = [int(number) for number in asked.slots.split(",")]
        measured = train_homes(asked.how, asked.homes, slots, asked.steps)
    except ImportError as error:
        if not str(error.name).startswith("trial.packed"):
            raise
        print(json.dumps({"not_measured": f"there is no packed engine yet ({error})"}))
        return
    print(json.dumps(measured | {"seconds_inside": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
