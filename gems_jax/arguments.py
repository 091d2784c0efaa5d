"""Reads the command line: a command, its options, and every field of the configuration."""

import argparse
import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

from gems_jax.config.checks import check
from gems_jax.config.files import checked_node, compose, read_config, section_of, wrong_leaf
from gems_jax.config.paths import PATHS, beside, is_path
from gems_jax.config.ranges import CHOICES, hints_of, refuse, wrong_value
from gems_jax.config.renamed import current_name, current_node, old_names, say_renamed
from gems_jax.config.run import Config

_ABOUT = "Gradient multi-subspace tuning for search and recommendation."


class Options:
    """The options of one command, while they are added.

    Args:
      parser: of the command.
      known: name to type of what a configuration file of this command may hold; options are added to it.
    """

    def __init__(self, parser: Any, known: dict[str, Any]) -> None:
        self._parser = parser
        self._known = known

    def add(self, option: str, kind: Any, about: str, **how: Any) -> None:
        """An option with a value; ``how`` has a ``default``, or ``required``."""
        self._parser.add_argument(option, type=kind, help=about, **how)
        self._known[option.lstrip("-")] = kind if "default" not in how or how["default"] is not None else kind | None

    def flag(self, option: str, about: str) -> None:
        """An option without a value; a printed configuration has it, too."""
        self._parser.add_argument(option, action="store_true", help=about)
        self._known[option.lstrip("-").replace("-", "_")] = bool

    def word(self, name: str, about: str, **how: Any) -> None:
        """A word that has its meaning from its place."""
        self._parser.add_argument(name, type=str, help=about, **how)

    def section(self, name: str, kind: type) -> None:
        """A section of fields, as a configuration file has them."""
        self._parser.add_class_arguments(kind, name)
        self._known[name] = kind


@dataclasses.dataclass(frozen=True, eq=False)
class Command:
    """One command of ``gems-jax``.

    Args:
      about: what it does, for the help.
      run: does it, given the options; returns the exit code.
      add_options: adds the options that only this command has.
      config: ``"given"``: it takes ``--config`` and fields one by one; ``"of a run"``: it works on the finished run in
        ``--workdir``, without ``--config`` with its own; ``"none"``: it makes or needs no configuration.
      words: word that it needs, to what to call it when it is missing.
    """

    about: str
    run: Callable[[Any], int]
    add_options: Callable[[Options], None] = lambda options: None
    config: Literal["given", "of a run", "none"] = "given"
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)


def parse_options(argv: list[str], commands: Mapping[str, Command]) -> tuple[str, Any]:
    """The command and its options, those of the configuration among them.

    Args:
      argv: words behind the program's name.
      commands: those that there are, by name.

    Raises:
      ValueError: options or fields that are unknown (with the nearest valid one) or cannot have their values.
    """
    argv = _current_words(argv)
    name, words = argv[0] if argv else "", argv[1:]
    if name in ("-h", "--help"):
        _listed(commands).print_help()
        raise SystemExit(0)
    if name not in commands:
        said = f"there is no command {name!r}" if name else "a command is needed"
        near = difflib.get_close_matches(name, commands, n=1)
        meant = f"did you mean {near[0]!r}?" if near else "gems-jax --help says what each does"
        raise ValueError(f"{said}: {', '.join(commands)}; {meant}")
    command = commands[name]
    parser, known = _parser(name, command)
    try:
        _check_fields(words, known)
        parsed = parser.parse_args(words)
        if command.config == "of a run" and not parsed.config:
            # Without a configuration, the one the run was made with; overrides come after it.
            from gems_jax.training.workdir.copies import config_file

            kept = config_file(parsed.workdir)
            if kept.is_file():
                from gems_jax.training.workdir.files import read_kept_config

                read_kept_config(kept)
                parsed = parser.parse_args(["--config", str(kept), *words])
        made = parser.instantiate(parsed)
    except (argparse.ArgumentError, ValueError) as error:
        raise ValueError(_explained(str(error), known, name, command.words)) from None
    except RecursionError:
        raise ValueError("a value on the command line is nested too deeply") from None
    made.given = argv
    for option in ("workdir", "out", "requests", "token_file", "page", "results", "identifiers", "ids"):
        if made.get(option):
            made[option] = beside(made[option], "")
    return name, made


