"""The command line and YAML files: a flag or a line for each setting of a kind of chains."""

import argparse
import dataclasses
import os
import sys
import typing
from pathlib import Path

import yaml

from gdzoo.config import TrainConfig
from gdzoo.errors import clean, one_line
from gdzoo.settings import ConfigError, OtherFlag, Settings, plain_type

MOST_USED = TrainConfig.most_used
NOTES = "notes on other flags"  # in argparse's namespace; no flag has such a name
NULL = ("", "~", "null")
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class _Parser(argparse.ArgumentParser):
    """Reports errors in one line, without the long usage text."""

    def error(self, message):
        raise ConfigError(message)


def make_parser(kind: type[Settings] = TrainConfig) -> argparse.ArgumentParser:
    """The command line, a flag for each field, grouped."""
    parser = _Parser(
        prog=f"accelerate launch {kind.script}",
        usage="%(prog)s [--FLAG VALUE ...]",
        description=kind.description,
        add_help=False,  # its group would be the first
    )
    specs = _flags(kind)
    first = parser.add_argument_group("most used")
    for name in kind.most_used:
        _add(first, specs.pop(name))
    first.add_argument("--config", metavar="FILE.yaml", help="settings from a file; the command line wins")
    first.add_argument("-h", "--help", action="help", help="show all flags")
    groups = {}
    for spec in specs.values():
        title = spec.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add(groups[title], spec)
    for name, other in kind.other_flags.items():
        parser.add_argument(f"--{name}", action=_Other, other=other, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


class _Other(argparse.Action):
    """A flag of diffusers' scripts that is no setting here: it is refused, or noted."""

    def __init__(self, *args, other: OtherFlag, **kwargs):
        super().__init__(*args, nargs=other.values, **kwargs)
        self.other = other

    def __call__(self, parser, namespace, values, option_string=None):
        if self.other.refused:
            parser.error(f"--{self.dest}: {self.other.text}")
        if self.other.text:
            notes = getattr(namespace, NOTES, {}) | {self.dest: self.other.text}
            setattr(namespace, NOTES, notes)


def _flags(kind: type[Settings]) -> dict[str, dataclasses.Field]:
    return {spec.name: spec for spec in dataclasses.fields(kind) if spec.metadata["flag"]}


def _add(group, spec: dataclasses.Field):
    group.add_argument(f"--{spec.name}", default=argparse.SUPPRESS, **_argument(spec))


def _argument(spec: dataclasses.Field) -> dict:
    kind = plain_type(spec.type)
    text = spec.metadata["help"].replace("%", "%%")
    default = spec.default_factory() if spec.default is dataclasses.MISSING else spec.default
    if default not in (None, False, []):
        text += f" (default: {' '.join(default) if isinstance(default, list) else default})"
    if kind is bool:
        return dict(action=argparse.BooleanOptionalAction, help=text)
    nargs = dict(nargs="+") if typing.get_origin(spec.type) is list else {}
    if spec.metadata["choices"]:
        text += f" [{', '.join(spec.metadata['choices'])}]"
    return dict(type=kind, help=text, metavar=spec.name.split("_")[-1].upper(), **nargs)


def parse_args(argv: list[str], kind: type[Settings] = TrainConfig) -> Settings:
    """The config of a command line; a flag or a file that is wrong ends the process with code 2 and one line."""
    parser, notes = make_parser(kind), {}
    try:
        if file := parser.parse_args(argv).config:
            try:
                settings, notes = read_settings(file, kind)
                parser.set_defaults(**settings)
                parser.parse_args([])  # converts and checks the values of the file alone
            except ConfigError as error:
                raise ConfigError(f"--config {file}: {error}") from error
        flags = vars(parser.parse_args(argv))
        del flags["config"]
        notes |= flags.pop(NOTES, {})
        config = kind(**flags)
    except ConfigError as error:
        parser.exit(2, clean(f"gdzoo: {error}") + "\n")
    if notes and os.environ.get("RANK", "0") == "0":
        print(*(f"gdzoo: --{name}: {text}" for name, text in notes.items()), sep="\n", file=sys.stderr)
    return config


def read_settings(file: str, kind: type[Settings] = TrainConfig) -> tuple[dict, dict[str, str]]:
    """The settings in a YAML file, as text that the parser converts as it does the command line's, and notes.

    Raises:
        ConfigError
    """
    try:
        # BaseLoader leaves every value a string: others make False of `mixed_precision: no`.
        settings = yaml.load(Path(file).read_text(encoding="utf-8"), yaml.BaseLoader) or {}
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ConfigError(one_line(error, 400)) from error
    if not isinstance(settings, dict):
        raise ConfigError("write one setting a line, such as `seed: 42`")
    known, others = _flags(kind), {name: kind.other_flags[name] for name in settings if name in kind.other_flags}
    for name in settings:
        if name in others and others[name].refused:
            raise ConfigError(f"{name}: {others[name].text}")
        if name not in known and name not in others:
            raise ConfigError(f"there is no setting {name!r}")
    values = {
        name: _value(known[name], value) for name, value in settings.items() if value not in NULL and name not in others
    }
    return values, {name: other.text for name, other in others.items() if other.text}


def _value(spec: dataclasses.Field, value: str | list[str]):
    """A value of a file for `parser.set_defaults`, which converts strings but no lists."""
    kind, many = plain_type(spec.type), typing.get_origin(spec.type) is list
    if isinstance(value, dict) or isinstance(value, list) and not many:
        raise ConfigError(f"{spec.name} takes one value, not {'a list' if isinstance(value, list) else 'a mapping'}")
    if kind is bool:
        if value.lower() not in BOOLEANS:
            raise ConfigError(f"{spec.name} takes true or false, not {value!r}")
        return BOOLEANS[value.lower()]
    if not many:
        return value
    try:
        values = [kind(item) for item in ([value] if isinstance(value, str) else value)]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--{spec.name}: {one_line(error)}") from error
    if not values:
        raise ConfigError(f"--{spec.name} needs at least one value")
    return values
