"""A sweep over two bases with unlike tokenizers, from the sweep file to the report's ranking.

By `eval_loss_per_byte` the two are pruned against each other and ranked together; by `eval_loss`
neither, and the base whose tokens are single characters would win. Everything is real but for Ray:
trials train in a thread of this process, one at a time.
"""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from statistics import median

import pytest
import torch
import yaml
from helpers.sweeps.fakes import RecordingView
from helpers.training.letters import letter_tokenizer
from helpers.training.models import make_model, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from results import recommended, trials_table
from results.analysis.leaderboard import leaderboard
from sweep import console
from sweep.driver.driver import Driver
from sweep.driver.executor import Evaluated, Event, Finished, Job, Started
from sweep.driver.progress import SweepProgress
from sweep.loading.loader import load
from sweep.planning.lint import advice
from sweep.storage.open import open_storage
from sweep.study.decider import OptunaDecider
from sweep.study.select_trial import select_trial
from trial.data.split import read_split
from trial.preload import finish_imports
from trial.store.control import NullControl
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import StudyRecord
from trial.train import train
from trial.training.process_cache import ProcessCache

STEPS, EVERY = 15, 5


class ThreadExecutor(NullControl):
    """Trains one trial at a time; after an evaluation it waits until the driver has seen it."""

    def __init__(self) -> None:
        self.cache = ProcessCache(finish_imports)
        self.queue: queue.Queue[Event] = queue.Queue()
        self.seen = threading.Event()
        self.reasons: dict[int, str] = {}
        self.thread = threading.Thread()
        self.number = 0
        self.waiting = False

    def start(self) -> None: ...

    def close(self, *, wait: bool = True) -> None:
        self.thread.join()

    def capacity(self) -> int:
        return 1

    def describe(self) -> str:
        return "a thread"

    def submit(self, job: Job) -> None:
        (trial,) = job.trials
        self.number = trial.number
        self.thread = threading.Thread(target=self._train, args=(TrialFolder(trial.folder),))
        self.thread.start()

    def _train(self, folder: TrialFolder) -> None:
        result = train(folder, self, self.cache)
        assert result is not None
        self.queue.put(Finished(self.number, result))

    def events(self, timeout: float) -> list[Event]:
        if self.waiting:
            self.waiting = False
            self.seen.set()
        try:
            event = self.queue.get(timeout=timeout)
        except queue.Empty:
            return []
        self.waiting = isinstance(event, Evaluated)
        if isinstance(event, Finished):
            self.thread.join()
        return [event]

    def stop(self, number: int, reason: str) -> None:
        self.reasons[number] = reason

    def started(self, folder, device, max_steps) -> None:
        self.queue.put(Started(self.number, device, max_steps))

    def evaluated(self, folder, evaluation) -> None:
        self.queue.put(Evaluated(self.number, evaluation))
        assert self.seen.wait(timeout=60)
        self.seen.clear()

    def stop_reason(self, folder):
        return self.reasons.get(self.number)


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    """Two tiny Llamas: tokens of several characters, and one token a character."""
    root = tmp_path_factory.mktemp("bases")
    tokenizer = letter_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=4, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(root / "letters")
    tokenizer.save_pretrained(root / "letters")
    write_rows(root / "rows.jsonl")
    return {"letters": root / "letters", "pieces": make_model(root / "pieces")}


def run_sweep(folder: StudyFolder, bases: dict[str, Path], metric: str) -> Driver:
    content = {
        "base": {
            "data": {"path": str(bases["pieces"].parent / "rows.jsonl"), "max_length": 128},
            "lora": {"r": 4},
            "training": {
                "max_steps": STEPS, "eval_steps": EVERY, "per_device_train_batch_size": 8,
            },
            "device": "cpu",
        },
        "space": {
            "training.learning_rate": [1e-2, 1e-6],
            "model.name_or_path": [str(path) for path in bases.values()],
        },
        "objective": metric,
        "sampler": "grid",
        "pruner": {"name": "median", "n_startup_trials": 1},
    }  # fmt: skip
    folder.path.mkdir(parents=True)
    folder.sweep_file.write_text(yaml.safe_dump(content))
    spec = load(folder.sweep_file)
    assert bool(
        [line for line in advice(spec) if "say `objective: eval_loss_per_byte`" in line]
    ) is (metric == "eval_loss")
    folder.write_record(StudyRecord(name=folder.name, spec=spec.content()))
    decider = OptunaDecider(spec, folder.name, open_storage(folder))
    executor, progress = ThreadExecutor(), SweepProgress(metric)
    driver = Driver(folder, decider, executor, spec.stop, RecordingView(), progress, ask_ahead=0)
    driver.run()
    executor.close()
    return driver


