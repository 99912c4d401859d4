"""Studies on a real journal whose trials are told and not trained."""

from __future__ import annotations

from sweep.spec.dimension import Choices
from sweep.spec.spec import SweepSpec
from sweep.storage.open import open_storage
from sweep.study.decider import OptunaDecider
from sweep.study.verify import verify
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Evaluation, Result, StudyRecord


def grid_of_ranks(*choices: int, steps: int = 10) -> SweepSpec:
    """A grid over the LoRA rank."""
    return SweepSpec(
        name="old",
        base={"training": {"max_steps": steps}},
        space={"lora.r": (Choices(choices=choices),)},
        sampler={"name": "grid"},
    )


def tell_all(study: StudyFolder, spec: SweepSpec, results: list[Result | None]) -> None:
    """Run a grid without training: each trial gets the next result, None leaves it in flight."""
    study.write_record(StudyRecord(name=study.name, spec=spec.content()))
    decider = OptunaDecider(spec, study.name, open_storage(study))
    for result in results:
        proposal = decider.ask()
        folder = TrialFolder.create(study.trial(proposal.number).path, proposal.config)
        evaluation = Evaluation(step=5, eval_loss=2.0 + proposal.number)
        folder.append(evaluation)
        decider.report(proposal.number, evaluation)
        if result is not None:
            folder.write_result(result)
            decider.tell(proposal.number, result)


def findings(study: StudyFolder) -> list[str]:
    """Differences between folders and journal that no run repairs."""
    return [str(finding) for finding in verify(study, open_storage(study)) if finding.wrong]
