"""Trials small enough for tests: configurations, and controls that record, stop or kill."""

import os
import signal
from pathlib import Path
from typing import Any

from helpers.training.models import make_model, write_rows

from trial.config.trial_config import TrialConfig, parse
from trial.preload import finish_imports
from trial.store.control import NullControl, StopReason
from trial.store.folders import TrialFolder
from trial.store.records import Evaluation, Result
from trial.train import train
from trial.training.process_cache import ProcessCache

DEVICE = os.environ.get("TEST_DEVICE", "cpu")
"""The device that tests train on; `make test-cuda` sets another."""


class Material:
    """A model folder and a file of rows, made once, and the process cache that trials share."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = make_model(root / "model")
        self.rows = write_rows(root / "rows.jsonl")
        self._process_cache = ProcessCache(finish_imports)
        self._count = 0

    def process_cache(self) -> ProcessCache:
        """The warm process cache; a new one when the last is no longer reusable."""
        if not self._process_cache.reusable:
            self._process_cache = ProcessCache(finish_imports)
        return self._process_cache

    def config(self, **sections: Any) -> TrialConfig:
        """A trial of twenty steps, less than a second; sections are merged key by key."""
        content: dict[str, Any] = {
            "model": {"name_or_path": str(self.model)},
            "data": {"path": str(self.rows), "max_length": 48},
            "lora": {"r": 4, "lora_dropout": 0.1},
            "training": {
                "max_steps": 20,
                "eval_steps": 5,
                "logging_steps": 5,
                "learning_rate": 5e-3,
                "per_device_train_batch_size": 8,
                "per_device_eval_batch_size": 4,
            },
            "device": DEVICE,
        }
        for name, value in sections.items():
            merge = isinstance(value, dict) and name in content
            content[name] = {**content[name], **value} if merge else value
        return parse(content)

    def folder(self, config: TrialConfig) -> TrialFolder:
        """A new folder of that trial."""
        self._count += 1
        return TrialFolder.create(self.root / f"trials/{self._count:05d}", config)

    def train(self, config: TrialConfig, control: Any = None) -> tuple[TrialFolder, Result]:
        """Train a new folder in the warm process."""
        folder = self.folder(config)
        result = train(folder, control, self.process_cache())
        if result is None:
            raise AssertionError("the trial was interrupted")
        return folder, result


class Recorder(NullControl):
    """Records what the trial reports; stops it at the `asked`-th call of `stop_reason`."""

    def __init__(self, stop: StopReason | None = None, asked: int = 0) -> None:
        self.stop = stop
        self.at = asked
        self.asked = 0
        self.evaluations: list[Evaluation] = []
        self.starts: list[tuple[str, int]] = []

    def started(self, folder: TrialFolder, device: str, max_steps: int) -> None:
        self.starts.append((device, max_steps))

    def evaluated(self, folder: TrialFolder, evaluation: Evaluation) -> None:
        self.evaluations.append(evaluation)

    def stop_reason(self, folder: TrialFolder) -> StopReason | None:
        self.asked += 1
        return self.stop if self.asked == self.at else None


class Killer(Recorder):
    """Kills its own process with SIGKILL at the `asked`-th call of `stop_reason`."""

    def stop_reason(self, folder: TrialFolder) -> StopReason | None:
        super().stop_reason(folder)
        if self.asked == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return None


def train_and_die(path: str, asked: int, threads: int) -> None:
    """Run in a process of its own: train, and be killed at the `asked`-th call of `stop_reason`."""
    import torch

    torch.set_num_threads(threads)
    train(TrialFolder(path), Killer(asked=asked))


def train_to_end(path: str, threads: int) -> None:
    """Run in a process of its own: train to the end."""
    import torch

    torch.set_num_threads(threads)
    train(TrialFolder(path))
