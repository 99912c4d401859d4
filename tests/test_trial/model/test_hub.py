"""What the hub answers, in words."""

import pytest
import requests
from huggingface_hub import constants

from trial.model import hub


class Answer:
    def __init__(self, status_code, code=""):
        self.status_code = status_code
        self.headers = {"X-Error-Code": code} if code else {}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(200), ""),
        (Answer(307), ""),
        (Answer(404, "EntryNotFound"), ""),
        (Answer(401, "RepoNotFound"), "the hub says 401 RepoNotFound"),
        (Answer(403, "GatedRepo"), "the hub says 403 GatedRepo"),
    ],
)
def test_why_a_repository_is_unavailable(answer, reason, monkeypatch):
    urls = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(requests, "head", lambda url, **more: urls.append(url) or answer)
    assert hub.unavailable_reason("model", "org/name") == reason
    assert urls == [f"{constants.ENDPOINT}/org/name/resolve/main/config.json"]
