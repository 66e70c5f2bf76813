"""Who may ask the review's server, and for how much: what stands before every request.

Knows: the token, hosts, origins, sizes and the headers of every answer. Knows nothing about what is asked for.

The server is on 127.0.0.1, which any page that a browser has open can reach. So every address begins with a secret;
the host must be this machine's own name, or another site's name could be made to mean 127.0.0.1; and a request that
says where it comes from must come from the page itself.
"""

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BODY = 1 << 20  # bytes of a request
_HOSTS = ("127.0.0.1", "localhost", "[::1]")
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Guard:
    """An ASGI application that lets through what may be asked of another one, without the token in its path."""

    def __init__(self, app: "ASGIApp", token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer, or hand on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no web sockets here
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refusal(scope["path"], headers)
        if refused is not None:
            await _answer(send, *refused)
            return
        inner = {**scope, "path": scope["path"][len(self._token) + 1 :] or "/"}
        inner["raw_path"] = inner["path"].encode()
        await self._app(inner, _limited(receive), _with_headers(send))

    def _refusal(self, path: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """The status and the line for a request that is not let through."""
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if name not in _HOSTS:
            return 403, "This server answers 127.0.0.1 and localhost alone."
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{host}":
            return 403, "Another site may not ask this server."
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "Another site may not ask this server."
        first = path[1:].partition("/")[0]
        if not secrets.compare_digest(first.encode("utf-8", "replace"), self._token.encode()):
            return 403, "The address lacks the right token: take the one that dengine review printed."
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > MOST_BODY:
            return 413, f"At most {MOST_BODY} bytes are taken."
        return None


class TooLargeError(Exception):
    """A body that goes on beyond MOST_BODY, whatever its header said."""


def _limited(receive: "Receive") -> "Receive":
    taken = 0

    async def limited() -> "Message":
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > MOST_BODY:
            raise TooLargeError
        return message

    return limited


def _with_headers(send: "Send") -> "Send":
    async def with_headers(message: "Message") -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *_encoded()]
        await send(message)

    return with_headers


async def _answer(send: "Send", status: int, text: str) -> None:
    body = text.encode()
    headers: list[Any] = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *_encoded()]})
    await send({"type": "http.response.body", "body": body})


def _encoded() -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in HEADERS.items()]
