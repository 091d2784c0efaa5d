"""The general-domain null space: directions of a kernel that general text does not use."""

import json
import os
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gems_jax.argument_checks import check_matrix_rule, refuse
from gems_jax.checksums import check_written, unique, write_checksums
from gems_jax.leaf_path import named_leaves
from gems_jax.linalg.matrix_dims import MatrixDims, MatrixRule
from gems_jax.null_space.directions import Factor, Rule, factor_of, warn_if_little_is_kept
from gems_jax.null_space.fingerprint import weights_fingerprint
from gems_jax.null_space.second_moment import SecondMoment
from gems_jax.null_space.shared_inputs import SharedInputs
from gems_jax.null_space.weight_directions import weight_directions
from gems_jax.staging import whole_folder
from gems_jax.types import PyTree

Side = Literal["in", "out"]
Sides = Literal["in", "out", "both"]
OUTPUTS = " (outputs)"  # ends the names of factors of outputs, where those of inputs stand beside them


@dataclass(frozen=True)
class NullSpace:
    """Protected directions of a model's kernels (GEMS, arXiv 2601.09496, section 3).

    ``K``: principal directions of ``C = E[x x^T]`` over general text, ``N = I - K K^T``. With ``K^T dW = 0`` a
    layer's output on general text does not move.

    Attributes:
      factors: factor of each distinct input, by name.
      inputs: name of the input of each constrained kernel, by the kernel's path; on side ``"out"``, of its output.
      side: ``"in"`` (inputs of the kernel), ``"out"`` (outputs) or ``"both"``.
      fingerprint: of the weights it was estimated from, or ``None``.
      rule: how many directions were asked for.
      roles: by path, which axes of a kernel are its inputs and outputs (``None``: a table, no kernel). Whatever uses
        the null space takes them from here; a rule that contradicts them is an error.
      left_out: leaves that are multiplied with activations, or look as if, and are not constrained: why, by path.
      outputs: on side ``"both"`` the name of the output of each constrained kernel, by path; otherwise empty.

    Example:
      >>> import numpy as np
      >>> from gems_jax import null_space_leak
      >>> ns = NullSpace.from_moments({"mlp/kernel": np.diag([8.0, 1.0, 1.0])}, rank=1)
      >>> null_space_leak({"mlp": {"kernel": np.eye(3)[:, 1:]}}, ns)["mlp/kernel"].item()
      0.0
    """

    factors: dict[str, Factor]
    inputs: dict[str, str]
    side: Sides = "in"
    fingerprint: str | None = None
    rule: dict[str, float] = field(default_factory=dict)
    roles: dict[str, MatrixDims | None] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_moments(
        cls,
        moments: Mapping[str, Any],
        *,
        energy: float | None = None,
        rank: int | float | None = None,
        threshold: float | None = None,
        max_directions: int | None = None,
        min_share: float | None = None,
        side: Side = "in",
        fingerprint: str | None = None,
        roles: Mapping[str, MatrixDims] | None = None,
    ) -> "NullSpace":
        """Principal directions of second moments, by ``eigh`` in float64.

        Exactly one of the rules says how many directions are protected.

        Args:
          moments: second moments ``[*batch, d, d]`` by kernel path; kernels that share an input share the
            object, and then one factor. A mapping that reads each from a file shares none.
          energy, rank, threshold, max_directions, min_share: see `Rule`.
          side: what the moments are of, ``"in"`` or ``"out"``.
          fingerprint: of the weights, see `weights_fingerprint`.
          roles: which axes of each kernel are its inputs and outputs; kernels that are not named here have the role
            that ``matrix_dims`` gives them where the null space is used, by default their last two axes.

        Returns:
          A `NullSpace`.

        Raises:
          ValueError: no rule or several, a value out of range, a matrix that is not square and finite, a role of a
            kernel without a moment.
        """
        how_many = Rule(energy, rank, threshold, max_directions, min_share)
        if side not in ("in", "out"):
            raise ValueError(f"side is {side!r}; choose 'in' or 'out'")
        for name, value in (("moments", moments), ("roles", roles or {})):
            if not isinstance(value, Mapping):
                refuse(name, value, "a mapping by the kernels' paths")
        if strangers := sorted(set(roles or {}) - set(moments)):
            raise ValueError(f"roles name {strangers[0]!r}, which has no moment; there are {list(moments)[:3]}...")
        names = SharedInputs()
        factors: dict[str, Factor] = {}
        inputs: dict[str, str] = {}
        for path, moment in moments.items():
            name = names.of(path, moment)
            inputs[path] = name
            if name == path:
                stack = moment.matrix() if isinstance(moment, SecondMoment) else np.asarray(moment)
                factors[name] = factor_of(path, stack, how_many)
        warn_if_little_is_kept(factors, energy)
        return cls(factors, inputs, side, fingerprint, how_many.given(), dict(roles or {}))

    @classmethod
    def from_weights(
        cls,
        params: PyTree,
        *,
        energy: float | None = None,
        rank: int | float | None = None,
        min_share: float | None = None,
        matrix_dims: MatrixRule | None = None,
        sides: Sides = "both",
    ) -> "NullSpace":
        """Leading singular directions of the weights themselves, for which no text is read, by ``svd`` in float64.

        ``W = U S V^T``: the first ``k`` columns of ``U`` are protected on the side of a kernel's inputs, those of ``V``
        on the side of its outputs, so that ``dW = (I - U_k U_k^T) dW (I - V_k V_k^T)``. These are the updates that OSFT
        can make (Nayak et al., arXiv 2504.07097), which freezes the first ``k`` singular triplets and keeps the factors
        of the others orthogonal to them. OSFT tunes those factors, here an optimiser tunes the kernel; OSFT chooses
        ``k`` for each layer by how alike its inputs and outputs are, here one rule holds for all.

        Args:
          params: tree of ``[*shape]`` pretrained weights.
          energy: fewest directions that hold at least this share of the sum of squared singular values.
          rank: this many directions (1: one); a float in (0, 1) is a share of the kernel's smaller side.
          min_share: with ``energy``, at least this share of the smaller side.
          matrix_dims: callable ``(path, leaf) -> MatrixDims | None``: which leaves are kernels; default
            `stacked_matrix_dims`, kernels ``[in, out]`` and stacks ``[layers, in, out]``.
          sides: ``"both"``, which `constrain_to_null_space` takes, or ``"in"`` or ``"out"`` alone, for `gems`.

        Returns:
          A `NullSpace` with the weights' fingerprint and the kernels' roles.

        Raises:
          ValueError: neither ``energy`` nor ``rank`` or both, a value out of range, no kernels, weights that are not
            finite.

        Example:
          >>> import numpy as np
          >>> ns = NullSpace.from_weights({"mlp/kernel": np.diag([9.0, 2.0, 1.0])}, rank=1)
          >>> {name: abs(factor.basis).ravel().tolist() for name, factor in ns.factors.items()}
          {'mlp/kernel': [1.0, 0.0, 0.0], 'mlp/kernel (outputs)': [1.0, 0.0, 0.0]}
        """
        if sides not in ("in", "out", "both"):
            raise ValueError(f"sides is {sides!r}; choose 'in', 'out' or 'both'")
        rule = Rule(energy, rank, min_share=min_share)
        check_matrix_rule(matrix_dims)
        found = weight_directions(params, rule, matrix_dims)
        one: Side = "out" if sides == "out" else "in"
        factors = {path: of_kernel[one] for path, of_kernel in found.factors.items()}
        inputs = {path: path for path in factors}
        outputs = {path: path + OUTPUTS for path in factors} if sides == "both" else {}
        factors |= {name: found.factors[path]["out"] for path, name in outputs.items()}
        fingerprint = weights_fingerprint(params, inputs)
        return cls(factors, inputs, sides, fingerprint, rule.given(), found.roles, found.left_out, outputs)

    def factor(self, path: str) -> Factor:
        """The factor that constrains a kernel; of two, that of its inputs."""
        return self.factors[self.inputs[path]]

    def sides_of(self, path: str) -> dict[Side, str]:
        """The protected sides of a kernel, each with the name of its factor.

        Example:
          >>> import numpy as np
          >>> NullSpace.from_weights({"w": np.eye(2)}, rank=1).sides_of("w")
          {'in': 'w', 'out': 'w (outputs)'}
        """
        if self.side == "both":
            return {"in": self.inputs[path], "out": self.outputs[path]}
        return {self.side: self.inputs[path]}

    def check_weights(self, params: PyTree) -> None:
        """Raises ``ValueError`` unless ``params`` are the weights the null space was estimated from."""
        paths = {path for path, _ in named_leaves(params)}
        missing = sorted(set(self.inputs) - paths)
        if missing:
            raise ValueError(
                f"the null space is for other weights: it constrains {missing[0]!r}"
                f"{f' and {len(missing) - 1} more kernels' if len(missing) > 1 else ''} which this model lacks; "
                "calibrate again"
            )
        if self.fingerprint is not None:
            fingerprint = weights_fingerprint(params, self.inputs)
            if fingerprint != self.fingerprint:
                raise ValueError(
                    f"the null space is for other weights: fingerprint {self.fingerprint[:12]} on file, "
                    f"{fingerprint[:12]} from this model; calibrate again from these weights"
                )

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes ``null_space.json``, ``factors.npz`` and their ``checksums.json`` into a directory, all or nothing.

        Raises:
          FileExistsError: the directory holds something else.
        """
        target = Path(directory)
        if target.exists() and any(target.iterdir()) and not (target / "null_space.json").is_file():
            raise FileExistsError(f"{target} exists and is not a saved null space; choose another directory")
        with whole_folder(target) as staging:
            arrays: dict[str, Any] = {}
            for i, factor in enumerate(self.factors.values()):
                for key in ("basis", "kept", "residual"):
                    arrays[f"{i}.{key}"] = np.asarray(getattr(factor, key))
            np.savez(staging / "factors.npz", **arrays)
            about = {
                "format": 2,
                "side": self.side,
                "fingerprint": self.fingerprint,
                "rule": self.rule,
                "factors": [{"name": n, "complement": f.complement} for n, f in self.factors.items()],
                "inputs": self.inputs,
                "outputs": self.outputs,
                "roles": {path: _role_entry(role) for path, role in self.roles.items()},
                "left_out": self.left_out,
            }
            (staging / "null_space.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
            write_checksums(staging)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "NullSpace":
        """Reads what `save` wrote.

        Raises:
          FileNotFoundError: nothing saved there.
          ValueError: a damaged file, a kernel without its factor, a factor without a kernel.
        """
        source = Path(directory)
        for name in ("null_space.json", "factors.npz"):
            if not (source / name).is_file():
                raise FileNotFoundError(f"no null space in {source}: {name} is missing; make one with calibrate")
        try:
            about = json.loads((source / "null_space.json").read_text(encoding="utf-8"), object_pairs_hook=unique)
            # Opened here: np.load leaves a file that is no archive open.
            with open(source / "factors.npz", "rb") as file, np.load(file, allow_pickle=False) as arrays:
                factors = {
                    entry["name"]: Factor(
                        arrays[f"{i}.basis"], bool(entry["complement"]), arrays[f"{i}.kept"], arrays[f"{i}.residual"]
                    )
                    for i, entry in enumerate(about["factors"])
                }
            inputs, outputs = about["inputs"], about.get("outputs", {})
            _check_names(inputs, outputs, [entry["name"] for entry in about["factors"]])
            for name in ("null_space.json", "factors.npz"):
                check_written(source, name, "calibrate again")
            roles = {path: _role(entry) for path, entry in about.get("roles", {}).items()}
            left_out = dict(about.get("left_out", {}))
            side, fingerprint = about["side"], about["fingerprint"]
            if side == "both" and set(outputs) != set(inputs):
                raise ValueError("its kernels' inputs and outputs do not belong together")
            null_space = cls(factors, inputs, side, fingerprint, about["rule"], roles, left_out, outputs)
        except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"the null space in {source} is damaged ({error}); calibrate again") from error
        if "roles" not in about:
            warnings.warn(
                f"the null space in {source} is of an older version and does not say which axes are its kernels' "
                "inputs: matrix_dims decides, by default the last two axes; calibrate again to have that checked",
                stacklevel=2,
            )
        return null_space

    def summary(self) -> str:
        """A table: input, kernels, dimension, directions kept, residual share of the trace; then what is left out."""
        users: dict[str, int] = {}
        for name in (*self.inputs.values(), *self.outputs.values()):
            users[name] = users.get(name, 0) + 1
        rows = [f"{'input of':48s} {'kernels':>7s} {'dim':>5s}  kept (of each layer)       residual"]
        for name, f in self.factors.items():
            kept, residual = np.atleast_1d(f.kept).ravel(), np.atleast_1d(f.residual).ravel()
            span = f"{kept.min()}-{kept.max()}" if kept.size > 1 else str(kept[0])
            rows.append(f"{name:48s} {users[name]:7d} {f.dim:5d}  {span:26s} {residual.max():.4f}")
            if kept.max() == 0:
                rows[-1] += "  nothing is protected"
        rows += [f"not protected: {path!r}: {why}" for path, why in self.left_out.items()]
        return "\n".join(rows)


def check_null_space(value: Any, optional: bool = False) -> None:
    """Raises ``TypeError`` where an argument ``null_space`` is none."""
    if not (isinstance(value, NullSpace) or (optional and value is None)):
        refuse("null_space", value, "a NullSpace: gems_jax.estimate_null_space makes one, NullSpace.load reads one")


def _check_names(inputs: Mapping[str, str], outputs: Mapping[str, str], factors: list[str]) -> None:
    """Raises ``ValueError`` unless every kernel has a factor, and every factor a kernel."""
    if len(set(factors)) < len(factors):
        raise ValueError("an input stands there twice")
    for path, name in (*inputs.items(), *outputs.items()):
        if name not in factors:
            raise ValueError(f"kernel {path!r} has input {name!r}, which has no factor")
    unused = sorted(set(factors) - {*inputs.values(), *outputs.values()})
    if unused:
        raise ValueError(f"input {unused[0]!r} belongs to no kernel")


def _role_entry(role: MatrixDims | None) -> dict[str, list[int]] | None:
    as_list = lambda axes: [axes] if isinstance(axes, int) else list(axes)  # noqa: E731
    return None if role is None else {"in_axes": as_list(role.in_axes), "out_axes": as_list(role.out_axes)}


def _role(entry: Any) -> MatrixDims | None:
    """The role that `_role_entry` wrote."""
    if entry is None:
        return None
    axes = entry["in_axes"], entry["out_axes"]
    if not all(isinstance(part, list) and part and all(type(a) is int for a in part) for part in axes):
        raise ValueError(f"roles hold {entry!r}, expected lists of axes")
    return MatrixDims(tuple(axes[0]), tuple(axes[1]))
