"""Sweep files for tests: written, loaded, and refused."""

from pathlib import Path

import pytest
import yaml

from sweep.loading import loader
from sweep.spec.spec import SweepSpec
from trial.config.errors import ConfigError

PLAIN = "space: {lora.r: [4, 8]}\nstop: {trials: 4}\n"


RATED = "space:\n  lora: {r: [4, 8]}\n  training.learning_rate: {low: 1e-4, high: 0.1, log: true}\n"


def write(tmp_path: Path, text: str, name: str = "sweep.yaml") -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(path: Path, overrides=()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loader.load(path, overrides)
    return [str(problem).replace(str(path), "FILE", 1) for problem in caught.value.problems]


def spec_of(tmp_path: Path, **content) -> SweepSpec:
    content = {"space": {"lora.r": [4, 8], "training.learning_rate": [1e-4, 1e-3]}, **content}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"stop": {"trials": 5}, **content}))
    return loader.load(path)
