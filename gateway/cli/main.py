"""The command `webflow-gateway`. Each of its commands is a module beside this one.

The modules import what most commands do not need (aiohttp, redis-py) inside their functions, so that
`--help`, `id` and `config` start fast.
"""

from __future__ import annotations

import click

from .. import __version__
from .announce import announce
from .canary import canary
from .config import config
from .dev import dev
from .drill import drill
from .events import events
from .id import id_
from .output import Commands
from .publish import publish
from .serve import serve
from .watch import watch


@click.group(
    name="webflow-gateway",
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__)
def commands() -> None:
    """Tells a waiting browser at once that its login or payment was approved."""


for command in (serve, dev, publish, announce, watch, events, canary, id_, config, drill):
    commands.add_command(command)
