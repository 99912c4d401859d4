"""Serve Optuna Dashboard over a study: to look at, on loopback, for who has the URL of this start.

Whoever is logged in on a machine reaches its loopback ports, and so does every page that a browser
there has open. So each request must carry a token made at the start, name a loopback host (a page
of another name whose address was changed to 127.0.0.1 names its own), and only read.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from optuna.storages import BaseStorage

HOST = "127.0.0.1"
HOSTS = (HOST, "localhost")
"""Names that a request may use; any port, since a tunnel may have another one at its end."""
READING = ("GET", "HEAD")
PARAMETER = "token"
SECONDS = 30.0
"""A connection that sends nothing for so long is closed."""


class Guard:
    """A WSGI application that passes on what reads, comes from its own pages and has the token.

    The first request has the token in its URL, and is answered by a cookie and the same URL without
    it, so that neither the browser's history nor the pages show the token.
    """

    def __init__(self, application: WSGIApplication, token: str) -> None:
        self._application = application
        self._token = token
        self._lock = threading.Lock()
        """The application was written for a server that answers one request after another."""

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        """Answer a request, or pass it on."""
        host = environ.get("HTTP_HOST", "")
        if _host_name(host) not in HOSTS:
            return _refuse(start, "403 Forbidden", f"the host must be {' or '.join(HOSTS)}")
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and origin != f"http://{host}":
            return _refuse(start, "403 Forbidden", "the request comes from another site's page")
        query = parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        given = [value for name, value in query if name == PARAMETER]
        if not any(self._is_token(text) for text in (*given, self._cookie(environ))):
            why = "open the URL that `gaudi-sweep dashboard` has printed: it holds a token"
            return _refuse(start, "403 Forbidden", why)
        if environ["REQUEST_METHOD"] not in READING:
            why = "this dashboard only reads: the study's driver is its one writer"
            return _refuse(start, "405 Method Not Allowed", why, ("Allow", ", ".join(READING)))
        if given:
            rest = [(name, value) for name, value in query if name != PARAMETER]
            return self._set_cookie(environ, start, urlencode(rest))
        with self._lock:
            return self._application(environ, start)

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self._token.encode())

    def _cookie(self, environ: WSGIEnvironment) -> str:
        try:
            found = SimpleCookie(environ.get("HTTP_COOKIE", "")).get(_cookie_name(environ))
        except CookieError:
            return ""
        return found.value if found else ""

    def _set_cookie(
        self, environ: WSGIEnvironment, start: StartResponse, query: str
    ) -> Iterable[bytes]:
        """Answer with the cookie and a redirection to the same path on this server."""
        # Two slashes at the beginning would name another server.
        path = "/" + environ.get("PATH_INFO", "").lstrip("/\\")
        cookie = f"{_cookie_name(environ)}={self._token}; Path=/; HttpOnly; SameSite=Strict"
        headers = [
            ("Location", f"{_quoted(path)}{'?' * bool(query)}{query}"),
            ("Set-Cookie", cookie),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
            ("Content-Length", "0"),
        ]
        start("303 See Other", headers)
        return [b""]


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _quoted(path: str) -> str:
    # WSGI decodes the path as Latin-1.
    return quote(path.encode("latin-1", "replace"))


def _cookie_name(environ: WSGIEnvironment) -> str:
    """The cookie of this server: a browser sends the cookies of all ports of a host."""
    return f"gaudi_sweep_{environ['SERVER_PORT']}"


def _refuse(
    start: StartResponse, status: str, reason: str, *headers: tuple[str, str]
) -> Iterable[bytes]:
    """An answer as the dashboard's own errors: its pages show `reason`."""
    body = json.dumps({"reason": reason}).encode()
    sizes = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start(status, [*sizes, ("Cache-Control", "no-store"), *headers])
    return [body]


class _Server(ThreadingMixIn, WSGIServer):
    """Answers in threads: browsers keep connections open before they ask anything."""

    daemon_threads = True


class _Handler(WSGIRequestHandler):
    """Prints no requests: the first of them holds the token."""

    timeout = SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


class Dashboard:
    """The server of a storage's dashboard; `serve` answers until it is interrupted."""

    def __init__(self, storage: BaseStorage, port: int) -> None:
        """Listen on a port of loopback; 0 takes a free one.

        Raises:
            OSError: the port is taken.
        """
        import optuna_dashboard

        self.token = secrets.token_urlsafe(32)
        guard = Guard(optuna_dashboard.wsgi(storage), self.token)
        self.server = make_server(HOST, port, guard, server_class=_Server, handler_class=_Handler)

    @property
    def url(self) -> str:
        """What to open, with the token of this start."""
        port = self.server.server_address[1]
        return f"http://{HOST}:{port}/dashboard?{PARAMETER}={self.token}"

    def serve(self) -> None:
        """Answer requests until `KeyboardInterrupt` or `close`."""
        with self.server:
            self.server.serve_forever()

    def close(self) -> None:
        """End `serve`, which runs in another thread."""
        self.server.shutdown()
