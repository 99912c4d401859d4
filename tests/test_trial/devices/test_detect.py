"""Which accelerators this machine has, without torch."""

from __future__ import annotations

import pytest

from trial.devices import detect


@pytest.mark.parametrize(
    ("exists", "environ", "expected"),
    [
        (False, {}, False),
        (True, {}, True),
        (True, {"CUDA_VISIBLE_DEVICES": "0"}, True),
        (True, {"CUDA_VISIBLE_DEVICES": ""}, False),
        (True, {"CUDA_VISIBLE_DEVICES": "-1"}, False),
        (False, {"CUDA_VISIBLE_DEVICES": "0"}, False),
    ],
)
def test_a_gpu_is_a_device_file_that_is_not_hidden(exists, environ, expected, tmp_path):
    file = tmp_path / "nvidia0"
    if exists:
        file.touch()
    assert detect.has_cuda_device([str(tmp_path / "nvidiactl"), str(file)], environ) == expected


@pytest.mark.parametrize(
    ("gaudi", "cuda", "expected"),
    [
        (False, False, "cpu"),
        (False, True, "cuda"),
        (True, False, "hpu"),
        (True, True, "hpu"),
    ],
)
def test_auto_prefers_a_gaudi(gaudi, cuda, expected, monkeypatch):
    monkeypatch.setattr(detect, "has_gaudi_software", lambda: gaudi)
    monkeypatch.setattr(detect, "has_cuda_device", lambda: cuda)
    assert detect.detected_device() == expected


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"pod/cpu.max": "300000 100000", "cpu.max": "max 100000"}, 3),
        ({"pod/app/cpu.max": "max 100000", "pod/cpu.max": "400000 100000"}, 4),
        ({"cpu/pod/app/cpu.cfs_quota_us": "200000", "cpu/pod/app/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_cores_are_those_of_the_container(files, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(detect.os, "sched_getaffinity", lambda _: set(range(8)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert detect.usable_cores(tmp_path, "/pod/app") == cores
