"""The dashboard answers only its own pages, only with the token, and changes nothing."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import optuna
import pytest
from helpers.paths import ROOT
from helpers.sweeps.studies import grid_of_ranks, tell_all

from sweep.dashboard import Dashboard
from sweep.storage.open import open_storage
from trial.store.folders import StudyFolder
from trial.store.records import Result


@pytest.fixture
def study(tmp_path) -> StudyFolder:
    found = StudyFolder(tmp_path / "runs" / "old")
    tell_all(found, grid_of_ranks(4, 8), [Result(state="complete", eval_loss=2.0, steps=10), None])
    return found


@pytest.fixture
def dashboard(study) -> Iterator[Dashboard]:
    made = Dashboard(open_storage(study, repair=False), 0)
    thread = threading.Thread(target=made.serve)
    thread.start()
    yield made
    made.close()
    thread.join()


def ask(dashboard: Dashboard, path: str, method: str = "GET", **headers: str):
    """Status, headers and body of an answer; `headers` may replace `Host`."""
    port = dashboard.server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Host": f"127.0.0.1:{port}", "Content-Length": "0", **headers}.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


def cookie_of(dashboard: Dashboard) -> str:
    status, headers, _ = ask(dashboard, "/dashboard?token=" + dashboard.token)
    assert status == 303
    return headers["Set-Cookie"].partition(";")[0]


def test_the_url_gives_a_cookie_and_the_cookie_the_pages(dashboard):
    parts = urlsplit(dashboard.url)
    status, headers, _ = ask(dashboard, f"{parts.path}?{parts.query}&a=b%20c")
    assert status == 303
    assert headers["Location"] == "/dashboard?a=b+c"
    kept = headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(kept.split("; "))
    cookie = kept.partition(";")[0]
    assert ask(dashboard, "/dashboard", Cookie=cookie)[0] == 200
    status, _, body = ask(dashboard, "/api/studies", Cookie=f"other=1; {cookie}")
    assert status == 200
    assert [study["study_name"] for study in json.loads(body)["study_summaries"]] == ["old"]
    same = f"http://127.0.0.1:{dashboard.server.server_address[1]}"
    assert ask(dashboard, "/api/studies/0", Cookie=cookie, Origin=same)[0] == 200
    assert ask(dashboard, "/api/studies/0", "HEAD", Cookie=cookie)[0] == 200


def test_a_tunnel_may_have_another_port_and_name(dashboard):
    cookie = cookie_of(dashboard)
    for host in ("localhost:9000", "localhost", "127.0.0.1:9000"):
        assert ask(dashboard, "/api/studies", Host=host, Cookie=cookie)[0] == 200
        origin = f"http://{host}"
        assert ask(dashboard, "/api/studies", Host=host, Cookie=cookie, Origin=origin)[0] == 200


@pytest.mark.parametrize("path", ["/", "/dashboard", "/api/studies", "/api/studies/0", "/static/x"])
@pytest.mark.parametrize("given", ["", "gaudi_sweep=", "gaudi_sweep_PORT=wrong", '=;;a="', "é"])
def test_without_the_token_nothing_is_answered(dashboard, path, given):
    port = str(dashboard.server.server_address[1])
    headers = {"Cookie": given.replace("PORT", port)} if given else {}
    for query in ("", "?token=", "?token=wrong", "?token=%C3%A9", f"?tokens={dashboard.token}"):
        status, answered, body = ask(dashboard, path + query, **headers)
        assert status == 403
        assert "it holds a token" in json.loads(body)["reason"]
        assert "Set-Cookie" not in answered


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8080"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "evil@evil.example"},
        {"Host": ""},
        {"Host": "[::1"},
        {"Host": "0.0.0.0"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "https://127.0.0.1"},
    ],
    ids=str,
)
def test_another_sites_page_gets_nothing_even_with_the_token(dashboard, headers):
    cookie = cookie_of(dashboard)
    assert ask(dashboard, "/api/studies", Cookie=cookie, **headers)[0] == 403
    assert ask(dashboard, "/dashboard?token=" + dashboard.token, **headers)[0] == 403
    assert ask(dashboard, "/api/studies/0", "DELETE", Cookie=cookie, **headers)[0] == 403


CHANGES = [
    ("DELETE", "/api/studies/0"), ("POST", "/api/studies"), ("POST", "/api/studies/0/rename"),
    ("PUT", "/api/studies/0/note"), ("POST", "/api/trials/0/tell"),
    ("PUT", "/api/studies/0/1/note"), ("POST", "/api/trials/1/user-attrs"),
    ("POST", "/api/studies/0/1/skip"),
    ("PATCH", "/api/studies/0"), ("OPTIONS", "/api/studies/0"), ("delete", "/api/studies/0"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_what_would_change_the_study_is_refused(dashboard, study, method, path):
    cookie, before = cookie_of(dashboard), study.journal.read_bytes()
    for place in (path, f"{path}?token={dashboard.token}", f"{path}/?_method=GET"):
        status, headers, body = ask(
            dashboard, place, method, Cookie=cookie, **{"X-HTTP-Method-Override": "DELETE"}
        )
        assert status == 405
        assert headers["Allow"] == "GET, HEAD"
        assert "only reads" in json.loads(body)["reason"]
    assert study.journal.read_bytes() == before


def test_every_way_of_the_dashboard_to_change_something_is_refused(dashboard, study):
    """By the routes of the installed Optuna Dashboard, so that a later version is covered."""
    import optuna_dashboard

    application = optuna_dashboard.wsgi(optuna.storages.InMemoryStorage())
    routes = [route for route in application.routes if route.method not in ("GET", "HEAD")]
    assert len(routes) >= len([method for method, _ in CHANGES if method != "PATCH"]) - 3
    cookie = cookie_of(dashboard)
    for route in routes:
        assert ask(dashboard, route.rule, route.method, Cookie=cookie)[0] == 405


def test_reading_changes_nothing(dashboard, study):
    cookie, before = cookie_of(dashboard), study.journal.read_bytes()
    for path in ("/api/studies", "/api/studies/0", "/api/studies/0/param_importances", "/csv/0"):
        ask(dashboard, path, Cookie=cookie)
    assert study.journal.read_bytes() == before


def test_the_redirection_never_leaves_the_server(dashboard):
    for path in ("//evil.example/", "/\\evil.example", "/%5Cevil.example", "/%0d%0aX: y"):
        status, headers, _ = ask(dashboard, f"{path.replace(' ', '%20')}?token={dashboard.token}")
        assert status == 303
        assert not headers["Location"].startswith(("//", "/\\", "http"))
        assert "X" not in headers


def test_each_start_has_its_own_token(dashboard, study):
    other = Dashboard(open_storage(study, repair=False), 0)
    other.server.server_close()
    assert other.token != dashboard.token
    assert len(other.token) >= 40


def test_the_command_prints_the_url_and_no_request(study):
    words = [sys.executable, "-m", "sweep", "dashboard", str(study.path), "--port", "0"]
    process = subprocess.Popen(
        words,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    url = urlsplit(process.stdout.readline().split()[0])
    assert url.hostname == "127.0.0.1"
    connection = http.client.HTTPConnection("127.0.0.1", url.port, timeout=60)
    connection.request("GET", f"/dashboard?{url.query}")
    assert connection.getresponse().status == 303
    process.terminate()
    out, err = process.communicate(timeout=60)
    (token,) = parse_qs(url.query)["token"]
    assert process.returncode == -signal.SIGTERM
    assert token not in out + err
