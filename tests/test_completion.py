"""A shell completes commands, options, fields and names of methods, by what the command prints."""

import subprocess

import pytest
from tiny import fails

from gems_jax import cli
from gems_jax.commands import COMMANDS
from gems_jax.config.methods import METHODS


@pytest.fixture(scope="module")
def completed():
    """Words -> what bash offers for the last of them."""
    from gems_jax.completion import script

    program = script("bash", COMMANDS)

    def offers(*words):
        line = f"COMP_WORDS=({' '.join(words)!s}); COMP_CWORD={len(words) - 1}; _gems_jax"
        asked = f'{program}{line}; printf "%s\\n" "${{COMPREPLY[@]}}"'
        return subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True).stdout.split()

    return offers


def test_commands_options_fields_and_methods_are_offered(completed):
    assert completed("gems-jax", "re") == ["recommend"]
    assert completed("gems-jax", "train", "--dry") == ["--dry-run"]
    assert completed("gems-jax", "evaluate", "--dry") == []
    assert completed("gems-jax", "train", "--train.learn") == ["--train.learning_rate"]
    assert completed("gems-jax", "train", "--train.method", "pc") == ["pcgrad"]
    assert completed("gems-jax", "train", "--train.method", "''") == sorted(METHODS)
    assert completed("gems-jax", "train", "conf") == []  # bash then offers files


def test_zsh_reads_the_same_and_another_shell_is_refused(capsys):
    assert cli.main(["completion", "zsh"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("autoload -U +X bashcompinit")
    assert said.endswith("complete -o default -F _gems_jax gems-jax\n")
    assert "completion for bash and zsh, not for 'fish'" in fails(capsys, "completion", "fish")
