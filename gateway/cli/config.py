"""The command config."""

from __future__ import annotations

from pathlib import Path

import click
import orjson

from .. import config as settings
from .settings import SettingsCommand, read_settings, settings_options, warnings


@click.command(cls=SettingsCommand, short_help="Print or check the settings.")
@click.option("--check", is_flag=True, help="Only check the settings; exit code 2 if one is wrong.")
@click.option("--json", "as_json", is_flag=True, help="Print the settings in force as JSON.")
@click.option("--markdown", is_flag=True, help="Print the reference of all settings as Markdown.")
@click.option(
    "--into",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="With --markdown: write it into this file, between <!-- settings --> and <!-- /settings -->.",
)
@settings_options()
def config(check: bool, as_json: bool, markdown: bool, into: tuple[Path, ...], **_: object) -> None:
    """Print the settings in force and where each came from. Passwords are not shown."""
    if markdown:
        _print_reference(into)
        return
    given = read_settings()
    found = given.config()
    for remark in warnings(found):
        click.echo(f"Warning: {remark}", err=True)
    rows = [(name, value, given.origins.get(name, "default")) for name, value in found.shown().items()]
    if check:
        click.echo("The settings are right.")
    elif as_json:
        shown = {name: {"value": value, "from": origin} for name, value, origin in rows}
        click.echo(orjson.dumps(shown, option=orjson.OPT_INDENT_2))
    else:
        named = [(name, value or "none", origin) for name, value, origin in rows]
        _print_table([("setting", "value", "from"), *named])


def _print_reference(into: tuple[Path, ...]) -> None:
    for path in into:
        path.write_text(settings.with_table(path.read_text("utf-8")), "utf-8")
    if not into:
        click.echo(settings.table(), nl=False)


def _print_table(rows: list[tuple[str, str, str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, origin in rows:
        click.echo(f"{name:{widths[0]}}  {value:{widths[1]}}  {origin}")
