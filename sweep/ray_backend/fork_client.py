"""What Ray starts for a worker of ours, a script: `fork_client.py [-s] SCRIPT WORDS...`.

It asks the fork server (`sweep.ray_backend.fork_server`) for a process that has imported
everything already, and stays until that process ends. Where there is none it becomes the worker
itself; Ray's own script, which it stands for, would import Ray for nothing before. A worker with
an environment of its own is started by that script.
"""

import sys

if __name__ == "__main__":
    # The folder of this script comes first, and its modules are not for this process.
    del sys.path[0]

import json
import os
import socket

FORK_SERVER = "GAUDI_SWEEP_FORK_SERVER"
"""Path of the socket."""
SET_UP = "setup_worker.py"
"""Ray's own script, beside the worker's."""
OOM_SCORE = "/proc/self/oom_score_adj"
"""How soon the kernel ends this process when memory runs out."""
FOR_SET_UP = ("--language", "--serialized-runtime-env-context")
"""Words that Ray's script takes out."""
PLAIN = ("--language=PYTHON", "--serialized-runtime-env-context={}")
"""What they say of a Python worker without an environment of its own."""


def main(words: list[str]) -> int:
    """The worker's exit code."""
    # Before the script there may be flags of Python's.
    script = next(place for place, word in enumerate(words) if not word.startswith("-"))
    if not _is_plain(words):
        set_up = os.path.join(os.path.dirname(words[script]), SET_UP)
        os.execv(sys.executable, [sys.executable, set_up, *words])
    own = [word for word in words[script:] if not word.startswith(FOR_SET_UP)]
    path = os.environ.pop(FORK_SERVER, "")
    code = ask(path, own) if path else None
    if code is None:
        os.execv(sys.executable, [sys.executable, *words[:script], *own])
    return code


def _is_plain(words: list[str]) -> bool:
    return all(word in PLAIN for word in words if word.startswith(FOR_SET_UP))


def ask(path: str, words: list[str]) -> int | None:
    """Have the nursery start a worker, and wait for its end; None when it cannot."""
    asked = {"words": words, "environment": dict(os.environ), "folder": os.getcwd()}
    try:
        with open(OOM_SCORE) as file:
            # Ray lets the kernel end workers first when memory runs out.
            asked["oom_score"] = file.read()
        message = json.dumps(asked).encode()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.connect(path)
            socket.send_fds(line, [len(message).to_bytes(4, "big")], [0, 1, 2])
            line.sendall(message)
            if not line.recv(1):
                return None
            # It is there. No code: the nursery is gone, and the worker may live on.
            code = line.recv(1)
            return code[0] if code else 0
    except OSError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
