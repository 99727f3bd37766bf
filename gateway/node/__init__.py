"""One node: `build` composes it, `Node` starts, drains and stops it, `serve` does so on signals."""

from .composition import WorkerShare, build
from .node import Node
from .serve import EXIT_DRAIN_CUT, serve, until_stopped
from .signals import StopOrder, handle_stop_signals, reread, stop_orders

__all__ = [
    "Node", "WorkerShare", "build", "StopOrder", "stop_orders", "handle_stop_signals", "reread", "serve",
    "until_stopped", "EXIT_DRAIN_CUT",
]  # fmt: skip
