"""The command serve."""

from __future__ import annotations

from contextlib import ExitStack

import click
import structlog

from ..config import EMBEDDED
from ..telemetry import logs
from .runner import embedded_valkey, leave, run_node
from .settings import SettingsCommand, read_settings, settings_options, warnings


@click.command(cls=SettingsCommand)
@settings_options()
def serve(**_: object) -> None:
    """Run a node until SIGTERM or Ctrl-C.

    SIGTERM drains: the node turns unready and, after --drain-delay, closes its sessions evenly over
    --drain-seconds. SIGINT (Ctrl-C) stops without a drain. A second signal of either kind ends the node at
    once.
    """
    config = read_settings().config()
    logs.configure(config.log_level, config.log_format, config.node)
    logs.capture_output(stdout=True)
    logs.protect_crash_reports()
    log = structlog.get_logger()
    for remark in warnings(config):
        log.warning("setting", remark=remark)
    with ExitStack() as stack:
        if config.redis == EMBEDDED:
            valkey = stack.enter_context(embedded_valkey())
            log.info("embedded valkey", url=valkey.url, pid=valkey.pid)
            config = config.model_copy(update={"redis": valkey.url})
        code = run_node(config)
    leave(code)
