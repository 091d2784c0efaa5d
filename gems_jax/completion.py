"""A shell's completion of the command: its commands, their options, every field of the configuration."""

import shlex
from collections.abc import Mapping

from gems_jax.arguments import Command, option_words
from gems_jax.config.ranges import CHOICES

SHELLS = ("bash", "zsh")
_BASH = """\
_gems_jax() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words={commands}
  else
    case "$before" in
{values}
    esac
    if [ -z "$words" ] && [ "${{word#-}}" != "$word" ]; then
      words={fields}
      case "${{COMP_WORDS[1]}}" in
{options}
      esac
    fi
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _gems_jax gems-jax
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def script(shell: str, commands: Mapping[str, Command]) -> str:
    """The program that a shell reads; it knows the values of fields in `CHOICES`, and names of files elsewhere.

    Args:
      shell: ``bash`` or ``zsh``.
      commands: those that there are, by name.

    Raises:
      ValueError: another shell.

    Example:
      >>> script("bash", {"evaluate": Command("rank", lambda options: 0)}).splitlines()[-1]
      'complete -o default -F _gems_jax gems-jax'
    """
    if shell not in SHELLS:
        raise ValueError(f"there is completion for {' and '.join(SHELLS)}, not for {shell!r}")
    fields, options = option_words(commands)
    values = [f"      --{name}) words={_words(sorted(choices()))} ;;" for name, choices in CHOICES.items()]
    own = [f'        {name}) words="$words "{_words(words)} ;;' for name, words in options.items()]
    text = _BASH.format(
        commands=_words([*commands, "--version", "--help"]),
        values="\n".join(values),
        fields=_words(fields),
        options="\n".join(own),
    )
    return text if shell == "bash" else _ZSH + text


def _words(words: list[str]) -> str:
    return shlex.quote(" ".join(words))
