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
