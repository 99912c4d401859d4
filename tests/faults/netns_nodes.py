"""Two real Ray hosts in network namespaces, and the link cut: `python tests/faults/netns_nodes.py`.

Needs root, `ip` and network namespaces; says why and ends with 0 where it may not. Prints what
happened, and ends with 1 when the sweep's executor did not recover.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HEAD, NODE = "10.231.7.1", "10.231.7.2"
HERE = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def sh(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=check)


@contextlib.contextmanager
def namespaces(tag: str) -> Iterator[tuple[str, str]]:
    """Two hosts: network namespaces that are joined by a pair of virtual devices (veth)."""
    first, second = f"{tag}a", f"{tag}b"
    try:
        for name in (first, second):
            sh("ip", "netns", "add", name)
            sh("ip", "-n", name, "link", "set", "lo", "up")
        sh("ip", "link", "add", f"{tag}0", "netns", first, "type", "veth", "peer", "name",
           f"{tag}1", "netns", second)  # fmt: skip
        for name, device, address in ((first, f"{tag}0", HEAD), (second, f"{tag}1", NODE)):
            sh("ip", "-n", name, "addr", "add", f"{address}/24", "dev", device)
            sh("ip", "-n", name, "link", "set", device, "up")
        yield first, second
    finally:
        for name in (first, second):
            for pid in sh("ip", "netns", "pids", name, check=False).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), 9)
            sh("ip", "netns", "del", name, check=False)


def start_ray(name: str, folder: str, *options: str) -> None:
    command = [str(BIN / "ray"), "start", *options, "--num-cpus=1", "--disable-usage-stats"]
    environment = {**os.environ, "RAY_TMPDIR": folder, "RAY_enable_metrics_collection": "0"}
    words = ["ip", "netns", "exec", name, *command]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)


def main() -> int:
    tag = f"gs{os.getpid() % 10000}"
    if shutil.which("ip") is None:
        print("skipped: there is no `ip` here (apt-get install iproute2)")
        return 0
    if os.geteuid() or sh("ip", "netns", "add", f"{tag}t", check=False).returncode:
        print("skipped: network namespaces are not permitted here")
        return 0
    sh("ip", "netns", "del", f"{tag}t")
    # The hosts of a cluster share a secret; this one lives as long as the test.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with tempfile.TemporaryDirectory(prefix="gsn") as root, namespaces(tag) as (first, second):
        head = ["--head", f"--node-ip-address={HEAD}", "--port=6379", "--include-dashboard=false"]
        folders = [str(Path(root, name)) for name in "ab"]
        start_ray(first, folders[0], *head)
        start_ray(second, folders[1], f"--address={HEAD}:6379", f"--node-ip-address={NODE}")
        driver = [sys.executable, __file__, "drive", root, first, f"{tag}0"]
        return subprocess.run(["ip", "netns", "exec", first, *driver], check=False).returncode


def drive(root: str, name: str, device: str) -> int:
    """In the head's namespace: place two trials, cut the link, watch."""
    sys.path.insert(0, str(HERE))
    import ray
    from helpers.ray import node_worker
    from helpers.ray.executor_bench import ExecutorBench

    from sweep.driver.executor import Finished, Lost
    from sweep.ray_backend.executor import RayExecutor
    from sweep.ray_backend.node.settings import RaySettings

    ray.cloudpickle.register_pickle_by_value(node_worker)
    locks = {node_worker.LOCKS: root}
    settings = RaySettings(
        "cpu", address=f"{HEAD}:6379", worker=node_worker.NodeWorker, environment=locks
    )
    executor = RayExecutor(settings)
    executor.start()
    made = ExecutorBench(executor, Path(root))
    trials = [made.submit(node_worker.WAIT) for _ in range(2)]
    homes = {number: made.placements(number)[0] for number in trials}
    print(f"slots {executor.capacity()}; nodes used {len({s['node'] for s in homes.values()})}")
    cut = time.monotonic()
    sh("ip", "-n", name, "link", "set", device, "down")
    made.until(lambda: bool(made.of(Lost)))
    (lost,) = made.of(Lost)
    print(
        f"link cut: Lost(trial {lost.number}) after {time.monotonic() - cut:.1f} s: {lost.message}"
    )
    made.until(lambda: executor.capacity() == 1)
    print(f"one slot after {time.monotonic() - cut:.1f} s")
    survivor = next(number for number in trials if number != lost.number)
    again = made.submit(node_worker.COMPLETE)
    made.prune(survivor)
    made.until(lambda: bool(made.of(Finished, again)))
    print("the lost trial was completed on the node that was left")
    pid, limit = homes[lost.number]["pid"], time.monotonic() + 150
    while Path(f"/proc/{pid}").exists() and time.monotonic() < limit:
        time.sleep(1)
    gone = not Path(f"/proc/{pid}").exists()
    print(
        f"the old worker {'ended' if gone else 'still runs'} {time.monotonic() - cut:.1f} s after"
    )
    executor.close()
    return 0


if __name__ == "__main__":
    sys.exit(drive(*sys.argv[2:]) if sys.argv[1:2] == ["drive"] else main())
