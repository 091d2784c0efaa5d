"""Everything `gems_jax.gems` is told, checked once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from gems_jax.linalg.subspace import Decomposition
from gems_jax.transform.gates import Gate, heuristic
from gems_jax.transform.plan import Options
from gems_jax.transform.refresh import Refresh
from gems_jax.whole_number import is_whole

PyTree = Any
RefreshEvery = int | Callable[[jax.Array], Any]
Mask = PyTree | Callable[[PyTree], PyTree] | None


@dataclass(frozen=True)
class Settings:
    """Static settings and hyperparameters of the transform; see `gems_jax.gems` for their meaning."""

    options: Options
    refresh_every: RefreshEvery
    decomposition: Literal["auto", "svd", "eigh", "subspace"]
    signs: Literal["canonical", "align"]
    moments: Literal["keep", "reset"]
    stagger: bool
    scale: float | jax.Array
    inner: optax.GradientTransformationExtraArgs
    fallback: optax.GradientTransformationExtraArgs
    gate: Gate
    weight_decay: float | jax.Array
    mask: Mask
    seed: int

    @property
    def num_tasks(self) -> int:
        return self.options.num_tasks

    @property
    def decays(self) -> bool:
        return not (isinstance(self.weight_decay, int | float) and self.weight_decay == 0)

    def inner_structure(self) -> Any:
        """Tree structure of the inner transform's state on one array."""
        return jax.tree.structure(jax.eval_shape(self.inner.init, jax.ShapeDtypeStruct((1, 1), jnp.float32)))

    def refresh(self, count: jax.Array) -> Refresh:
        """How and whether bases are refreshed at a step: before the first update, then every so many."""
        every = self.refresh_every
        spread = self.stagger and not callable(every)
        due = jnp.asarray(every(count), bool) if callable(every) else count % every == 0
        due = count == 0 if spread else due
        method: Any = self.decomposition
        if method == "auto":
            method = "subspace" if jax.default_backend() == "tpu" else "eigh"
        return Refresh(
            method=method,
            signs=self.signs,
            moments=self.moments,
            complementary=self.options.complementary,
            stagger_every=every if spread and not callable(every) else None,
            step=count,
            due=due,
            key=jax.random.key(self.seed),
        )


def make_settings(
    options: Options,
    *,
    refresh_every: RefreshEvery,
    inner: optax.GradientTransformation | None,
    fallback: optax.GradientTransformation | None,
    gate: Gate | None,
    **others: Any,
) -> Settings:
    """Checks the arguments and fills in the default transforms.

    Raises:
      ValueError: an argument out of range, named.
    """
    options.check()
    adam = optax.scale_by_adam()
    settings = Settings(
        options,
        refresh_every=refresh_every if callable(refresh_every) or not is_whole(refresh_every) else int(refresh_every),
        inner=optax.with_extra_args_support(adam if inner is None else inner),
        fallback=optax.with_extra_args_support(adam if fallback is None else fallback),
        gate=heuristic() if gate is None else gate,
        **others,
    )
    for name, choices in (
        ("decomposition", ("auto", *get_args(Decomposition))),
        ("signs", ("canonical", "align")),
        ("moments", ("keep", "reset")),
    ):
        if getattr(settings, name) not in choices:
            raise ValueError(f"{name} is {getattr(settings, name)!r}; choose one of {', '.join(choices)}")
    every = settings.refresh_every
    if not callable(every) and (not is_whole(every) or every < 1):
        raise ValueError(f"refresh_every is a number of steps, at least 1, or a callable, got {every!r}")
    if settings.stagger and callable(every):
        raise ValueError("stagger spreads a refresh over the steps between two of them: give refresh_every an int")
    return settings
