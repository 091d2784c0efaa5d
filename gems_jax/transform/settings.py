"""Everything `gems_jax.gems` is told, by the same names, checked once."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gems_jax.argument_checks import check_flag, check_number, check_transform, check_whole, refuse
from gems_jax.linalg.matrix_dims import MatrixRule
from gems_jax.linalg.subspace import Decomposition
from gems_jax.null_space.space import NullSpace, check_null_space
from gems_jax.transform.gates import Gate, heuristic
from gems_jax.types import PyTree
from gems_jax.whole_number import is_whole

Mask = PyTree | Callable[[PyTree], PyTree] | None

# Numbers that may be arrays, and change from step to step (optax.inject_hyperparams); all else is a Python fact.
_NUMBER = {"static": False}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of the transform; see `gems_jax.gems` for their meaning.

    Raises:
      ValueError: an option out of range, named.
      TypeError: one of another type, named.
    """

    num_tasks: int
    rank: int | float = 128
    task_rank: int | float | None = None
    side: Literal["auto", "in", "out"] = "auto"
    refresh_every: int | Callable[[jax.Array], Any] = 200
    decomposition: Literal["auto", "svd", "eigh", "subspace", "random"] = "auto"
    signs: Literal["canonical", "align"] = "canonical"
    moments: Literal["keep", "reset"] = "keep"
    complementary: bool = False
    stagger: bool = False
    scale: float | jax.Array = field(default=1.0, metadata=_NUMBER)
    inner: optax.GradientTransformation = field(default_factory=optax.scale_by_adam)
    fallback: optax.GradientTransformation = field(default_factory=optax.scale_by_adam)
    gate: Gate = field(default_factory=heuristic)
    null_space: NullSpace | None = None
    constraint: Literal["update", "gradient"] = "update"
    recovery: Literal["none", "fira"] = "none"
    weight_decay: float | jax.Array = field(default=0.0, metadata=_NUMBER)
    mask: Mask = None
    matrix_dims: PyTree | MatrixRule | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not is_whole(self.num_tasks):
            raise ValueError(f"num_tasks is a whole number, got {self.num_tasks!r}")
        self._check_types()
        if self.num_tasks < 1:
            raise ValueError(f"num_tasks must be at least 1, got {self.num_tasks}")
        if self.side not in ("auto", "in", "out"):
            raise ValueError(f"side is {self.side!r}; choose 'auto', 'in' or 'out'")
        if self.null_space is not None and self.null_space.side == "both":
            raise ValueError(
                "the null space is on both sides of the kernels, gems makes its bases inside one: give one of "
                "sides='in' or 'out', or chain gems_jax.constrain_to_null_space(null_space) behind an optimiser"
            )
        if self.constraint not in ("update", "gradient"):
            raise ValueError(f"constraint is {self.constraint!r}; choose 'update' or 'gradient'")
        _check_rank("rank", self.rank, 1)
        if self.task_rank is not None:
            _check_rank("task_rank", self.task_rank, 0)
        for name, choices in (
            ("decomposition", ("auto", *get_args(Decomposition), "random")),
            ("signs", ("canonical", "align")),
            ("moments", ("keep", "reset")),
            ("recovery", ("none", "fira")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        every = self.refresh_every
        if not callable(every) and (not is_whole(every) or every < 1):
            raise ValueError(f"refresh_every is a number of steps, at least 1, or a callable, got {every!r}")
        if self.stagger and callable(every):
            raise ValueError("stagger spreads a refresh over the steps between two of them: give refresh_every an int")

    def _check_types(self) -> None:
        for name in ("complementary", "stagger"):
            check_flag(name, getattr(self, name))
        for name in ("scale", "weight_decay"):
            check_number(name, getattr(self, name))
        for name in ("inner", "fallback"):
            check_transform(name, getattr(self, name))
        check_whole("seed", self.seed)
        if not isinstance(self.gate, Gate):
            refuse("gate", self.gate, "a gate: gems_jax.gates.heuristic(), learned() or constant(weights), called")
        check_null_space(self.null_space, optional=True)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Settings":
        """From the arguments of `gems_jax.gems`, where ``None`` stands for a transform or gate by default."""
        made = {f.name for f in dataclasses.fields(cls) if f.default_factory is not dataclasses.MISSING}
        return cls(**{name: value for name, value in options.items() if value is not None or name not in made})

    @property
    def decays(self) -> bool:
        return not (isinstance(self.weight_decay, int | float) and self.weight_decay == 0)

    def inner_structure(self) -> Any:
        """Tree structure of the inner transform's state on one array."""
        return jax.tree.structure(jax.eval_shape(self.inner.init, jax.ShapeDtypeStruct((1, 1), jnp.float32)))


def chosen_leaves(params: PyTree, mask: Mask) -> list[bool]:
    """Which leaves a mask chooses, in order; ``None``: all.

    Raises:
      ValueError: it has another number of entries.
      TypeError: an entry is a text.
    """
    size = len(jax.tree.leaves(params))
    chosen = mask(params) if callable(mask) else mask
    flags = [True] * size if chosen is None else jax.tree.leaves(chosen)
    if len(flags) != size:
        raise ValueError(f"mask has {len(flags)} entries for {size} parameters; give one bool a leaf")
    for flag in flags:
        if isinstance(flag, str):  # which would count as true
            refuse("an entry of mask", flag, "True or False")
    return list(map(bool, flags))


def static_names() -> tuple[str, ...]:
    """Names of the options that are Python facts, in order."""
    return tuple(f.name for f in dataclasses.fields(Settings) if f.metadata.get("static", True))


def _check_rank(name: str, value: Any, least: int) -> None:
    if is_whole(value):
        if value < least:
            raise ValueError(f"{name}={value}: an int must be at least {least}")
    elif not isinstance(value, float | np.floating):
        raise ValueError(f"{name}={value!r}: give an int (columns) or a float (of the smaller side)")
    elif not 0 < value <= 1:
        raise ValueError(f"{name}={value}: a float is a fraction of the smaller side, in (0, 1]; an int is columns")
