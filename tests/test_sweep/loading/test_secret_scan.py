"""What is taken for a secret, what is not, and that none is shown."""

from __future__ import annotations

import pytest

from sweep.loading import loader, secret_scan
from trial.config.errors import ConfigError
from trial.config.trial_config import known_paths


@pytest.mark.parametrize(
    "key",
    ["training.hub_token", "push_to_hub_token", "token", "password", "db_password", "api_key",
     "aws_secret_access_key", "client_secret", "HF_TOKEN"],
)  # fmt: skip
def test_keys_of_secrets(key):
    assert secret_scan.is_secret_key(key)


@pytest.mark.parametrize("key", ["eos_token", "pad_token", "tokens", "max_tokens", "key", "bypass"])
def test_keys_of_other_things(key):
    assert not secret_scan.is_secret_key(key)


def test_of_all_keys_there_are_only_the_hubs_token_is_one():
    assert {key for key in known_paths() if secret_scan.is_secret_key(key)} <= {
        "training.hub_token",
        "training.push_to_hub_token",
    }


@pytest.mark.parametrize(
    "text",
    ["hf_" + "a1" * 17, "ghp_" + "a1" * 18, "AKIA" + "ABCD" * 4, "sk-proj-" + "a1" * 12,
     "mysql://me:pw@host/db", "-----BEGIN RSA PRIVATE KEY-----"],
)  # fmt: skip
def test_forms_of_secrets(text):
    assert secret_scan.has_secret(text)
    assert secret_scan.has_secret(f"# was {text} once")


@pytest.mark.parametrize(
    "text",
    ["meta-llama/Llama-3.1-8B", "hf_transfer", "a" * 40, "sqlite:////data/x.db", "task-1", "</s>"],
)
def test_forms_of_other_things(text):
    assert not secret_scan.has_secret(text)


def test_an_override_is_refused_and_not_shown(tmp_path):
    source = tmp_path / "x.yaml"
    source.write_text("space: {lora.r: [4, 8]}\n")
    with pytest.raises(ConfigError, match="looks like a secret") as caught:
        loader.load(source, ["training.hub_token=sesame"])
    assert "sesame" not in str(caught.value)
    assert "--set training.hub_token=***" in str(caught.value)
