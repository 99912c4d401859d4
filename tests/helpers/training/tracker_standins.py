"""Strict stand-ins for wandb, mlflow and trackio, which the test environment does not have.

They hold what transformers' own callbacks and ours call, refuse what the real packages refuse (a
second run while one is open, a log without a run), and record every run. They say nothing about the
real packages' other behaviour.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any


@dataclass
class Run:
    """One recorded run."""

    name: str
    group: str | None
    id: str | None = None
    project: str = ""
    finished: bool = False
    status: str = ""
    logs: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class Settings(dict):
    """A run's configuration, with wandb's and trackio's `update`."""

    def update(self, other: Any, allow_val_change: bool = False) -> None:
        if not allow_val_change:
            raise ValueError("a value would change")
        super().update(other)


class Standins:
    """The three modules over one list of runs each."""

    def __init__(self) -> None:
        self.wandb: list[Run] = []
        self.mlflow: list[Run] = []
        self.trackio: list[Run] = []

    def install(self, monkeypatch: Any) -> None:
        """Put the modules where `import` finds them."""
        for name, module in {**self._wandb(), **self._mlflow(), **self._trackio()}.items():
            module.__spec__ = ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, module)

    def _wandb(self) -> dict[str, ModuleType]:
        module, runs = ModuleType("wandb"), self.wandb
        module.run = None
        module.summary = {}

        def init(*, project: str, name: str, group: str, id: str, resume: str) -> None:
            if module.run is not None:
                raise RuntimeError("a run is open")
            if resume != "allow":
                raise ValueError(resume)
            known = [run for run in runs if run.id == id]
            run = known[0] if known else Run(name, group, id, project)
            if not known:
                runs.append(run)
            run.finished = False
            module.run = SimpleNamespace(_label=lambda code: None, summary={}, id=id, name=name)
            module.current, module.config = run, Settings(run.settings)

        def log(numbers: dict[str, Any]) -> None:
            if module.run is None:
                raise RuntimeError("You must call wandb.init() before wandb.log()")
            module.current.logs.append(numbers)

        def finish(exit_code: int = 0) -> None:
            if module.run is None:
                raise RuntimeError("no run is open")
            module.current.finished, module.run = True, None
            module.current.settings = dict(module.config)
            module.current.status = "failed" if exit_code else "finished"

        module.init, module.log, module.finish = init, log, finish
        module.define_metric = lambda *_, **__: None
        module.termwarn = lambda *_, **__: None
        parts = {name: ModuleType(name) for name in ("wandb.sdk", "wandb.sdk.lib")}
        errors = ModuleType("wandb.sdk.lib.config_util")
        errors.ConfigError = type("ConfigError", (Exception,), {})
        return {"wandb": module, **parts, "wandb.sdk.lib.config_util": errors}

    def _mlflow(self) -> dict[str, ModuleType]:
        module, runs = ModuleType("mlflow"), self.mlflow
        module.__version__ = "3.1.0"
        module.utils = SimpleNamespace(
            validation=SimpleNamespace(MAX_PARAM_VAL_LENGTH=250, MAX_PARAMS_TAGS_PER_BATCH=100)
        )
        module.active, module.experiment = None, None

        def start_run(run_id: str | None = None, run_name: str = "", tags: Any = None) -> Any:
            if module.active is not None:
                raise RuntimeError("Run is already active")
            known = [run for run in runs if run_id is not None and run.id == run_id]
            run = known[0] if known else Run(run_name, module.experiment, f"run{len(runs)}")
            if not known:
                runs.append(run)
            run.finished, run.tags, module.active = False, dict(tags or {}), run
            return active_run()

        def active_run() -> Any:
            run = module.active
            return None if run is None else SimpleNamespace(info=SimpleNamespace(run_id=run.id))

        def end_run(status: str = "FINISHED") -> None:
            module.active.finished, module.active.status = True, status
            module.active = None

        def log_params(values: dict[str, Any], synchronous: bool = True) -> None:
            module.active.settings.update(values)

        def log_metrics(*, metrics: dict[str, Any], step: int, synchronous: bool = True) -> None:
            module.active.logs.append({**metrics, "step": step})

        for function in (start_run, active_run, end_run, log_params, log_metrics):
            setattr(module, function.__name__, function)
        module.is_tracking_uri_set = lambda: True
        module.get_tracking_uri = lambda: "file:stand-in"
        module.set_experiment = lambda name: setattr(module, "experiment", name)
        return {"mlflow": module}

    def _trackio(self) -> dict[str, ModuleType]:
        module, runs = ModuleType("trackio"), self.trackio
        module.current = None

        def init(*, project: str, name: str, space_id: str | None, resume: str) -> None:
            if module.current is not None:
                raise RuntimeError("a run is open")
            run = Run(name, project)
            runs.append(run)
            module.current, module.config = run, Settings()

        def log(numbers: dict[str, Any]) -> None:
            module.current.logs.append(numbers)

        def finish() -> None:
            if module.current is None:
                raise RuntimeError("Call trackio.init() before trackio.finish().")
            module.current.finished, module.current = True, None

        module.init, module.log, module.finish = init, log, finish
        return {"trackio": module}
