"""Train one trial from its folder: the whole of what a worker does.

result = train(TrialFolder("runs/x/trials/00007"))
"""

from __future__ import annotations

import contextlib

from trial import failure, gang, ranks
from trial.checkpoints import Checkpoints
from trial.clock import Clock
from trial.control import Control, Free
from trial.disk import refuse_if_full
from trial.folder import Result, State, TrialFolder
from trial.session import Session
from trial.sharing import why_alone
from trial.workbench import Workbench


def train(
    folder: TrialFolder, control: Control | None = None, bench: Workbench | None = None
) -> Result | None:
    """Train a trial to its end, from its newest checkpoint when there is one.

    Returns its result, which is then on disk; a folder with a result is not trained again. None
    means that it was interrupted and waits at a checkpoint. A failure of the training is a
    result too, with its cause; the traceback goes to the trial's log.

    Raises:
        FileNotFoundError: the folder has no configuration.
        ValueError: its configuration cannot be read.
        RuntimeError: `bench` is not fit for another trial.
        PeerLost: another rank of the trial is gone, or another process has taken the trial up.
        DiskFullError: the disk is full; the trial goes on from its newest checkpoint.
    """
    folder = gang.own(folder)
    if (result := folder.read_result()) is not None:
        return result
    config = folder.read_config()
    bench = bench or Workbench()
    if config.packed and not why_alone(config):
        bench.start(config)
        from trial.packed.job import train_packed
        from trial.packed.skeleton import NotPackableError

        with contextlib.suppress(NotPackableError):
            return train_packed([folder], slots=1, bench=bench, controls=[control or Free()])[0]
    return _train_alone(Session(folder, config, control or Free(), bench, Clock()))


def _train_alone(session: Session) -> Result | None:
    with session.bench.lent(session.config):
        result = _outcome(session)
    if result is not None:
        commit(session, result)
    return result


def commit(session: Session, result: Result) -> None:
    """Write the result; then what was needed to go on may go, unless the trial may be continued."""
    if session.run is not None:
        session.run.stay_in_turn()
    session.folder.write_result(result)
    checkpoints = Checkpoints(session.folder)
    if result.state == "complete" and session.config.keep_checkpoint and session.run:
        checkpoints.complete(session.run.progress)
    else:
        checkpoints.clear()


def _outcome(session: Session) -> Result | None:
    try:
        state = _attempt(session)
    except gang.PeerLost:
        session.bench.reusable = False
        raise
    except Exception as error:
        session.bench.reusable = False
        refuse_if_full(error, session.folder.path)
        with open(session.folder.log, "a", encoding="utf-8") as log:
            log.write(failure.trace(error))
        if session.gang.size > 1 and gang.is_peer_loss(error):
            raise gang.PeerLost(failure.cause_of(error, None).message) from error
        step = session.run.steps if session.run else None
        return session.result("failed", failure.cause_of(error, step))
    session.bench.give_back(session.model, session.config)
    return None if state is None else session.result(state)


def _attempt(session: Session) -> State | None:
    config = session.config
    try:
        with session.clock.during("startup"):
            device = session.device = session.bench.start(config)
            from trial.attempt import attempt
        session.bench.pay(session.clock)
        if ranks.world_size() > 1 and config.zero_stage is None and device.name == "cpu":
            raise ValueError("several ranks on cpu need a `zero_stage`: they drift apart without")
        session.gang = gang.join()
        return attempt(session, device)
    finally:
        if session.device is not None:
            ranks.put_away(session.trainer)
