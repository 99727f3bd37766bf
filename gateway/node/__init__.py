"""One node: `build` composes it, `Node` starts, drains and stops it, `serve` does so on signals."""

from .composition import WorkerShare, build
from .node import Node
from .serve import StopOrder, serve, stop_orders, until_stopped

__all__ = ["Node", "StopOrder", "WorkerShare", "build", "serve", "stop_orders", "until_stopped"]
