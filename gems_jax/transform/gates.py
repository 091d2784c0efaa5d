"""Gates: how much each task's own update counts."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gems_jax.argument_checks import check_number, check_whole, refuse

State = Any


class Signals(NamedTuple):
    """The numbers that a gate may look at in a step, ``[T]`` each, float32, or float64 where gradients are.

    Attributes:
      losses: mean loss per task (ones where not given).
      grad_norms: global norm of each task's gradient.
      counts: label tokens per task (ones where not given).
      progress: ``<U_t^T G_mean, X_t>``, the former step's update of each task scored against the present
        mean gradient: positive where more of that update would have lowered the mean loss; zeros unless the
        gate asks for it.
    """

    losses: jax.Array
    grad_norms: jax.Array
    counts: jax.Array
    progress: jax.Array


class Gate(NamedTuple):
    """A gate as a pair of pure functions and what it needs.

    Attributes:
      init: ``init(num_tasks) -> state``, a pytree of arrays.
      update: ``update(signals, state) -> (gates [T], state)``; gates are non-negative and sum to 1.
      needs: extra arguments of the update without which the gate cannot work (``"task_losses"``, ...).
      needs_progress: whether `Signals.progress` is wanted (it costs the former steps' low-rank updates).
      norms: gradient norms over ``"full"`` gradients or ``"projected"`` ones.
    """

    init: Callable[[int], State]
    update: Callable[[Signals, State], tuple[jax.Array, State]]
    needs: tuple[str, ...] = ()
    needs_progress: bool = False
    norms: Literal["full", "projected"] = "full"


def fresh_state(gate: Gate, num_tasks: int, dtype: Any) -> State:
    """A gate's first state, its numbers at least as precise as ``dtype``."""

    def widened(x: jax.Array) -> jax.Array:
        return x.astype(jnp.promote_types(x.dtype, dtype)) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(widened, gate.init(num_tasks))


def share(x: jax.Array, floor: float = 1e-8) -> jax.Array:
    """``x_t / sum(x)``, equal shares where the sum is at most ``floor``.

    Example:
      >>> import jax.numpy as jnp
      >>> share(jnp.array([3.0, 1.0])).tolist(), share(jnp.zeros(2)).tolist()
      ([0.75, 0.25], [0.5, 0.5])
    """
    x = jnp.asarray(x, jnp.promote_types(jnp.asarray(x).dtype, jnp.float32))
    largest = jnp.max(x)
    # Shares of the scaled values: a plain sum of large norms may overflow.
    scaled = x / jnp.where(largest > 0, largest, 1)
    total = jnp.sum(scaled)
    enough = total * largest > floor
    return jnp.where(enough, scaled / jnp.where(enough, total, 1), 1 / x.shape[0])


def shares(signals: Signals) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss, gradient-norm and count shares, ``[T]`` each."""
    return share(signals.losses), share(signals.grad_norms), share(signals.counts, floor=0.0)


def heuristic(
    loss: float = 0.4,
    grad_norm: float = 0.4,
    count: float = 0.2,
    norms: Literal["full", "projected"] = "full",
) -> Gate:
    """A weighted mean of the tasks' shares of loss, gradient norm and tokens (arXiv 2601.09496, section 3).

    ``g ~ loss * loss_share + grad_norm * norm_share + count * count_share``, normalised to sum 1; a share is
    ``1/T`` where its sum is at most 1e-8 (count: 0).

    Args:
      loss: coefficient of the loss share.
      grad_norm: coefficient of the gradient-norm share.
      count: coefficient of the token share.
      norms: ``"full"`` gradients' norms over all leaves, or norms of the ``"projected"`` ones.

    Returns:
      A `Gate`.

    Raises:
      ValueError: a negative coefficient, or all zero.

    Example:
      >>> import jax.numpy as jnp
      >>> gate = heuristic(loss=1.0, grad_norm=0.0, count=0.0)
      >>> ones = jnp.ones(2)
      >>> gate.update(Signals(jnp.array([3.0, 1.0]), ones, ones, ones), gate.init(2))[0].tolist()
      [0.75, 0.25]
    """
    coefficients = (loss, grad_norm, count)
    for name, value in zip(("loss", "grad_norm", "count"), coefficients, strict=True):
        check_number(name, value)
    if min(coefficients) < 0 or sum(coefficients) <= 0:
        raise ValueError(f"gate coefficients must be >= 0 and not all 0, got loss, grad_norm, count = {coefficients}")
    if norms not in ("full", "projected"):
        raise ValueError(f"norms is {norms!r}; choose 'full' or 'projected'")

    def update(signals: Signals, state: State) -> tuple[jax.Array, State]:
        weighted = [c * s for c, s in zip(coefficients, shares(signals), strict=True)]
        gates = weighted[0] + weighted[1] + weighted[2]
        return share(gates, floor=0.0), state

    return Gate(init=lambda num_tasks: (), update=update, norms=norms)


def constant(weights: Sequence[float]) -> Gate:
    """The same gates at every step.

    Args:
      weights: one number per task, non-negative; normalised to sum 1.

    Returns:
      A `Gate`.

    Raises:
      ValueError: negative weights, none, or another number of them than there are tasks.

    Example:
      >>> gate = constant([3, 1])
      >>> gate.update(None, gate.init(2))[0].tolist()
      [0.75, 0.25]
    """
    if isinstance(weights, str) or not hasattr(weights, "__iter__"):
        refuse("weights", weights, "a number for each task, such as [3, 1]")
    weights = tuple(weights)
    for weight in weights:
        check_number("an entry of weights", weight)
    weights = tuple(map(float, weights))
    if not weights or min(weights) < 0 or sum(weights) <= 0:
        raise ValueError(f"constant gates must be >= 0 and not all 0, got {weights}")

    def init(num_tasks: int) -> State:
        if num_tasks != len(weights):
            raise ValueError(f"gates.constant has {len(weights)} weights for num_tasks={num_tasks}; give one a task")
        return ()

    def update(signals: Signals, state: State) -> tuple[jax.Array, State]:
        dtype = jnp.float32 if signals is None else signals.grad_norms.dtype
        return jnp.asarray(weights, dtype) / sum(weights), state

    return Gate(init=init, update=update)


class LearnedState(NamedTuple):
    """State of `learned`: the network, its optimiser, the features it last saw, the temperature, the step."""

    params: Any
    optimiser: Any
    features: jax.Array
    temperature: jax.Array
    count: jax.Array  # type: ignore[assignment]


def network(params: Sequence[dict[str, jax.Array]], features: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """``softmax(MLP(features) / temperature)`` with ReLU between the layers, ``y = x @ kernel + bias``.

    Args:
      params: layers, each ``{"kernel": [in, out], "bias": [out]}``.
      features: ``[3 T]`` loss, gradient-norm and count shares.
      temperature: above 0.

    Returns:
      ``[T]`` gates.
    """
    x = features
    for i, layer in enumerate(params):
        x = x @ layer["kernel"] + layer["bias"]
        x = jax.nn.relu(x) if i + 1 < len(params) else x
    return jax.nn.softmax(x / temperature)


def learned(
    learning_rate: float = 5e-5,
    hidden: int = 128,
    temperature: float = 1.5,
    min_temperature: float = 0.1,
    decay: float = 0.99,
    entropy: float = 0.1,
    seed: int = 0,
) -> Gate:
    """A small network on the tasks' shares, trained by a hypergradient while the model trains.

    ``g = softmax(MLP([loss, norm, count shares]) / temperature)``, ``3T -> hidden -> hidden/2 -> T``. The mean
    loss after a step changes by ``-lr * scale * sum_t g_t <G_mean, U_t X_t>``, so the network ascends
    ``sum_t g_t p_t / max|p| + entropy * H(g)``, ``p_t = <U_t^T G_mean(k+1), X_t(k)>`` for the gates of step
    ``k``: no second model pass. The entropy term keeps gates apart from 0 and 1 when all tasks help.

    Args:
      learning_rate: of the network's Adam.
      hidden: width of the first hidden layer, at least 2.
      temperature: at the first step.
      min_temperature: the floor of the decay.
      decay: factor a step.
      entropy: weight of the entropy term.
      seed: of the network's random start (last layer zero: equal gates at first).

    Returns:
      A `Gate` that asks for losses.

    Raises:
      ValueError: a value out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> gate = learned(learning_rate=0.1, hidden=8)
      >>> shares = jnp.ones(2)
      >>> progress = jnp.array([1.0, 0.0])  # the first task's last step lowered the mean loss
      >>> gates, state = gate.update(Signals(shares, shares, shares, progress), gate.init(2))
      >>> for _ in range(10):
      ...     gates, state = gate.update(Signals(shares, shares, shares, progress), state)
      >>> bool(gates[0] > 0.6)
      True
    """
    check_whole("hidden", hidden, 2)
    check_whole("seed", seed)
    check_number("learning_rate", learning_rate, schedule=True)
    for name, value in (("temperature", temperature), ("min_temperature", min_temperature), ("decay", decay)):
        check_number(name, value)
    check_number("entropy", entropy)
    if not 0 < min_temperature <= temperature or not 0 < decay <= 1:
        raise ValueError(
            "gates.learned needs 0 < min_temperature <= temperature and 0 < decay <= 1, got "
            f"min_temperature={min_temperature}, temperature={temperature}, decay={decay}"
        )
    optimiser = optax.adam(learning_rate)

    def init(num_tasks: int) -> LearnedState:
        widths = (3 * num_tasks, hidden, hidden // 2, num_tasks)
        keys = jax.random.split(jax.random.key(seed), 3)
        params = [
            {
                "kernel": jax.random.normal(k, (m, n), jnp.float32) * (2 / m) ** 0.5 * (i < 2),
                "bias": jnp.zeros((n,), jnp.float32),
            }
            for i, (k, m, n) in enumerate(zip(keys, widths[:-1], widths[1:], strict=True))
        ]
        return LearnedState(
            params=params,
            optimiser=optimiser.init(params),
            features=jnp.zeros((3 * num_tasks,), jnp.float32),
            temperature=jnp.asarray(temperature, jnp.float32),
            count=jnp.zeros((), jnp.int32),
        )

    def loss(params: Any, features: jax.Array, at: jax.Array, progress: jax.Array) -> jax.Array:
        gates = network(params, features, at)
        uncertainty = -jnp.sum(gates * jnp.log(jnp.maximum(gates, 1e-12)))
        return -jnp.sum(gates * progress) - entropy * uncertainty

    def update(signals: Signals, state: LearnedState) -> tuple[jax.Array, LearnedState]:
        largest = jnp.max(jnp.abs(signals.progress))
        known = (state.count > 0) & (largest > 0) & jnp.isfinite(largest)
        progress = jnp.where(known, signals.progress / jnp.where(known, largest, 1), 0)
        grads = jax.grad(loss)(state.params, state.features, state.temperature, progress)
        steps, moments = optimiser.update(grads, state.optimiser, state.params)
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(known, a, b), new, old)  # noqa: E731
        params = keep(optax.apply_updates(state.params, steps), state.params)
        features = jnp.concatenate(shares(signals)).astype(state.features.dtype)
        now = jnp.where(state.count > 0, jnp.maximum(state.temperature * decay, min_temperature), state.temperature)
        gates = network(params, features, now)
        return gates, LearnedState(params, keep(moments, state.optimiser), features, now, state.count + 1)

    return Gate(init=init, update=update, needs=("task_losses",), needs_progress=True)
