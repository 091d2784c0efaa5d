"""``gems-jax completion``."""

from collections.abc import Mapping
from typing import Any

from gems_jax.arguments import Command, Options
from gems_jax.completion import script


def _add_options(options: Options) -> None:
    options.word("shell", "bash or zsh")


def completion(commands: Mapping[str, Command]) -> Command:
    """The command that completes all ``commands``, of which it is one."""

    def run(options: Any) -> int:
        print(script(options.shell, commands), end="")
        return 0

    return Command("print a shell's completion of this command", run, _add_options, words={"shell": "a shell"})
