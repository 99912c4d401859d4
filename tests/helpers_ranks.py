"""Two ranks of one trial in processes of their own, with controls that stop or kill."""

import os
import signal
from pathlib import Path

from helpers_train import Killer, Recorder

from trial.folder import TrialFolder
from trial.gang import PeerLost, rank_environment
from trial.train import train

SAW_ANOTHER_GO = 17


def run_rank(path: str, rank: int, size: int, port: int, script: tuple[str, int]) -> None:
    """What one rank does; `script` is what its own control says or does, and when."""
    os.environ.update(rank_environment(rank, ["here"] * size, "127.0.0.1", port))
    import torch

    torch.set_num_threads(1)
    what, asked = script
    control = Killer(asked=asked) if what == "die" else Recorder(what or None, asked)  # type: ignore[arg-type]
    folder = TrialFolder(path)
    try:
        train(folder, control)
    except PeerLost:
        os._exit(SAW_ANOTHER_GO)
    Path(path, f"asked-{rank}").write_text(str(control.asked))
    os._exit(0)


KILLED = -signal.SIGKILL
