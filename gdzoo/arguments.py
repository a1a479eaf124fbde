"""How does a command line, or a file of settings, become a config? A flag for each field of TrainConfig."""

import argparse
import dataclasses
import typing
from pathlib import Path

import yaml

from gdzoo.config import ConfigError, TrainConfig, plain_type


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage of so many flags would bury it."""

    def error(self, message):
        raise ConfigError(message)


def make_parser() -> argparse.ArgumentParser:
    """The command line, a flag for each field, grouped."""
    parser = _Parser(
        prog="accelerate launch gdzoo/train.py",
        description="Train a diffusion model on one task after another, with one or more strategies. Where no default"
        " is shown, the benchmark's recipe decides (gdzoo/benchmarks.py).",
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="settings from a file; the command line wins")
    groups = {}
    for spec in dataclasses.fields(TrainConfig):
        group = groups.setdefault(spec.metadata["group"], None) or parser.add_argument_group(spec.metadata["group"])
        groups[spec.metadata["group"]] = group
        group.add_argument(f"--{spec.name}", default=argparse.SUPPRESS, **_argument(spec))
    return parser


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


def _yaml_arguments(file: str) -> list[str]:
    """A settings file as command-line arguments, so that both are read and checked alike."""
    try:
        settings = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: no UTF-8, or a date such as 2020-13-45
        raise ConfigError(f"--config {file}: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"--config {file}: it holds lines such as `seed: 42`")
    known = {spec.name: spec for spec in dataclasses.fields(TrainConfig)}
    arguments = []
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"--config {file}: there is no setting {name!r}")
        if value is False and known[name].metadata["choices"]:
            value = "no"  # YAML's way of reading `mixed_precision: no`
        if plain_type(known[name].type) is bool and isinstance(value, bool):
            arguments.append(f"--{'' if value else 'no-'}{name}")
        elif isinstance(value, list):
            if typing.get_origin(known[name].type) is not list:
                raise ConfigError(f"--config {file}: {name} takes one value, not a list")
            arguments += [f"--{name}", *map(str, value)]
        elif value is not None:
            if plain_type(known[name].type) is bool:
                raise ConfigError(f"--config {file}: {name} takes true or false, not {value!r}")
            arguments.append(f"--{name}={value}")
    return arguments


def parse_args(argv: list[str]) -> TrainConfig:
    """The config of a command line; what it does not know ends the process with code 2 and one line."""
    parser = make_parser()
    try:
        flags = vars(parser.parse_args(argv))
        file = flags.pop("config")
        return TrainConfig(**(_read_yaml(file) if file else {}) | flags)
    except ConfigError as error:
        parser.exit(2, f"gdzoo: {error}\n")


def _read_yaml(file: str) -> dict:
    """The settings of a file, read as the command line would be."""
    arguments = _yaml_arguments(file)
    try:
        settings = vars(make_parser().parse_args(arguments))
    except ConfigError as error:
        raise ConfigError(f"--config {file}: {error}") from error
    settings.pop("config")
    return settings
