"""The null space that each group of kernels is projected into, in one step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gems_jax.linalg.projection import Projector, project_stack, projected_axis_first, stacked
from gems_jax.null_space.space import NullSpace
from gems_jax.transform.plan import Group

NO_PROJECTOR = Projector(None, False)


class ActiveNullSpace(NamedTuple):
    """The null space in force: static facts, and the factors from the state."""

    null_space: NullSpace | None
    constraint: str
    arrays: dict[str, jax.Array]

    def of_source(self, source: str | None) -> Projector:
        if self.null_space is None or source is None:
            return NO_PROJECTOR
        projector = Projector(self.arrays[source], self.null_space.factors[source].complement)
        protects_nothing = self.arrays[source].shape[-1] == 0 and not projector.complement
        return NO_PROJECTOR if protects_nothing else projector

    def of_group(self, group: Group) -> Projector:
        """``[k or 1, d, c]``, gathered only where kernels differ in their input."""
        one = self.of_source(group[0].source)
        if one.factor is None:
            return one
        sources = list(dict.fromkeys(k.source for k in group))
        if len(sources) == 1:
            return stacked(one)
        factors = [self.arrays[s] for s in sources if s is not None]
        joined = jax.lax.concatenate(factors, 0).reshape(len(factors), *factors[0].shape)
        if len(sources) < len(group):
            joined = joined[jnp.asarray([sources.index(k.source) for k in group])]
        return Projector(joined, one.complement)

    def on_side(self, group: Group) -> Projector:
        """For bases made inside the null space."""
        return self.of_group(group) if group[0].inside else NO_PROJECTOR

    def across(self, group: Group) -> Projector:
        """For updates whose null space is on the other side than their bases."""
        return self.of_group(group) if self.constraint == "update" and not group[0].inside else NO_PROJECTOR

    def project(self, group: Group, x: jax.Array) -> jax.Array:
        """``N x`` on the null space's own side for matrices ``[k, p, q]``, projected axis first."""
        if self.null_space is None or group[0].source is None:
            return x
        flip = "in" if self.null_space.side == group[0].side else "out"
        return projected_axis_first(project_stack(projected_axis_first(x, flip), self.of_group(group)), flip)
