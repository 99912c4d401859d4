"""A worker ends when its driver, or what started it, is gone: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

from sweep.ray_backend.liveness.lease import Lease

CHILD = """
import sys
from sweep.ray_backend.liveness import lease
lease.end_with_parent()
print("ready", flush=True)
sys.stdin.read()
"""

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
"""

EXPIRING = """
import sys
from sweep.ray_backend.liveness.lease import Lease
lease = Lease(seconds=0.05)
lease.renew()
sys.stdin.read()
"""


def test_a_process_ends_with_its_parent():
    words = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        handle = os.pidfd_open(child)
        parent.kill()
    # A process that reads an open pipe for ever has ended: its handle becomes readable.
    import select

    assert select.select([handle], [], [], 30)[0]
    os.close(handle)


def test_a_worker_whose_lease_runs_out_ends_itself():
    words = [sys.executable, "-c", EXPIRING]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as worker:
        assert worker.wait(30) == -signal.SIGKILL


def test_a_lease_lasts_while_it_is_renewed_and_ends_after():
    expired = threading.Event()
    lease = Lease(seconds=0.5, expired=expired.set)
    begun = time.monotonic()
    while time.monotonic() - begun < 1.5:
        lease.renew()
        assert not expired.wait(0.05)
    assert expired.wait(30)


def test_a_lease_that_was_never_begun_does_not_end():
    expired = threading.Event()
    Lease(seconds=0.0, expired=expired.set)
    assert not expired.wait(0.1)
