"""Checkpoints of a run: parameters, optimiser state and data position, by orbax."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from gems_jax.leaf_path import leaf_path

PyTree = Any


def as_dict(tree: PyTree) -> dict[str, Any]:
    """A tree's leaves by path: plain containers, whatever the tree is made of."""
    return {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def from_dict(values: dict[str, Any], like: PyTree) -> PyTree:
    """The inverse of `as_dict`, in the structure of ``like``."""
    paths = [leaf_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(like)]
    return jax.tree.unflatten(jax.tree.structure(like), [values[path] for path in paths])


class Checkpoints:
    """The last two checkpoints of a run, written asynchronously; a killed save leaves the one before.

    Args:
      directory: of the checkpoints.
    """

    def __init__(self, directory: Path):
        options = ocp.CheckpointManagerOptions(max_to_keep=2)
        self._manager = ocp.CheckpointManager(directory.resolve(), options=options)
        self._directory = directory

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def save(self, step: int, params: PyTree, opt_state: PyTree, position: dict[str, Any]) -> None:
        """Saves the state after ``step`` updates."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(as_dict(params)),
                optimiser=ocp.args.StandardSave(as_dict(opt_state)),
                data=ocp.args.JsonSave(position),
            ),
        )

    def wait(self) -> None:
        """Until all saves are on disk."""
        self._manager.wait_until_finished()

    def restore_latest(self, params: PyTree, opt_state: PyTree) -> tuple[int, PyTree, PyTree, dict[str, Any]] | None:
        """Step, parameters, optimiser state and data position of the last checkpoint, or ``None``.

        Args:
          params, opt_state: of the shapes, dtypes and shardings wanted.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = lambda tree: jax.tree.map(ocp.utils.to_shape_dtype_struct, as_dict(tree))  # noqa: E731
        found = self._restore(
            step,
            params=ocp.args.StandardRestore(abstract(params)),
            optimiser=ocp.args.StandardRestore(abstract(opt_state)),
            data=ocp.args.JsonRestore(),
        )
        return step, from_dict(found["params"], params), from_dict(found["optimiser"], opt_state), found["data"]

    def restore_params(self, params: PyTree) -> PyTree:
        """The last checkpoint's parameters.

        Raises:
          FileNotFoundError: there is none.
        """
        step = self._manager.latest_step()
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {self._directory}; run gems-jax train first")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, as_dict(params))
        found = self._restore(step, params=ocp.args.StandardRestore(abstract))
        return from_dict(found["params"], params)

    def _restore(self, step: int, **parts: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**parts))
        except Exception as error:  # damage shows as anything from a bare Exception to a KeyError
            place = self._directory / str(step)
            raise ValueError(f"checkpoint {place} cannot be read ({error}); remove it to go on without it") from error