def parse_config(argv: list[str]) -> Config:
    """A configuration from ``--config`` and fields alone, for programs with options of their own.

    Raises:
      ValueError: as `parse_options`.
    """
    argv = _current_words(argv)
    parser, known = ArgumentParser(exit_on_error=False, allow_abbrev=False), hints_of(Config)
    add_config(parser, known)
    parser.add_class_arguments(Config, None)
    try:
        _check_fields(argv, known)
        return config_of(parser.instantiate(parser.parse_args(argv)))
    except (argparse.ArgumentError, ValueError) as error:
        raise ValueError(_explained(str(error), known)) from None


def config_of(options: Any) -> Config:
    """The configuration among a command's options, checked.

    Raises:
      ValueError: fields that cannot be, or not together.
    """
    config = Config(**{entry.name: options[entry.name] for entry in dataclasses.fields(Config)})
    check(config)
    return _with_paths(config, "")


def _with_paths(section: Any, prefix: str) -> Any:
    """A section whose paths do not begin with ``~`` any more: of ``--data.dir=~/data`` the shell leaves it."""
    expanded: dict[str, Any] = {}
    for entry in dataclasses.fields(section):
        name, value = prefix + entry.name, getattr(section, entry.name)
        if dataclasses.is_dataclass(value):
            expanded[entry.name] = _with_paths(value, name + ".")
        elif is_path(name, value) and isinstance(value, str):
            expanded[entry.name] = beside(value, "")
        elif isinstance(value, dict) and name in PATHS:
            expanded[entry.name] = {key: beside(each, "") for key, each in value.items()}
    return dataclasses.replace(section, **expanded)


