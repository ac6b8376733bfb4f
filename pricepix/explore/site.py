"""The ASGI application: the page's files and the answers as JSON, behind a token, for this machine alone."""

from __future__ import annotations

import importlib.resources
import secrets
from collections.abc import Callable
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pricepix._checks import printable
from pricepix.explore.answers import Answers
from pricepix.explore.query import Query

__all__ = ["Guard", "application"]

_HOSTS: Final = ("127.0.0.1", "localhost", "[::1]")
_FILES: Final = {
    "index.html": "text/html; charset=utf-8",
    "explore.css": "text/css; charset=utf-8",
    "explore.js": "text/javascript; charset=utf-8",
    "state.js": "text/javascript; charset=utf-8",
    "pixels.js": "text/javascript; charset=utf-8",
    "chart.js": "text/javascript; charset=utf-8",
    "window.js": "text/javascript; charset=utf-8",
    "sheet.js": "text/javascript; charset=utf-8",
}
# No script, style or picture but our own files; nobody but this page may ask, and only notebooks of this machine may
# show it in a frame.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self' http://127.0.0.1:* http://localhost:* https://localhost:*"
)
_HEADERS: Final = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class Guard:
    """Let only requests through that know the token and were addressed to this machine by name.

    The address of the page is ``/TOKEN/``. A page of another site cannot know the token; one whose name was made to
    point to this machine (DNS rebinding) sends its own name as the host. Responses get the headers of `_HEADERS`, and
    never one that lets other sites read them.

    Parameters
    ----------
    app : ASGI application
        Sees paths without the token.
    token : str
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
            await send(message)

        refused = self._refusal(scope)
        if refused is not None:
            await refused(scope, receive, send_with_headers)
            return
        rest = scope["path"][len(self._token) + 1 :]
        await self._app({**scope, "path": rest, "raw_path": rest.encode()}, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        host = hosts[0].lower() if len(hosts) == 1 else ""
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name not in _HOSTS:
            return _error(403, "this page answers to 127.0.0.1 and localhost only")
        first, _, rest = scope["path"].removeprefix("/").partition("/")
        # Compared in constant time, so that how long a refusal takes says nothing of the token.
        if not secrets.compare_digest(first.encode("utf-8", "surrogatepass"), self._token):
            return _error(403, "this address lacks the token of the explorer: open the one that it printed")
        if not rest and not scope["path"].endswith("/"):
            return _error(404, "the address of the page ends with a slash")
        if scope["method"] not in ("GET", "HEAD"):
            return _error(405, "this page can only be read")
        return None


def application(answers: Answers, token: str) -> Guard:
    """Return the application that answers for a set of images."""
    routes = [Route("/", _file("index.html")), *(Route(f"/{name}", _file(name)) for name in _FILES)]
    for name in ("about", "instruments", "window", "redraw", "explain", "sheet"):
        routes.append(Route(f"/api/{name}", _answer(getattr(answers, name))))
    files = {
        "sheet.csv": "text/csv; charset=utf-8",
        "bars.csv": "text/csv; charset=utf-8",
        "image.png": "image/png",
    }
    for name, kind in files.items():
        routes.append(Route(f"/api/{name}", _download(getattr(answers, name.replace(".", "_")), kind)))
    told = {
        404: lambda request, error: _error(404, "there is nothing at this address"),
        500: lambda request, error: _error(500, "the explorer failed at this: see what it printed"),
    }
    return Guard(Starlette(routes=routes, exception_handlers=told), token)


# Endpoints that are not coroutines run on threads: what they read or draw takes milliseconds to seconds.


def _file(name: str) -> Callable[[Request], Response]:
    def endpoint(request: Request) -> Response:
        content = importlib.resources.files("pricepix.explore").joinpath("page", name).read_bytes()
        return Response(content, headers={"content-type": _FILES[name]})

    return endpoint


def _answer(method: Callable[[Query], Any]) -> Callable[[Request], Response]:
    def endpoint(request: Request) -> Response:
        return _tried(request, lambda query: JSONResponse(method(query)))

    return endpoint


def _download(method: Callable[[Query], tuple[bytes, str]], kind: str) -> Callable[[Request], Response]:
    def made(query: Query) -> Response:
        content, name = method(query)
        # Names of ours: nothing in them comes from data.
        return Response(
            content, headers={"content-type": kind, "content-disposition": f'attachment; filename="{name}"'}
        )

    return lambda request: _tried(request, made)


def _tried(request: Request, make: Callable[[Query], Response]) -> Response:
    """Return a response, or why there is none: 400 for what cannot be read, 404 for what is not there."""
    try:
        repeated = len(request.query_params.multi_items()) != len(request.query_params)
        if repeated:
            raise ValueError("a parameter is given twice: give each once")
        return make(Query(request.query_params))
    except LookupError as error:
        return _error(404, error.args[0] if error.args else error)
    except (ValueError, TypeError) as error:
        return _error(400, error)
    except (ImportError, OSError, MemoryError) as error:
        return _error(503, error)


def _error(status: int, why: Any) -> JSONResponse:
    return JSONResponse({"error": printable(str(why), "")[:2000]}, status_code=status)
