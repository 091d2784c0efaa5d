"""Checkpoints of a run: parameters, optimiser state and position, by orbax, each file with its checksum."""

import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from gems_jax.checksums import damage, write_checksums
from gems_jax.first_few import first_few
from gems_jax.leaf_path import named_leaves
from gems_jax.object_store import StorePath, said_by
from gems_jax.staging import remove_folder
from gems_jax.training.distributed.cluster import is_lost
from gems_jax.training.workdir.copies import send_checkpoints
from gems_jax.training.workdir.stored_checkpoints import brought, for_orbax, move, whole_steps
from gems_jax.types import PyTree


def as_dict(tree: PyTree) -> dict[str, Any]:
    """A tree's leaves by path: plain containers, whatever the tree is made of."""
    return dict(named_leaves(tree))


def from_dict(values: dict[str, Any], like: PyTree) -> PyTree:
    """The inverse of `as_dict`, in the structure of ``like``."""
    return jax.tree.unflatten(jax.tree.structure(like), [values[path] for path, _ in named_leaves(like)])


@jax.jit
def _not_finite(tree: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: ~jnp.all(jnp.isfinite(x)) for name, x in tree.items() if jnp.issubdtype(x.dtype, jnp.inexact)}


class Restored(NamedTuple):
    """A checkpoint that was read: updates made, parameters, optimiser state, position."""

    step: int
    params: PyTree
    opt_state: PyTree
    position: dict[str, Any]


