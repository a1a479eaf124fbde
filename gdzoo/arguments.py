"""The command line and YAML files: a flag or a line for each field of TrainConfig."""

import argparse
import dataclasses
import typing
from pathlib import Path

import yaml

from gdzoo.config import ConfigError, TrainConfig, plain_type
from gdzoo.errors import clean, one_line

# The flags that most people need, which --help shows first; all others follow in the groups of their settings.
MOST_USED = (
    *("benchmark", "strategy", "recipe", "seeds", "task_datasets", "resolution", "pretrained_model_name_or_path"),
    *("output_dir", "resume_from_checkpoint", "chains", "push_to_hub", "hub_namespace"),
)
NULL = ("", "~", "null")
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class _Parser(argparse.ArgumentParser):
    """Reports errors in one line, without the long usage text."""

    def error(self, message):
        raise ConfigError(message)


def make_parser() -> argparse.ArgumentParser:
    """The command line, a flag for each field, grouped."""
    parser = _Parser(
        prog="accelerate launch gdzoo/train.py",
        usage="%(prog)s [--FLAG VALUE ...]",
        description="Train a diffusion model on one task after another, with one or more strategies. Where no default"
        " is shown, the benchmark's recipe decides (gdzoo/data/benchmarks.py).",
        add_help=False,  # its group would be the first
    )
    specs = {spec.name: spec for spec in dataclasses.fields(TrainConfig)}
    first = parser.add_argument_group("most used")
    for name in MOST_USED:
        _add(first, specs.pop(name))
    first.add_argument("--config", metavar="FILE.yaml", help="settings from a file; the command line wins")
    first.add_argument("-h", "--help", action="help", help="show all flags")
    groups = {}
    for spec in specs.values():
        title = spec.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add(groups[title], spec)
    return parser


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


def parse_args(argv: list[str]) -> TrainConfig:
    """The config of a command line; a flag or a file that is wrong ends the process with code 2 and one line."""
    parser = make_parser()
    try:
        if file := parser.parse_args(argv).config:
            try:
                parser.set_defaults(**read_settings(file))
                parser.parse_args([])  # converts and checks the values of the file alone
            except ConfigError as error:
                raise ConfigError(f"--config {file}: {error}") from error
        flags = vars(parser.parse_args(argv))
        del flags["config"]
        return TrainConfig(**flags)
    except ConfigError as error:
        parser.exit(2, clean(f"gdzoo: {error}") + "\n")


def read_settings(file: str) -> dict:
    """The settings in a YAML file, as text that the parser converts as it does the command line's.

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
    known = {spec.name: spec for spec in dataclasses.fields(TrainConfig)}
    for name in settings:
        if name not in known:
            raise ConfigError(f"there is no setting {name!r}")
    return {name: _value(known[name], value) for name, value in settings.items() if value not in NULL}


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
