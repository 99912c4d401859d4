"""An executor under test, driven by hand in the place of the driver."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

from sweep.driver.executor import Event, Finished, Job, TrialRef
from sweep.ray_backend.executor import RayExecutor
from trial.config.sections import LoraSection
from trial.config.trial_config import TrialConfig
from trial.store.folders import TrialFolder


class ExecutorBench:
    """An executor under test, and the folders of its trials."""

    def __init__(self, executor: RayExecutor, root: Any) -> None:
        self.executor = executor
        self.root = root
        self.numbers = itertools.count()
        self.seen: list[Event] = []

    def submit(self, script: int) -> int:
        number = next(self.numbers)
        folder = TrialFolder.create(
            self.root / f"{number:05d}", TrialConfig(lora=LoraSection(r=script))
        )
        self.executor.submit(Job((TrialRef(number, folder.path),)))
        return number

    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 90
        while not done():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited in vain after {self.seen}")
            self.seen += self.executor.events(0.2)

    def of(self, kind: type, *numbers: int) -> list[Any]:
        return [
            e for e in self.seen if isinstance(e, kind) and (e.number in numbers or not numbers)
        ]

    def placements(self, number: int, ranks: int = 1) -> list[dict[str, Any]]:
        files = [self.root / f"{number:05d}" / f"placement-{rank}.json" for rank in range(ranks)]
        self.until(lambda: all(file.exists() for file in files))
        return [json.loads(file.read_text()) for file in files]

    def prune(self, number: int) -> None:
        self.executor.stop(number, "prune")
        self.until(lambda: bool(self.of(Finished, number)))
