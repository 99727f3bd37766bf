"""HTTP: the demo page, which only the command dev serves."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from .responses import private_json
from .static import STATIC, file_response


class DemoPages:
    """The demo page. `info` is what it shows of this node."""

    def __init__(self, info: Mapping[str, object]) -> None:
        self._info = info

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/", self.page),
            web.get("/demo/info", self.describe),
            web.get(r"/demo/{file:[a-z]+\.(?:css|js|svg|png)}", self.asset),
        ]

    async def page(self, _request: web.Request) -> web.StreamResponse:
        return file_response("index.html")

    async def asset(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["file"]
        if not (STATIC / name).is_file():
            raise web.HTTPNotFound
        return file_response(name)

    async def describe(self, _request: web.Request) -> web.Response:
        """GET /demo/info: the node, and commands that publish to it."""
        return private_json(self._info)
