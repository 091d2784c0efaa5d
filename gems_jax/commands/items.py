"""``gems-jax items``."""

from typing import Any

from gems_jax.arguments import Command, Options
from gems_jax.commands.shared import quiet, tuned_run

ACTIONS = ("add", "remove", "undo", "list")


def _add_options(options: Options) -> None:
    options.word("action", "add FILE, remove IDS, undo or list")
    options.word("names", "a catalogue file to add, or ids of items to remove", nargs="*")
    options.add("--ids", str, "file of ids to remove, one a line", default=None)
    about = "file of the new items' identifiers, where the run's came from a file"
    options.add("--identifiers", str, about, default=None)
    options.add("--columns", dict[str, str], "role to column of the file, where its name does not tell", default=None)
    about = "most rows that may be left out; default: data.max_bad_fraction"
    options.add("--max_bad_fraction", float, about, default=None)


def _run(options: Any) -> int:
    quiet()
    from gems_jax.staging import as_path
    from gems_jax.training.edit_items import add_items, edit_lines, ids_of, lines_of, remove_items, undo_edit
    from gems_jax.training.tuned import edits_of
    from gems_jax.training.workdir.files import check_config

    action, names = options.action, options.names
    of_add = {name: options[name] for name in ("identifiers", "columns", "max_bad_fraction")}
    _check(action, names, of_add, options.ids)
    config, workdir = tuned_run(options, check_config, model=False)
    if action == "list":
        print("\n".join(lines_of(edits_of(workdir), as_path(options.workdir))))
        return 0
    if action == "add":
        done = add_items(config, options.workdir, names[0], **of_add)
    elif action == "remove":
        done = remove_items(options.workdir, ids_of(names, options.ids))
    else:
        done = undo_edit(options.workdir)
    print("\n".join(edit_lines(done, undone=action == "undo")))
    return 0


def _check(action: str, names: list[str], of_add: dict[str, Any], ids: str | None) -> None:
    """Refuses an action that there is not, and what it does not take."""
    if action not in ACTIONS:
        raise ValueError(f"items does {action!r}? It has add FILE, remove IDS, undo and list")
    if action == "add" and len(names) != 1:
        raise ValueError("items add needs one FILE")
    if action in ("undo", "list") and names:
        raise ValueError(f"items {action} takes no {names[0]!r}")
    wrong = [name for name, value in of_add.items() if value is not None and action != "add"]
    wrong += ["ids"] if ids is not None and action != "remove" else []
    if wrong:
        raise ValueError(f"items {action} takes no --{wrong[0]}")


ITEMS = Command(
    "add items to a tuned run's catalogue, remove some, undo that, list what was done; no training",
    _run,
    _add_options,
    config="of a run",
    words={"action": "an action: add FILE, remove IDS, undo or list"},
)
