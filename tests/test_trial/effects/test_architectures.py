"""Every architecture is trained as a plain PEFT loop trains it, packed or not, or is refused."""

import re

import pytest
import torch
from helpers.architectures.families import FAMILIES, OWN_RANDOMNESS
from helpers.architectures.loop import Architectures
from helpers.paths import ROOT

from trial.store.folders import TrialFolder
from trial.train import train

TOLERANCE = 1e-5
"""Nats per token between trial, plain loop and packed trial; the order of sums differs."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield Architectures(tmp_path_factory.mktemp("architectures"))
    patch.undo()
    torch.set_num_threads(threads)


def listed() -> dict[str, str]:
    """The last column of docs/architectures.md by name, or the key that is refused."""
    page = (ROOT / "docs" / "architectures.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {name: rest[-1].strip("| ") for name, *rest in rows[1:]}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trial_learns_what_a_plain_loop_learns_packed_or_not(models, name):
    family = FAMILIES[name]
    outcome = models.outcome(name, family)
    assert [problem.key for problem in outcome.problems] == [family.refused][: bool(family.refused)]
    if family.refused:
        assert outcome.solo.state == "failed"
        assert not outcome.solo.cause.step
        assert listed()[name] == f"refused: `{family.refused}`"
        return
    loss = outcome.solo.eval_loss
    assert abs(outcome.before - loss) > 100 * TOLERANCE, "training has moved nothing"
    assert outcome.plain == pytest.approx(loss, abs=TOLERANCE)
    if outcome.packed is not None:
        assert outcome.packed == pytest.approx(loss, abs=TOLERANCE)
    packs = bool(re.fullmatch(r"[+-]\de[+-]\d+", listed()[name]))
    assert packs == (outcome.packed is not None)


@pytest.mark.parametrize("name", OWN_RANDOMNESS)
def test_what_draws_random_numbers_of_its_own_trains_alone_packed_or_not(models, name):
    """`python -m trial` and a sweep with `pack: auto` give one result."""
    config = models.trial(f"{name} with dropout", OWN_RANDOMNESS[name])
    assert models.check(config) == []
    _, solo = models.train(config)
    asked = config.model_copy(update={"packed": True})
    assert models.check(asked) == []
    assert models.packed_loss(asked, solo.eval_loss) is None
    result = train(TrialFolder.create(models.root / f"{name} asked", asked), None,
                   models.process_cache())  # fmt: skip
    assert result.eval_loss == solo.eval_loss


def test_a_model_that_looks_into_its_layers_is_not_packed(models, monkeypatch):
    """A slot's layer has a weight as PEFT's has, but not everything that a linear layer has."""
    from transformers.models.llama.modeling_llama import LlamaAttention

    forward = LlamaAttention.forward

    def looks(self, *args, **named):
        self.q_proj.extra_repr().index("in_features")
        return forward(self, *args, **named)

    config = models.trial("llama", FAMILIES["llama"])
    _, solo = models.train(config)
    monkeypatch.setattr(LlamaAttention, "forward", looks)
    assert models.packed_loss(config, solo.eval_loss) is None
    # PEFT's own layers have no such text either: the trainer says what is wrong.
    _, result = models.train(config.model_copy(update={"packed": True}))
    assert (result.state, "substring not found" in result.cause.message) == ("failed", True)
