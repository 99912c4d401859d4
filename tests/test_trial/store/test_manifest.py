"""Stamps of files, and the objects that carry their own hash."""

from __future__ import annotations

import hashlib
import json

import pytest

from trial.store import manifest
from trial.store.folders import TrialFolder
from trial.store.records import Evaluation, Result


def test_each_damage_has_its_words(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("same", "gone", "short", "sub/flipped"):
        (tmp_path / name).write_bytes(b"0123")
    stamps = manifest.stamp_all(tmp_path, [tmp_path])
    assert stamps["sub/flipped"].sha256 == hashlib.sha256(b"0123").hexdigest()
    (tmp_path / "gone").unlink()
    (tmp_path / "short").write_bytes(b"01")
    (tmp_path / "sub/flipped").write_bytes(b"0133")
    shallow = ["gone is missing", "short has 2 bytes, it was written with 4"]
    assert manifest.damage(tmp_path, stamps, deep=False) == shallow
    deep = [*shallow, "sub/flipped has other content than it was written with"]
    assert manifest.damage(tmp_path, stamps, deep=True) == deep


@pytest.mark.parametrize("edit", [{"a": 2}, {"b": "y"}, {"more": None}, {"sha256": "0" * 64}])
def test_a_sealed_object_shows_every_change(edit):
    sealed = manifest.seal({"a": 1, "b": "x", "nan": float("nan")})
    assert manifest.is_sealed(json.loads(json.dumps(sealed, indent=4)))
    assert not manifest.is_sealed({**sealed, **edit})
    assert manifest.is_sealed({"a": 1}), "an object of an earlier version"


def test_a_result_names_the_files_beside_it(tmp_path):
    folder = TrialFolder(tmp_path)
    folder.append(Evaluation(step=5, eval_loss=2.0))
    folder.adapter.mkdir()
    weights = folder.adapter / "adapter_model.safetensors"
    weights.write_bytes(b"weights")
    result = Result(state="complete", eval_loss=float("inf"))
    folder.write_result(result)
    assert folder.read_result() == result
    files = json.loads(folder.result.read_text())["files"]
    assert files["adapter/adapter_model.safetensors"] == {
        "size": 7,
        "sha256": hashlib.sha256(b"weights").hexdigest(),
    }
    assert set(files) == {"adapter/adapter_model.safetensors", "metrics.jsonl"}
    assert folder.damage(deep=True) == []
    weights.write_bytes(b"weighta")
    assert folder.damage(deep=False) == []
    (found,) = folder.damage(deep=True)
    assert found == "adapter/adapter_model.safetensors has other content than it was written with"
    with pytest.raises(ValueError, match=r"adapter_model.safetensors has other content"):
        folder.refuse_damaged_weights()


def test_a_result_of_an_earlier_version_names_nothing(tmp_path):
    folder = TrialFolder(tmp_path)
    folder.result.write_text(Result(state="complete", eval_loss=1.0).model_dump_json())
    assert folder.damage(deep=True) == []
    folder.refuse_damaged_weights()