def _listed(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """What prints the list of commands."""
    parser = argparse.ArgumentParser(prog="gems-jax", description=_ABOUT)
    parser.add_argument("--version", action="store_true", help="print the version")
    places = parser.add_subparsers(
        title="commands", metavar="COMMAND", help="gems-jax COMMAND --help lists its options"
    )
    for name, command in commands.items():
        places.add_parser(name, help=command.about)
    return parser


@functools.cache
def _parser(name: str, command: Command) -> tuple[ArgumentParser, dict[str, Any]]:
    """A command's parser, and the types of what may stand in a configuration file of it, by name."""
    parser = ArgumentParser(prog=f"gems-jax {name}", description=command.about, exit_on_error=False, allow_abbrev=False)
    known: dict[str, Any] = {}
    _add_options(parser, command, known)
    if command.config != "none":
        parser.add_class_arguments(Config, None)
        for action in parser._actions:
            if action.dest in CHOICES:  # text as far as the parser knows
                action.metavar = f"{{{','.join(CHOICES[action.dest]())}}}"
        known |= hints_of(Config)
    return parser, known


def option_words(commands: Mapping[str, Command]) -> tuple[list[str], dict[str, list[str]]]:
    """Words that begin with ``--``: the fields of the configuration, and by command what else it takes."""
    fields = [f"--{name}" for name in _dotted(hints_of(Config))]
    options: dict[str, list[str]] = {}
    for name, command in commands.items():
        sub = ArgumentParser()
        _add_options(sub, command, {})
        options[name] = sorted(word for word in sub._option_string_actions if word.startswith("--"))
    return fields, options


def add_config(parser: Any, known: Mapping[str, Any]) -> None:
    """The option ``--config``: a file of fields, see `gems_jax.config.files.read_config`."""

    class ConfigFile(ActionConfigFile):
        def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
            super().__call__(parser, cfg, read_config(values, known), option_string)

    parser.add_argument("--config", action=ConfigFile, help="YAML file with any of the fields below")


def _add_options(sub: Any, command: Command, known: dict[str, Any]) -> None:
    """The options of a command besides the fields, and their types by name."""
    options = Options(sub, known)
    if command.config != "none":
        add_config(sub, known)
    if command.config == "of a run":
        options.add("--workdir", str, "folder of the run", required=True)
    command.add_options(options)


def _current_words(words: list[str]) -> list[str]:
    """The words by today's names of fields, in the values of sections, too; says which were old."""
    current, old = list(words), set[str]()
    for index, word in enumerate(words):
        if word == "--":
            break
        if not word.startswith("--"):
            continue
        name, joined, value = word[2:].partition("=")
        old |= set(old_names(name))
        if joined:
            current[index] = f"--{current_name(name)}={_current_value(value, name, old)}"
        else:
            current[index] = f"--{current_name(name)}"
            if index + 1 < len(words):
                current[index + 1] = _current_value(words[index + 1], name, old)
    say_renamed(old, "the command line")
    return current


def _current_value(value: str, name: str, old: set[str]) -> str:
    """The value of a section by today's names of its fields; others, and what is no YAML, as they are."""
    if not value.startswith("{"):
        return value
    try:
        node = compose(value, f"--{name}")
    except ValueError:  # said where fields are checked
        return value
    inside: set[str] = set()
    node = current_node(node, inside, f"{name}.")
    old |= inside
    return yaml.serialize(node) if inside else value


def _check_fields(words: list[str], known: Mapping[str, Any]) -> None:
    """Checks the values of all fields on the command line, as those of a file are checked.

    Raises:
      ValueError: what is wrong with any of them.
    """
    wrong: list[str] = []
    for index, word in enumerate(words):
        name, joined, value = word.removeprefix("--").partition("=")
        hint = _type_of(name, known) if word.startswith("--") else None
        if hint is None:
            continue
        if not joined:
            value = words[index + 1] if index + 1 < len(words) else ""
        section = section_of(hint)
        if section is not None and value not in ("null", ""):
            checked_node(value, f"--{name}", hints_of(section), name + ".")
        elif section is None and hint is not bool and (said := _wrong_word(name, hint, value)):
            wrong.append(said)
    refuse(wrong)


def _wrong_word(name: str, hint: Any, value: str) -> str | None:
    """Says what is wrong with a field's value as typed."""
    kinds = {hint, *get_args(hint)} if get_args(hint) else {hint}
    if str in kinds and not isinstance(hint, type(dict[str, str])):  # text is taken as it stands
        return None if value == "null" and type(None) in kinds else wrong_value(name, hint, value)
    try:
        node = compose(value, f"--{name}")
    except ValueError:
        return wrong_value(name, hint, value)
    if not isinstance(node, yaml.Node):
        return wrong_value(name, hint, value)
    return next((said for _, said in wrong_leaf(name, hint, node)), None)


def _type_of(name: str, known: Mapping[str, Any]) -> Any:
    """The type of a dotted field, ``None`` where there is no such field."""
    first, _, rest = name.partition(".")
    hint = known.get(first)
    if not rest or hint is None:
        return hint
    section = section_of(hint)
    return _type_of(rest, hints_of(section)) if section is not None else None


def _explained(text: str, known: Mapping[str, Any], command: str = "", words: Mapping[str, str] | None = None) -> str:
    """An error of the parser in this command's words; an unknown option or field with the nearest valid one."""
    nested = re.search(r'Parser key "([\w.]+)":\s.*NestedArg\(key=\'([^\']*)\'', text, re.DOTALL)
    if nested:
        return f"{nested.group(1)} has no field {nested.group(2)!r}"
    needed = re.search(r"arguments are required: (\w+)", text)
    if needed:
        return f"{command} needs {(words or {}).get(needed.group(1), f'--{needed.group(1)}')}"
    left = re.fullmatch(r"unrecognized arguments: ((?!-).*)", text, re.DOTALL)
    if left and command == "search":
        return f"the query must be one word to the shell: put it in quotation marks ({left.group(1)!r} is left over)"
    # The parser tells of a section that may be null why it is neither.
    reasons = re.findall(r"^  - (?!Expected a <class 'NoneType'>)(.+)$", text, re.MULTILINE)
    if text.startswith("Does not validate against any of the Union subtypes") and len(reasons) == 1:
        return str(reasons[0])
    unknown = re.search(r"unrecognized arguments: --([\w.-]+)|does not accept option '([\w.]+)'", text)
    if unknown:
        name = unknown.group(1) or unknown.group(2)
        near = difflib.get_close_matches(name, [*_dotted(known), "config"], n=1, cutoff=0.6)
        text += f"; did you mean {near[0]!r}?" if near else "; --help lists the fields"
    if command == "search" and text.startswith("unrecognized arguments: -"):
        text += "; a query that begins with - stands at the end, behind --"
    return text


def _dotted(known: Mapping[str, Any], prefix: str = "") -> list[str]:
    """All fields, dotted."""
    names = []
    for name, hint in known.items():
        section = section_of(hint)
        names += [prefix + name, *(_dotted(hints_of(section), f"{prefix}{name}.") if section is not None else [])]
    return names