class Checkpoints:
    """The last checkpoints of a run and its best, written in the background.

    A checkpoint is a folder that appears by being renamed when all of it is written, its ``checksums.json`` last;
    one whose files do not agree with that is not read. A save that fails or is killed leaves the ones before.

    Args:
      directory: of the checkpoints, a subfolder each; made by the first save. On Amazon's store, which orbax does not
        write, they are those of a folder on this machine, brought from there and sent there after each save.
      keep: how many of the newest are kept.
      writes: whether the run goes on here: damaged checkpoints in the way are then put aside.
      on_saved: called with step and folder of each save that is on disk whole, by `wait`, `save` and `look`.
    """

    def __init__(
        self,
        directory: Path,
        keep: int = 2,
        writes: bool = True,
        on_saved: Callable[[int, Path], None] | None = None,
    ):
        stored = directory if isinstance(directory, StorePath) else None
        # On a store that orbax writes to, and on one that is sent what it has written here.
        self._google = stored if stored is not None and stored.scheme == "gs" else None
        self._store = None if self._google is not None else stored
        if self._store is not None:
            self.directory = brought(self._store)
        else:
            self.directory = for_orbax(self._google) if self._google is not None else directory.resolve()
        self.best_step: int | None = None
        self._keep, self._writes = keep, writes
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self,
            cleanup_tmp_directories=writes,
            create=writes,
            read_only=not writes,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        if not writes and not self.directory.is_dir():
            raise FileNotFoundError(f"no checkpoint in {self.directory}; run gems-jax train first")
        try:
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        except Exception as error:  # of a store, whatever its package raises
            if self._google is not None:
                raise OSError(
                    f"{self.directory} cannot be written to ({said_by(error)}): look at the store and at the "
                    "credentials in the environment, such as GOOGLE_APPLICATION_CREDENTIALS"
                ) from error
            if not isinstance(error, OSError):
                raise
            raise OSError(
                f"{self.directory} cannot be written to ({error.strerror or error}): make room or change its "
                "permissions, or choose another --workdir"
            ) from error
        self._saving: int | None = None
        self._on_saved, self._untold = on_saved, False

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *exc: object) -> None:
        if is_lost(error):  # what is being saved waits for a process that is gone
            return
        try:
            self.wait()
        except OSError:
            if kind is None:  # otherwise the first error is the one to see
                raise
        finally:
            self._manager.close()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """For orbax: the newest and the best stay."""
        del context
        oldest_kept = len(checkpoints) - self._keep
        return [i >= oldest_kept or c.step == self.best_step for i, c in enumerate(checkpoints)]

    def _seal(self) -> None:
        """Called when all files of a save are written and its folder has not got its name yet."""
        if jax.process_index() == 0:
            assert self._saving is not None
            # On object stores, where renaming is copying, it has its name from the start and gets a mark at the end.
            if self._google is not None:
                write_checksums(self._folder(self._saving))
                return
            write_checksums(next(self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*")))

    def save(self, step: int, params: PyTree, opt_state: PyTree, position: Mapping[str, Any]) -> None:
        """Saves the state after ``step`` updates; returns when the arrays may change again.

        Args:
          step: updates made.
          params, opt_state: trees of arrays.
          position: all else a run goes on from; JSON values.

        Raises:
          ValueError: something that is no number would be saved; the checkpoints before stay.
          OSError: this save or the one before it could not be written; those before that stay.
        """
        parts = {"params": as_dict(params), "optimiser": as_dict(opt_state)}
        self._refuse_not_finite(step, parts)
        self.wait()
        self._saving = step
        try:
            self._make_a_folder()
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(part) for name, part in parts.items()},
                    data=ocp.args.JsonSave(dict(position)),
                ),
            )
        except Exception as error:  # orbax wraps what the file system says in various ways
            raise self._failed(error) from error
        self._untold = True

    def look(self) -> None:
        """Tells of a save that has come to its end; does not wait for one.

        Raises:
          OSError: it could not be written.
        """
        if (self._on_saved or self._store) is not None and self._untold and not self._manager.is_saving_in_progress():
            self.wait()

    def _make_a_folder(self) -> None:
        """Tries whether folders can be made: where they cannot, orbax's threads keep the process waiting for one."""
        if jax.process_index() == 0 and self._google is None:
            os.rmdir(tempfile.mkdtemp(prefix=".", dir=self.directory))

    def _refuse_not_finite(self, step: int, parts: Mapping[str, dict[str, Any]]) -> None:
        for name, part in parts.items():
            bad = [path for path, is_bad in jax.device_get(_not_finite(part)).items() if is_bad]
            if bad:
                raise ValueError(
                    f"after step {step} the {name} hold nan or inf ({first_few(bad, 1)}) and are not "
                    "saved: lower train.learning_rate or train.item_learning_rate, lengthen train.warmup, or set "
                    f"train.clip, and run again: it goes on from the last checkpoint in {self.directory}"
                )

    def wait(self) -> None:
        """Until all saves are on disk.

        Raises:
          OSError: the last save could not be written.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            self._untold = False
            raise self._failed(error) from error
        if not self._untold:
            return
        self._untold = False
        if self._store is not None:
            send_checkpoints(self.directory, self._store)
        if self._on_saved is not None:
            assert self._saving is not None
            self._on_saved(self._saving, self.directory / str(self._saving))

    def _failed(self, error: Exception) -> OSError:
        # What was half-written is of no use, and on a full disk it is in the way; on a store the next run removes it.
        if jax.process_index() == 0 and self._google is None:
            for folder in self.directory.glob("*.orbax-checkpoint-tmp*"):
                remove_folder(folder)
        try:
            left = max(self.steps(), default=None)
            text = "there is none before it" if left is None else f"the one of step {left} is untouched"
        except OSError:  # of a store that does not answer
            text = "those before it are untouched"
        remedy = "make room or change permissions" if self._google is None else "look at the store"
        return OSError(
            f"the checkpoint of step {self._saving} could not be written to {self.directory} ({said_by(error)}): "
            f"{remedy} and run again; {text}"
        )

    def _folder(self, step: int) -> Any:
        """Of a checkpoint, to be read; on Google's store without what orbax's package of it has kept in mind."""
        return (self.directory if self._google is None else self._google) / str(step)

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are in place, damaged ones included."""
        if self._google is not None:  # where an unfinished one has its name from the start
            return whole_steps(self._google)
        return sorted(int(path.name) for path in self.directory.glob("*") if path.name.isdigit())

    def restore_latest(self, params: PyTree, opt_state: PyTree) -> Restored | None:
        """The newest intact checkpoint, or ``None`` if there are no checkpoints.

        Args:
          params, opt_state: of the shapes, dtypes and shardings wanted.

        Raises:
          ValueError: there are checkpoints, all of them damaged.
        """
        step = self._newest_intact()
        if step is None:
            return None
        parts = self._restore(step, {"params": params, "optimiser": opt_state})
        return Restored(step, parts["params"], parts["optimiser"], parts["data"])

    def restore_params(self, params: PyTree, which: str = "last") -> PyTree:
        """Parameters of the newest intact checkpoint, or of the best.

        Args:
          params: of the shapes, dtypes and shardings wanted.
          which: ``"last"`` or ``"best"``.

        Raises:
          FileNotFoundError: there is none.
          ValueError: it is damaged.
        """
        step = self._newest_intact()
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {self.directory}; run gems-jax train first")
        if which == "best":
            best = self._restore(step, {})["data"]["best"]["step"]
            if best is None:
                raise FileNotFoundError(
                    f"no best checkpoint in {self.directory}: train with train.metric and train.eval_every set, or "
                    "take evaluate.checkpoint last"
                )
            if best != step:
                step = best
                wrong = damage(self._folder(step))
                if wrong:
                    raise ValueError(
                        f"the best checkpoint {self.directory / str(step)} is damaged ({wrong}); take "
                        "evaluate.checkpoint last"
                    )
        return self._restore(step, {"params": params})["params"]

    def _newest_intact(self) -> int | None:
        """Looked for by the first process, so that all take the same."""
        chosen, bad = None, {}
        if jax.process_index() == 0:
            for step in reversed(self.steps()):
                wrong = damage(self._folder(step))
                if wrong is None:
                    chosen = step
                    break
                bad[step] = wrong
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            sent = np.asarray([-1 if chosen is None else chosen, len(bad)], np.int64)
            sent_step, number = (int(x) for x in multihost_utils.broadcast_one_to_all(sent))
            chosen = None if sent_step < 0 else sent_step
        else:
            number = len(bad)
        listed = "; ".join(f"{self.directory / str(step)}: {wrong}" for step, wrong in bad.items())
        if chosen is None and number:
            raise ValueError(
                f"no intact checkpoint in {self.directory} ({listed}); remove the damaged ones to start again"
            )
        for step, wrong in bad.items():
            folder = self._folder(step)
            moved = f", put aside in {self._put_aside(step)}" if self._writes else ""
            warnings.warn(f"checkpoint {folder} is damaged ({wrong}){moved}; using that of step {chosen}", stacklevel=4)
        if number and self._writes:
            if jax.process_count() > 1:
                from jax.experimental import multihost_utils

                multihost_utils.sync_global_devices("damaged checkpoints put aside")
            self._manager.reload()
        return chosen

    def _put_aside(self, step: int) -> Path:
        """Out of the way of the save that will come again."""
        checkpoint = self._folder(step)
        folder = checkpoint.parent.parent / "damaged"
        folder.mkdir(exist_ok=True)
        number = 0
        while (target := folder / f"{step}.{number}").exists():
            number += 1
        if self._google is not None:
            move(checkpoint, target)
        else:
            checkpoint.rename(target)
        return target

    def _restore(self, step: int, like: Mapping[str, PyTree]) -> dict[str, Any]:
        """Parts of a checkpoint, in the structures of ``like``, and its ``data``."""
        wanted = {
            name: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, as_dict(tree)))
            for name, tree in like.items()
        }
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**wanted, data=ocp.args.JsonRestore()))
        except Exception as error:  # anything from a bare Exception to a KeyError
            folder = self.directory / str(step)
            raise ValueError(
                f"checkpoint {folder} does not fit this model and optimiser ({error}); choose another --workdir"
            ) from error
        return {name: from_dict(restored[name], tree) for name, tree in like.items()} | {"data": restored["data"]}
