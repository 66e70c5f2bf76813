"""The review's addresses: which of them is which answer.

Knows: addresses, statuses and the files of the page. Knows nothing about who may ask (`guard`) or what is answered
(`answers`).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.errors import DengineError, UsageError
from engines.review.answers import Pages
from engines.review.guard import TooLargeError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

STATIC = Path(__file__).parent / "static"
_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_KEPT = "private, max-age=86400"


def make_app(pages: Pages) -> "Starlette":
    """The application, to be put behind a `Guard`."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    def refused(error: Exception, status: int) -> "Response":
        return JSONResponse({"error": " ".join(str(error).split())}, status_code=status)

    def told(answer: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Any:
        from starlette.concurrency import run_in_threadpool

        async def endpoint(request: "Request") -> "Response":
            try:
                asked = await _question(request)
                return JSONResponse(await run_in_threadpool(answer, asked), headers={"cache-control": "no-store"})
            except TooLargeError as error:
                return refused(error, 413)
            except (UsageError, ValueError, TypeError, KeyError, RecursionError) as error:
                return refused(error, 400)
            except (DengineError, OSError) as error:
                return refused(error, 500)

        return endpoint

    def shown(answer: Callable[..., tuple[bytes, str]]) -> Any:
        def endpoint(request: "Request") -> "Response":
            try:
                data, kind = answer(*request.path_params.values())
            except (DengineError, OSError, ValueError) as error:
                return refused(error, 404)
            return Response(data, media_type=kind, headers={"cache-control": _KEPT})

        return endpoint

    def static(request: "Request") -> "Response":
        name = request.path_params.get("name", "index.html")
        if name not in files:
            return refused(UsageError("no such page."), 404)
        return Response(files[name], media_type=_KINDS[Path(name).suffix], headers={"cache-control": "no-cache"})

    files = {file.name: file.read_bytes() for file in STATIC.iterdir() if file.suffix in _KINDS}
    reads = ("about", "histogram", "window", "find", "image", "crop_window", "changes", "audit")
    writes = (
        "query", "counts", "crops", "decide", "decide_all", "accept", "undo", "thresholds", "reasons", "balance",
        "near", "items",
    )  # fmt: skip
    api = [Route(f"/api/{name}", told(getattr(pages, name)), methods=["GET"]) for name in reads]
    api += [Route(f"/api/{name}", told(getattr(pages, name)), methods=["POST"]) for name in writes]
    views = [
        Route("/thumb/{row:int}", shown(pages.thumb)), Route("/image/{row:int}", shown(pages.whole)),
        Route("/reference/{row:int}", shown(pages.reference)), Route("/crop/{row:int}/{corners}", shown(pages.cut)),
        Route("/", static), Route("/{name}", static),
    ]  # fmt: skip
    return Starlette(routes=[*api, *views])


async def _question(request: "Request") -> Mapping[str, Any]:
    if request.method == "GET":
        return dict(request.query_params)
    if "application/json" not in request.headers.get("content-type", ""):
        raise UsageError("JSON was expected.")
    value = json.loads(await request.body())
    if not isinstance(value, Mapping):
        raise UsageError("a JSON object was expected.")
    return value
