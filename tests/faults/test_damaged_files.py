"""Every kind of file of a study, damaged in every way: found, or harmless, never other numbers.

A study has a finished trial and one in flight with two checkpoints. `verify --deep` finds what is
wrong with a finished trial. The one in flight goes on, and ends to the bit as it does undisturbed:
one damage of each file here, all of them in `make test-faults`.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.sweeps.local import begin_study, make_spec, numbers_of, run_study
from helpers.training.train import Material

from sweep.storage.open import open_storage
from sweep.study.verify import verify
from trial.store.folders import StudyFolder

DONE, FLYING = 0, 1
"""Numbers of the finished trial and of the one in flight."""
NEWEST, BEFORE = "checkpoints/checkpoint-7", "checkpoints/checkpoint-6"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def delete(path: Path) -> None:
    path.unlink()


def edit(path: Path) -> None:
    """Another valid file: a number changed, or the file of the checkpoint before."""
    other = path.parents[1] / Path(BEFORE).name / path.name
    if path.suffix in (".json", ".jsonl") or path.name == "COMPLETE":
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        content = json.loads(lines[0])
        change_number(content)
        path.write_text("\n".join([json.dumps(content), *lines[1:], ""]))
    elif other.exists() and other.read_bytes() != path.read_bytes():
        shutil.copy(other, path)
    else:
        path.write_bytes(path.read_bytes() + b"0")


def change_number(content: dict) -> None:
    names = ("learning_rate", "value", "eval_loss", "started", "global_step", "step", "size")
    for name in (*names, "r"):
        holder = next(holding(content, name), None)
        if holder is not None:
            holder[name] = holder[name] * 2 + 1
            return
    raise AssertionError("there is no number to change")


def holding(content: object, name: str):
    """Every mapping in a JSON value that has the name."""
    if isinstance(content, dict):
        if name in content:
            yield content
        for value in content.values():
            yield from holding(value, name)


DAMAGES = (truncate, empty, zero, flip, delete, edit)
OF_A_FINISHED_TRIAL = (
    "config.json", "result.json", "metrics.jsonl", "attempts.jsonl",
    "adapter/adapter_model.safetensors", "adapter/adapter_config.json",
    "checkpoints/checkpoint-8/COMPLETE", "checkpoints/checkpoint-8/progress.json",
    "checkpoints/checkpoint-8/optimizer.pt",
)  # fmt: skip
OF_ANY_TRIAL_IN_FLIGHT = (
    "config.json", "metrics.jsonl", "attempts.jsonl",
    f"{NEWEST}/COMPLETE", f"{NEWEST}/progress.json", "checkpoints/best-6/adapter_model.safetensors",
)  # fmt: skip
IN_FLIGHT = {
    "solo": (
        *OF_ANY_TRIAL_IN_FLIGHT, f"{NEWEST}/optimizer.pt", f"{NEWEST}/scheduler.pt",
        f"{NEWEST}/rng_state.pth", f"{NEWEST}/trainer_state.json",
        f"{NEWEST}/adapter_model.safetensors", f"{NEWEST}/adapter_config.json",
    ),
    "packed": (*OF_ANY_TRIAL_IN_FLIGHT, f"{NEWEST}/slot.safetensors"),
}  # fmt: skip
CASES = [
    (kind, *case) for kind in IN_FLIGHT for case in itertools.product(IN_FLIGHT[kind], DAMAGES)
]
HERE = [case for index, case in enumerate(CASES) if index % len(DAMAGES) == (index // 6) % 6]
"""One damage of each file."""


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("damaged"))


@pytest.fixture(scope="module")
def studies(material) -> dict[str, StudyFolder]:
    """Studies with a finished trial, and one that was left right after its third evaluation."""
    made = {}
    for kind in IN_FLIGHT:
        study = made[kind] = StudyFolder(material.root / kind / "study")
        begin_study(study, make_spec(material, pack=1 if kind == "solo" else 2))
        run_study(study, material.process_cache, leave_at=(FLYING, 6))
        assert study.trial(DONE).read_result().state == "complete"
        kept = {path.name for path in study.trial(FLYING).checkpoints.iterdir()}
        assert {"checkpoint-6", "checkpoint-7"} <= kept
    return made


@pytest.fixture(scope="module")
def undisturbed(material, studies) -> dict[str, dict]:
    """What the studies come to when they are resumed as they are."""
    found = {}
    for kind, study in studies.items():
        copy = copied(study, material.root / kind / "undisturbed")
        run_study(copy, material.process_cache)
        assert findings(copy) == []
        found[kind] = numbers_of(copy)
    return found


def copied(study: StudyFolder, place: Path) -> StudyFolder:
    shutil.copytree(study.path, place / study.name)
    return StudyFolder(place / study.name)


def findings(study: StudyFolder, *, deep: bool = True) -> list[str]:
    found = verify(study, open_storage(study), deep=deep)
    return [str(finding) for finding in found if finding.wrong]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", OF_A_FINISHED_TRIAL)
def test_damage_of_a_finished_trial_is_found(studies, tmp_path, name, damage):
    study = copied(studies["solo"], tmp_path)
    assert findings(study) == []
    damage(study.trial(DONE).path / name)
    found = findings(study)
    if damage is delete and Path(name).name == "COMPLETE":
        # It is no checkpoint then: `--continue` refuses the trial.
        assert found == []
    else:
        assert found
        assert all(text.startswith(f"trial {DONE}: ") for text in found)
        assert Path(name).name in "".join(found) or "is COMPLETE in the journal" in found[0]
    sizes_differ = damage not in (zero, flip, edit)
    if sizes_differ and found:
        assert findings(study, deep=False) == found


def check_that_it_ends_undisturbed(
    study: StudyFolder, name: str, damage: Callable[[Path], None], material, expected: dict
) -> None:
    trial = study.trial(FLYING)
    damage(trial.path / name)
    found = findings(study)
    run_study(study, material.process_cache)
    after = numbers_of(study)
    if name == "metrics.jsonl":
        # What is lost of the curve is said, before and after; nothing else depends on it.
        assert found
        assert any("metrics.jsonl is not as it was" in text for text in findings(study))
        for numbers in (after, expected):
            del numbers[FLYING]["curve"]
    assert after == expected
    log = trial.log.read_text() if trial.log.exists() else ""
    attempts = trial.read_attempts()
    if name.startswith("checkpoints") and not name.endswith("COMPLETE"):
        assert "damaged checkpoint: " in log
        assert Path(name).name in attempts[-1].damaged[0]
        assert attempts[-1].resumed_from in (0, 6)
    elif name == "config.json":
        assert found or damage is delete
        assert ("config.json is made anew as the study proposed it" in log) == bool(found)
        assert attempts[-1].resumed_from == 7
    if name not in ("metrics.jsonl", "attempts.jsonl"):
        assert findings(study) == []


@pytest.mark.parametrize(
    ("kind", "name", "damage"),
    [pytest.param(*c, marks=() if c in HERE else pytest.mark.faults) for c in CASES],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_damaged_trial_in_flight_ends_as_it_does_undisturbed(
    studies, undisturbed, material, tmp_path, kind, name, damage
):
    study = copied(studies[kind], tmp_path)
    expected = {number: dict(row) for number, row in undisturbed[kind].items()}
    check_that_it_ends_undisturbed(study, name, damage, material, expected)
