"""The configuration of a study: what it compares and how often."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from gems_jax.config.ranges import refuse, wrong_fields
from gems_jax.data.preparation.few_candidates import CUTOFFS
from gems_jax.evaluation.ranking_summary import METRICS
from gems_jax.study.methods import MAIN, REFERENCE, Rates, study_methods


@dataclass(frozen=True)
class StudyConfig:
    """Methods, seeds and learning rates of a study.

    Attributes:
      methods: names of the methods to run, see `gems_jax.study.methods`; empty: all.
      main: methods that are run with ``seeds`` seeds.
      seeds: number of seeds of the main methods.
      rest_seeds: number of seeds of the other methods.
      grid: learning rates of kernels that are tried for every method, each with the first seed; empty:
        ``train.learning_rate`` alone, and where that is null each method's own.
      item_grid: learning rates of item rows, each tried with every one of ``grid``; empty: ``train.item_learning_rate``
        alone.
      metric: validation metric whose mean over the tasks chooses the learning rate.
      valid_rows: validation rows of each task; 0: all.
      reference: method that the others are compared with.
      budget: most that a method may forget, as a share of the reference's forgetting. The best learning rates within it
        are run with all of the method's seeds, too. ``null``: no such choice.
      frontier: whether the grid is also run, with the first seed, for the other strengths of each method that has some:
        more and fewer protected directions (``gems``, ``adamw-constrained``, ``osft``), distances (``orbit``).
    """

    methods: tuple[str, ...] = ()
    main: tuple[str, ...] = MAIN
    seeds: int = 5
    rest_seeds: int = 2
    grid: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    item_grid: tuple[float, ...] = ()
    metric: str = "ndcg@10"
    valid_rows: int = 0
    reference: str = REFERENCE
    budget: float | None = None
    frontier: bool = False

    def __post_init__(self) -> None:
        refuse(list(wrong_fields(self, "study.")))
        refuse(list(self._contradictions()))

    def _contradictions(self) -> Iterator[str]:
        for name in (*self.methods, *self.main, self.reference):
            if name not in study_methods():
                yield f"study.methods has no method {name!r}; choose among {', '.join(study_methods())}"
        for field in ("grid", "item_grid"):
            given = getattr(self, field)
            if len(set(given)) < len(given):
                yield f"study.{field} must be different learning rates above 0, got {given}"
        known = [f"{name}@{cutoff}" for name in METRICS for cutoff in CUTOFFS]
        if self.metric not in known:
            yield f"study.metric must be one of {', '.join(known)}, got {self.metric!r}"
        if self.budget is not None and self.reference not in self.names():
            yield f"study.budget is a share of what {self.reference!r} forgets: study.methods must have it"

    def rates(self, method: str) -> tuple[Rates, ...]:
        """The learning rates that are tried for a method, ascending.

        Example:
          >>> StudyConfig(grid=(2e-3, 1e-3)).rates("gems")
          ((0.001, None), (0.002, None))
          >>> StudyConfig(grid=(), item_grid=(1e-2, 3e-3)).rates("adamw")
          ((0.0003, 0.003), (0.0003, 0.01))
        """
        of_items: list[float | None] = [*sorted(self.item_grid)]
        of_kernels = sorted(self.grid) or [study_methods()[method].own_rate]
        return tuple((rate, items) for rate in of_kernels for items in of_items or [None])

    def with_rate(self, given: float | None) -> "StudyConfig":
        """The study with the learning rate that its configuration gives as its grid, where it has none itself."""
        return self if self.grid or given is None else dataclasses.replace(self, grid=(given,))

    def names(self) -> tuple[str, ...]:
        """The methods of the study, main ones first."""
        known = study_methods()
        chosen = [name for name in known if name in self.methods or not (self.methods or known[name].strength_of)]
        if self.frontier:
            chosen += [name for name in known if known[name].strength_of in chosen and name not in chosen]
        return tuple(sorted(chosen, key=lambda name: name not in self.main))

    def seeds_of(self, method: str) -> tuple[int, ...]:
        """The seeds that a method is run with."""
        if study_methods()[method].strength_of:
            return (0,)
        return tuple(range(self.seeds if method in self.main else self.rest_seeds))