def curves_per_byte(study: StudyFolder) -> dict[int, dict[int, float]]:
    """By trial and step: the eval loss times the tokens of the answers, over their bytes."""
    found = {}
    for number, folder in study.all_trials():
        config = folder.read_config()
        tokenizer = AutoTokenizer.from_pretrained(config.model.name_or_path)
        answers = [row.completion for row in read_split(config.data).eval]
        # The space before an answer does not count where it is a token of its own; eos does.
        pieces = [tokenizer.tokenize(f" {answer}") for answer in answers]
        space = tokenizer.tokenize(" ")[0]
        tokens = sum(len(piece) - (piece[0] == space) + 1 for piece in pieces)
        share = tokens / sum(len(answer.encode()) for answer in answers)
        found[number] = {e.step: e.eval_loss * share for e in folder.read_evaluations()}
    return found


def expected_ends(curves: dict[int, dict[int, float]], group: dict[int, str]) -> dict[int, int]:
    """By trial: its last step under the median rule within its group, one trial after the other."""
    ends: dict[int, int] = {}
    for number, curve in curves.items():
        complete = [n for n, end in ends.items() if end == STEPS and group[n] == group[number]]
        ends[number] = STEPS
        for step in range(EVERY, STEPS, EVERY):
            best = min(value for at, value in curve.items() if at <= step)
            if complete and best > median(curves[n][step] for n in complete):
                ends[number] = step
                break
    return ends


@pytest.mark.parametrize("metric", ["eval_loss_per_byte", "eval_loss"])
def test_two_tokenizers_in_one_sweep(tmp_path, bases, metric):
    study = StudyFolder(tmp_path / "study")
    driver = run_sweep(study, bases, metric)
    base_of = {n: Path(f.read_config().model.name_or_path).name for n, f in study.all_trials()}
    results = {n: folder.read_result() for n, folder in study.all_trials()}
    curves, together = curves_per_byte(study), metric == "eval_loss_per_byte"
    for number, folder in study.all_trials():
        for row in folder.read_evaluations():
            assert row.eval_loss_per_byte == pytest.approx(curves[number][row.step], rel=1e-6)
    group = dict.fromkeys(base_of, "all") if together else base_of
    ends = expected_ends(curves, group)
    # A trial asks whether it is to stop after each step: the step after the evaluation is made.
    steps = {n: min(end + 1, STEPS) for n, end in ends.items()}
    assert {n: r.steps for n, r in results.items()} == steps
    assert {n: r.state for n, r in results.items()} == {
        n: "complete" if end == STEPS else "pruned" for n, end in ends.items()
    }
    # A byte costs more nats in letters than in pieces, a token fewer. The second trial of pieces is
    # worse than the first, and better than that of letters.
    assert [base_of[n] for n in sorted(base_of)] == ["letters", "letters", "pieces", "pieces"]
    assert [ends[n] == STEPS for n in sorted(ends)] == [True, False, True, together]
    complete = {n: curves[n][STEPS] for n, end in ends.items() if end == STEPS}
    # Of groups of one size that with the first trial.
    best = min((n for n in complete if group[n] == group[0]), key=lambda n: complete[n])
    assert best == (2 if together else 0)
    assert min(complete, key=lambda n: results[n].eval_loss) == 0
    assert driver.progress.best.number == best
    assert ("largest of 2 groups" in console.summary(driver.progress)) is not together
    assert int(select_trial(study, "best").path.name) == best
    assert recommended(study) == best
    ranked = leaderboard(trials_table(study)).standings
    assert [int(standing.group.row["number"]) for standing in ranked] == (
        sorted(complete, key=lambda n: complete[n]) if together else [best]
    )
