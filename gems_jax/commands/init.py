"""``gems-jax init``."""

from pathlib import Path
from typing import Any, Literal

from gems_jax.arguments import Command, Options
from gems_jax.commands.shared import quiet


def _add_options(options: Options) -> None:
    add = options.add
    add("--model", str, "Hugging Face folder of the base model", required=True)
    about = "file of interactions, or a folder: with it and a catalogue, or a known source's"
    add("--data", str, about, required=True)
    add("--items", str, "file of the catalogue; default: the one beside the interactions", default=None)
    add("--columns", dict[str, str], "role to column, where its name does not tell", default=None)
    add("--text", str, "general text to protect; default: Python's documentation", default=None)
    add("--heldout", str, "general text that forgetting is measured on", default=None)
    about = "how much of what the model knew is kept: decides protection and learning rate"
    add("--keep", Literal["high", "medium", "low"], about, default="medium")
    add("--out", str, "configuration file to write", default="gems.yaml")


def _run(options: Any) -> int:
    quiet()
    from gems_jax.staging import check_writable, write_text
    from gems_jax.training.proposal.data import find_data
    from gems_jax.training.proposal.proposal import as_yaml, propose

    out = Path(options.out)
    if out.exists():
        raise ValueError(f"--out {out} exists already: remove it, or name another")
    if (options.text is None) != (options.heldout is None):
        raise ValueError("--text and --heldout go together: text to protect, and other text to measure forgetting on")
    check_writable(out.parent, "--out")
    text = None if options.text is None else (options.text, options.heldout)
    found = find_data(options.data, options["items"], options.columns or {})
    proposal = propose(options.model, found, text, f"runs/{out.stem}", keep=options.keep)
    write_text(out, as_yaml(proposal, str(out)))
    print("\n".join([*proposal.notes, f"init: {out}"]))
    return 0


INIT = Command("write a configuration that fits a model, your data and this machine", _run, _add_options, config="none")
