"""The files for containers and clusters, as far as they can be held to rules without either.

Some rules of Kubernetes and KubeRay are written down here; nothing is built, no cluster is asked.
"""

import json
import re
import tomllib

import pytest
import yaml
from helpers.paths import ROOT

from trial.devices.gaudi_release import RELEASES

CLUSTER = yaml.safe_load((ROOT / "docs/kuberay.yaml").read_text())
HEAD, WORKERS = CLUSTER["spec"]["headGroupSpec"], CLUSTER["spec"]["workerGroupSpecs"]
GROUPS = {"head": HEAD, **{group["groupName"]: group for group in WORKERS}}
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
QUANTITY = re.compile(r"\d+(\.\d+)?(m|Ki|Mi|Gi|Ti|k|M|G|T)?")
POD_KEYS = {"containers", "volumes", "hostIPC", "hostNetwork", "dnsPolicy"}
CONTAINER_KEYS = {"name", "image", "env", "resources", "volumeMounts", "securityContext"}


def pod(group):
    return group["template"]["spec"]


def container(group):
    (only,) = pod(group)["containers"]
    return only


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_a_pod_is_one_that_kubernetes_takes(group):
    spec, box = pod(group), container(group)
    assert set(spec) <= POD_KEYS
    assert set(box) <= CONTAINER_KEYS
    assert NAME.fullmatch(box["name"])
    volumes = {volume["name"] for volume in spec["volumes"]}
    assert {mount["name"] for mount in box["volumeMounts"]} <= volumes
    for variable in box["env"]:
        assert set(variable) in ({"name", "value"}, {"name", "valueFrom"})
        assert isinstance(variable.get("value", ""), str)
    asked, most = box["resources"]["requests"], box["resources"]["limits"]
    assert all(QUANTITY.fullmatch(str(value)) for value in (*asked.values(), *most.values()))
    # Of huge pages and devices no more can be lent than was asked for.
    whole = [name for name in {*asked, *most} if name.startswith("hugepages-") or "/" in name]
    assert {name: asked[name] for name in whole} == {name: most[name] for name in whole}
    assert {"cpu", "memory"} <= set(asked)


def test_the_cluster_is_one_that_kuberay_takes():
    assert (CLUSTER["apiVersion"], CLUSTER["kind"]) == ("ray.io/v1", "RayCluster")
    assert set(CLUSTER["spec"]) == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    pinned = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"ray=={CLUSTER['spec']['rayVersion']}" in pinned
    for group in GROUPS.values():
        # The operator writes them on a command line: numbers and booleans are refused.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for group in WORKERS:
        assert NAME.fullmatch(group["groupName"])
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_a_node_says_to_ray_the_cards_that_it_holds():
    for group in WORKERS:
        said = json.loads(json.loads(group["rayStartParams"]["resources"]))
        assert said == {"HPU": container(group)["resources"]["limits"]["habana.ai/gaudi"]}
        assert container(group)["resources"]["limits"]["hugepages-2Mi"]
        assert pod(group)["hostIPC"] is True
        assert container(group)["securityContext"]["capabilities"]["add"] == ["SYS_NICE"]


CONTAINERFILE = (ROOT / "docs/gaudi/Containerfile").read_text()
LINES = re.sub(r"^#.*\n", "", CONTAINERFILE, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
STEPS = [tuple(line.split(maxsplit=1)) for line in LINES if line.strip()]
KNOWN = {"ARG", "FROM", "SHELL", "RUN", "WORKDIR", "COPY", "ENV", "CMD"}


def given(instruction):
    return [rest for name, rest in STEPS if name == instruction]


def test_the_container_file_is_one_that_can_be_read():
    assert {name for name, _ in STEPS} <= KNOWN
    assert next(name for name, _ in STEPS if name != "ARG") == "FROM"
    for rest in (*given("CMD"), *given("SHELL")):
        assert all(isinstance(word, str) for word in json.loads(rest))
    assert given("WORKDIR")[0].startswith("/")
    (packages,) = (rest for rest in given("RUN") if "apt-get" in rest)
    for part in ("update", "install -y --no-install-recommends", "rm -rf /var/lib/apt/lists"):
        assert part in packages


def test_the_container_is_of_a_release_that_is_known():
    said = dict(rest.split("=") for rest in given("ARG"))
    release = RELEASES[".".join(said["GAUDI"].split(".")[:2])]
    assert said["DEEPSPEED"] == release.deepspeed
    image = container(GROUPS["head"])["image"]
    assert image.endswith(f":{said['GAUDI']}")
    assert {container(group)["image"] for group in GROUPS.values()} == {image}


def test_what_the_container_runs_is_there():
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    wanted = re.findall(r'\bmake"?,? "?(\w+)', " ".join([*given("CMD"), *given("RUN")]))
    assert set(wanted) >= {"install", "doctor"}
    assert {name for name in wanted if name != "python3"} <= set(targets)
    ignored = (ROOT / "docs/gaudi/Containerfile.dockerignore").read_text().split()
    assert {".git", ".venv", "runs"} <= set(ignored)
    path = next(v["value"] for v in container(HEAD)["env"] if v["name"] == "PATH")
    assert path.startswith(f"{given('WORKDIR')[0]}/.venv/bin:")
