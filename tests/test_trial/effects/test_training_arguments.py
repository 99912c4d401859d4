"""Every training argument acts on the losses, is refused, or is listed as without effect."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.effects import training_arguments as effects
from helpers.paths import ROOT
from helpers.training.packed import BFLOAT16, FLOAT32, deviation, pack
from helpers.training.train import Material

from trial.config import config_rules, library_arguments
from trial.config.packing_rules import SHARED, VARIED
from trial.config.trial_config import problems_of

MEASURED = sorted(set(effects.ACTING) - set(effects.NEED_A_PACKAGE))


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("arguments"))


def config(material: Material, **training: Any):
    # A checkpoint at each evaluation only slows the test.
    return material.config(training={**effects.BASE, "save_strategy": "no", **training})


@pytest.fixture(scope="module")
def base(material) -> list[float]:
    folder, _ = material.train(config(material))
    return effects.losses(folder)


def test_every_argument_is_in_one_of_the_lists():
    known = {*library_arguments.training_arguments(), *library_arguments.optimizer_arguments()}
    lists = (
        set(effects.ACTING),
        set(effects.SAME),
        set(effects.WITHOUT_EFFECT),
        effects.refused_arguments(),
        effects.hpu_arguments(),
    )
    assert set.union(*lists) == known
    assert sum(map(len, lists)) == len(known)
    page = (ROOT / "docs" / "effects.md").read_text()
    assert [name for name in known if f"`{name}`" not in page] == []


@pytest.mark.parametrize("name", MEASURED)
def test_another_value_gives_other_losses(material, base, name):
    folder, result = material.train(config(material, **effects.ACTING[name]))
    assert result.state == "complete", result.cause
    found = effects.losses(folder)
    assert found != pytest.approx(base, abs=1e-5)


@pytest.mark.parametrize("name", sorted(effects.SAME))
def test_what_is_listed_as_without_effect_has_none(material, base, name):
    changed = config(material, **effects.SAME[name])
    folder, result = material.train(changed)
    assert result.state == "complete", result.cause
    assert effects.losses(folder) == pytest.approx(base, abs=2e-6)


PACKED = sorted(({*VARIED, *SHARED} & {*MEASURED}) - {"max_steps", "num_train_epochs"})


def test_packed_trials_feel_them_as_trials_alone_do(material, base):
    """In slots beside each other; those of another batch size or type share no job."""
    of_job: dict[str, list[str]] = {}
    for name in PACKED:
        of_job.setdefault(name if name in SHARED else "", []).append(name)
    for names in of_job.values():
        configs = [config(material, **effects.ACTING[name]) for name in names]
        folders, _ = pack(material, *configs, slots=8)
        for name, one, folder in zip(names, configs, folders, strict=True):
            alone, _ = material.train(one)
            bound = BFLOAT16 if name == "bf16" else FLOAT32
            assert deviation(alone, folder) < bound, name
            assert effects.losses(folder) != pytest.approx(base, abs=1e-5), name


@pytest.mark.parametrize("name", sorted(config_rules.refused_training_arguments()))
def test_refused_ones_accept_their_default(name):
    from transformers import TrainingArguments

    default = TrainingArguments.__dataclass_fields__[name].default
    default = [] if name == "fsdp" else default
    assert [p for p in problems_of({"training": {name: default}}) if "expected" not in str(p)] == []
