"""Ray's agents end with the raylet; processes of the tests stand in for both."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from sweep.ray_backend.local.agent import RAYLET
from sweep.ray_backend.node.local_ray import AGENT

RAYLET_CODE = """
import os, subprocess, sys
os.environ["RAY_RAYLET_PID"] = str(os.getpid())
subprocess.run([sys.executable, "-u", *sys.argv[1:]])
"""

PROGRAM = """
import os, sys, signal
sys.path[0], __name__, sys.argv
print(os.getpid(), sys.path[0], __name__, *sys.argv, flush=True)
signal.pause()
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")


def test_an_agent_ends_with_the_raylet(tmp_path):
    program = tmp_path / "agent.py"
    program.write_text(PROGRAM)
    words = [str(AGENT), str(program), "--port=1", "x y"]
    raylet = subprocess.Popen(
        [sys.executable, "-c", RAYLET_CODE, *words], stdout=subprocess.PIPE, text=True
    )
    number, *seen = raylet.stdout.readline().split(maxsplit=1)
    assert seen == [f"{tmp_path} __main__ {program} --port=1 x y\n"]
    agent = psutil.Process(int(number))
    raylet.kill()
    raylet.wait()
    agent.wait(10)
    raylet.stdout.close()


def test_an_agent_that_comes_too_late_does_not_stay(tmp_path):
    program = tmp_path / "agent.py"
    program.write_text("print('started')")
    command = [sys.executable, str(AGENT), str(program)]
    gone = {**os.environ, RAYLET: str(os.getpid() + 1)}
    done = subprocess.run(command, env=gone, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert "the raylet is gone" in done.stderr
