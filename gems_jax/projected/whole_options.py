"""The options of the transform under which a step needs whole gradients."""


def option_for_whole(
    decomposition: str, constraint: str, stagger: bool, recovery: str, is_scored: bool, has_task_bases: bool
) -> str | None:
    """The name of the first option that needs whole gradients, ``None`` if there is none.

    Args:
      decomposition, constraint, stagger, recovery: options of `gems_jax.gems`.
      is_scored: whether the gate scores former updates of the tasks against the shared gradient.
      has_task_bases: whether tasks have bases of their own, without which there is nothing to score.

    Example:
      >>> [option_for_whole("auto", "update", False, "none", True, has_task_bases) for has_task_bases in (True, False)]
      ['gate', None]
    """
    if decomposition not in ("auto", "subspace", "random"):
        return "decomposition"
    if constraint == "gradient":
        return "constraint"
    if stagger:
        return "stagger"
    if recovery != "none":
        return "recovery"
    return "gate" if is_scored and has_task_bases else None
