"""The flags and variables of the settings, made from the fields of `Config`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click
from click.core import ParameterSource

from .. import config as settings
from ..config import SETTINGS, Config, Setting
from ..errors import ConfigError
from .errors import UsageFailed

Command = Callable[..., Any]


class RawText(click.ParamType[str]):
    """A setting as it was written. `Config` checks all of them together, and names all mistakes at once."""

    name = "text"
    envvar_list_splitter = ","


class SettingsCommand(click.Command):
    """A command whose help lists the settings under their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"Options": []}
        known = {setting.name: setting.group for setting in SETTINGS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(known.get(parameter.name or "", "Options"), []).append(record)
        for group, records in groups.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl(records)


def settings_options(
    *names: str,
    without: tuple[str, ...] = (),
    defaults: Mapping[str, object] | None = None,
    helps: Mapping[str, str] | None = None,
) -> Callable[[Command], Command]:
    """Give a command the flags of these settings, or of all of them if none is named.

    `defaults` are shown in the command's help; the command passes the same to `GivenSettings.config`.
    `helps` replaces a setting's help where the command supports less than `serve`.
    """
    own = defaults or {}
    chosen = [s for s in SETTINGS if (s.name in names if names else s.name not in without)]

    def decorate(command: Command) -> Command:
        for setting in reversed(chosen):
            default = str(own.get(setting.name, setting.default))
            command = _option(setting, default, (helps or {}).get(setting.name, setting.help))(command)
        return command

    return decorate


def _option(setting: Setting, default: str, text: str) -> Callable[[Command], Command]:
    return click.option(
        setting.flag,
        setting.name,
        type=RawText(),
        envvar=setting.variable,
        multiple=setting.repeatable,
        metavar=setting.metavar,
        help=f"{text}  [{setting.variable}; default: {default or 'none'}]",
    )


@dataclass(frozen=True)
class GivenSettings:
    """What the command line and the environment say: texts by setting, and where each came from."""

    values: dict[str, object]
    origins: dict[str, str]

    def config(self, defaults: Mapping[str, object] | None = None) -> Config:
        """The Config, with the command's own `defaults`. Raises UsageFailed, which names every mistake."""
        try:
            return settings.build({**(defaults or {}), **self.values})
        except ConfigError as error:
            # A variable with a wrong name may be the reason for the other mistakes.
            raise UsageFailed("\n".join([str(error), *settings.unknown_variables(os.environ)])) from None


def read_settings() -> GivenSettings:
    """The settings given to the running command. An empty variable counts as not set, as in most shells."""
    context = click.get_current_context()
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    for setting in SETTINGS:
        source = context.get_parameter_source(setting.name)
        if source is ParameterSource.COMMANDLINE:
            origins[setting.name] = setting.flag
        elif source is ParameterSource.ENVIRONMENT:
            origins[setting.name] = setting.variable
        if setting.name in origins:
            values[setting.name] = context.params[setting.name]
    if "redis_file" in origins:
        origins.setdefault("redis", origins["redis_file"])
    return GivenSettings(values, origins)


def warnings(config: Config) -> list[str]:
    """Sentences on variables that are no settings, and on settings that are allowed but seldom meant."""
    return [*settings.unknown_variables(os.environ), *settings.remarks(config)]
