"""The script that Ray starts for each worker: `fork_client.py [-s] SCRIPT ARGUMENTS...`.

It stands in for Ray's own `setup_worker.py`, which would import Ray first and for nothing. It asks
the fork server (`sweep.ray_backend.fork_server`) for a process that has imported everything, and
stays until that process ends. Without a fork server it becomes the worker itself. A worker with a
runtime environment of its own is left to Ray's script.

It imports nothing of this package, for speed, so it names Ray's script and arguments itself;
`sweep.ray_backend.compat` has Ray's other private names.
"""

import sys

if __name__ == "__main__":
    # The folder of this script comes first, and its modules are not for this process.
    del sys.path[0]

import json
import os
import socket
import struct

FORK_SERVER = "GAUDI_SWEEP_FORK_SERVER"
"""Environment variable: path of the fork server's socket."""

SETUP_WORKER = "setup_worker.py"
"""Ray's own script, in the folder of the worker's."""

SETUP_ARGUMENTS = ("--language", "--serialized-runtime-env-context")
"""Arguments that Ray's script takes out."""

PLAIN_ARGUMENTS = ("--language=PYTHON", "--serialized-runtime-env-context={}")
"""Their values for a Python worker without a runtime environment."""

OOM_SCORE = "/proc/self/oom_score_adj"
"""How soon the kernel ends this process when memory runs out."""

CREDENTIALS = struct.Struct("iII")
"""Linux's `struct ucred`: process, user and group."""


def main(arguments: list[str]) -> int:
    """Run the worker; returns its exit code."""
    # Before the script there may be flags of Python's.
    script = next(place for place, word in enumerate(arguments) if not word.startswith("-"))
    if not _is_plain(arguments):
        setup_worker = os.path.join(os.path.dirname(arguments[script]), SETUP_WORKER)
        os.execv(sys.executable, [sys.executable, setup_worker, *arguments])
    own = [word for word in arguments[script:] if not word.startswith(SETUP_ARGUMENTS)]
    path = os.environ.pop(FORK_SERVER, "")
    code = request_worker(path, own) if path else None
    if code is None:
        os.execv(sys.executable, [sys.executable, *arguments[:script], *own])
    return code


def _is_plain(arguments: list[str]) -> bool:
    return all(word in PLAIN_ARGUMENTS for word in arguments if word.startswith(SETUP_ARGUMENTS))


def request_worker(
    path: str,
    arguments: list[str],
    files: tuple[int, int, int] = (0, 1, 2),
    environment: dict[str, str] | None = None,
) -> int | None:
    """Have the fork server at `path` run a script; returns its exit code, None if it cannot.

    Args:
        path: The server's socket.
        arguments: The script and its words.
        files: Standard input, output and error, as file descriptors.
        environment: All variables; None: this process's own.
    """
    variables = dict(os.environ) if environment is None else environment
    request = {"arguments": arguments, "environment": variables, "folder": os.getcwd()}
    try:
        with open(OOM_SCORE) as file:
            # Ray lets the kernel end workers first when memory runs out.
            request["oom_score"] = file.read()
        message = json.dumps(request).encode()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(path)
            if not is_same_user(connection):
                return None
            socket.send_fds(connection, [len(message).to_bytes(4, "big")], list(files))
            connection.sendall(message)
            if not connection.recv(1):
                return None
            # The worker has started. No code: the server is gone, and the worker may live on.
            code = connection.recv(1)
            return code[0] if code else 0
    except OSError:
        return None


def is_same_user(connection: socket.socket) -> bool:
    """Whether the other end of a Unix socket was made by this user, as the kernel says."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    _, user, _ = CREDENTIALS.unpack(credentials)
    return bool(user == os.geteuid())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
