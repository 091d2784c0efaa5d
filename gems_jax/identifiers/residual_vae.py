"""RQ-VAE: an encoder, residual codebooks and a decoder, trained together (TIGER, arXiv 2305.05065)."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gems_jax.identifiers.checks import check_sizes, checked_embeddings
from gems_jax.identifiers.codes import Identifiers, quantise
from gems_jax.identifiers.kmeans import slices_of
from gems_jax.identifiers.measures import level_errors
from gems_jax.identifiers.residual_kmeans import rkmeans

# Weight of the encoder's pull towards the codes it was given, as published.
_COMMITMENT = 0.25
# Steps between looks for codes that no item had since the last.
_LOOK = 50


class _Net(NamedTuple):
    """Layers with a rectifier between them: kernels ``[in, out]`` and biases."""

    kernels: tuple[jax.Array, ...]
    biases: tuple[jax.Array, ...]

    @classmethod
    def create(cls, widths: Sequence[int], key: jax.Array) -> "_Net":
        keys = jax.random.split(key, len(widths) - 1)
        shapes = zip(widths[:-1], widths[1:], strict=True)
        kernels = [jax.nn.initializers.he_normal()(k, shape) for k, shape in zip(keys, shapes, strict=True)]
        return cls(tuple(kernels), tuple(jnp.zeros(width) for width in widths[1:]))

    def __call__(self, x: jax.Array) -> jax.Array:
        for number, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            x = jax.nn.relu(x) if number else x
            x = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST) + bias
        return x


class _Weights(NamedTuple):
    encoder: _Net
    decoder: _Net
    books: jax.Array  # [L, K, latent]


@dataclasses.dataclass(frozen=True, eq=False)
class LatentEncoder:
    """From embeddings float32 ``[n, d]`` to what an RQ-VAE quantises, ``[n, latent]``.

    Args:
      kernels: float32 ``[in, out]`` of each layer.
      biases: float32 ``[out]`` of each layer.
      mean: float32 ``[d]``, taken off the embeddings.
      scale: they are divided by it.
    """

    kernels: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    mean: np.ndarray
    scale: float

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        if embeddings.shape[1] != len(self.mean):
            raise ValueError(
                f"embeddings have {embeddings.shape[1]} dimensions, the encoder reads {len(self.mean)}: take those of "
                "the model that the codebooks were made with"
            )
        count = len(embeddings)
        padded = np.zeros((1 << max(8, (count - 1).bit_length()), embeddings.shape[1]), np.float32)
        padded[:count] = (embeddings - self.mean) / self.scale
        net = _Net(tuple(map(jnp.asarray, self.kernels)), tuple(map(jnp.asarray, self.biases)))
        return np.asarray(_apply(net, padded))[:count]


@jax.jit
def _apply(net: _Net, x: jax.Array) -> jax.Array:
    return net(x)


def rqvae(
    embeddings: np.ndarray,
    levels: int = 3,
    size: int = 256,
    seed: int = 0,
    *,
    latent: int = 32,
    hidden: Sequence[int] = (512, 256, 128),
    steps: int = 4000,
    batch_size: int = 1024,
    learning_rate: float = 1e-3,
) -> Identifiers:
    """Codes of items by an RQ-VAE.

    ``z = enc(x)``, ``r_1 = z``, ``c_l = argmin_k |r_l - C_l[k]|^2``, ``r_{l + 1} = r_l - C_l[c_l]``; minimised is the
    mean of ``|x - dec(z + sg(sum_l C_l[c_l] - z))|^2 + sum_l |sg(r_l) - C_l[c_l]|^2 + .25 |r_l - sg(C_l[c_l])|^2``,
    where ``sg`` stops gradients and ``x`` are the embeddings without their mean, of mean variance 1. Codebooks start
    from residual k-means of the first encoder's outputs; a code that no item takes for a while moves to one.

    Args:
      embeddings: float ``[N, d]``.
      levels: L, number of codebooks.
      size: K, codes of each.
      seed: of the weights, the batches and the codebooks' start; the same seed gives the same bits.
      latent: width of what is quantised.
      hidden: widths of the encoder's layers; the decoder has them the other way round.
      steps: of AdamW.
      batch_size: items a step, drawn at random.
      learning_rate: of AdamW, constant.

    Returns:
      `Identifiers` with ``codebooks`` float32 ``[L, K, latent]`` and the trained encoder; its ``errors`` are of the
      encoder's outputs.

    Raises:
      ValueError: a wrong shape, numbers that are not finite, or an argument out of range.

    Example:
      >>> rows = np.random.default_rng(0).normal(size=(50, 4))
      >>> ids = rqvae(rows, levels=2, size=4, latent=2, hidden=(8,), steps=5, batch_size=8)
      >>> ids.codes.shape, ids.codebooks.shape, bool((ids.assign(rows) == ids.codes).all())
      ((50, 2), (2, 4, 2), True)
    """
    check_sizes(levels, size)
    for name, number in (("latent", latent), ("steps", steps), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    rows = checked_embeddings(embeddings)
    mean = rows.mean(0, dtype=np.float64).astype(np.float32)
    squares = sum(float(np.square(rows[part] - mean).sum(dtype=np.float64)) for part in slices_of(len(rows)))
    scale = (squares / rows.size) ** 0.5 or 1.0
    widths = (rows.shape[1], *hidden, latent)
    keys = jax.random.split(jax.random.key(seed), 2)
    encoder, decoder = _Net.create(widths, keys[0]), _Net.create(widths[::-1], keys[1])
    rng = np.random.default_rng(seed)

    def drawn(count: int) -> np.ndarray:
        return (rows[rng.integers(len(rows), size=count)] - mean) / scale

    first = np.asarray(_apply(encoder, drawn(min(len(rows), 16 * size + batch_size))))
    started = rkmeans(first, levels, size, seed).codebooks
    weights = _Weights(encoder, decoder, jnp.asarray(started))
    optimiser = optax.adamw(learning_rate)
    state = optimiser.init(weights)
    update = jax.jit(lambda weights, state, batch: _step(optimiser, weights, state, batch))
    used = np.zeros((levels, size), bool)
    for number in range(1, steps + 1):
        weights, state, (codes, residuals) = update(weights, state, drawn(batch_size))
        np.put_along_axis(used, np.asarray(codes), True, axis=1)
        if number % _LOOK == 0 and number < steps:
            weights = weights._replace(books=_revived(weights.books, used, np.asarray(residuals), rng))
            used[:] = False
    trained = LatentEncoder(
        tuple(map(np.asarray, weights.encoder.kernels)), tuple(map(np.asarray, weights.encoder.biases)), mean, scale
    )
    made = Identifiers(np.zeros((0, levels), np.int32), np.asarray(weights.books), encoder=trained)
    vectors, books = made.vectors(rows), np.asarray(weights.books)
    codes = quantise(vectors, books)
    return dataclasses.replace(made, codes=codes, errors=level_errors(codes, vectors, books))


def _loss(weights: _Weights, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The loss of a batch ``[B, d]``; codes int32 ``[L, B]`` and residuals ``[L, B, latent]`` beside it."""
    stop = jax.lax.stop_gradient
    left = encoded = weights.encoder(x)
    distance = jnp.zeros(len(x))
    codes, residuals = [], []
    for book in weights.books:
        scores = (book * book).sum(1) - 2 * jnp.matmul(left, book.T, precision=jax.lax.Precision.HIGHEST)
        code = scores.argmin(1)
        vectors = book[code]
        distance += jnp.square(stop(left) - vectors).sum(1) + _COMMITMENT * jnp.square(left - stop(vectors)).sum(1)
        codes.append(code)
        residuals.append(left)
        left = left - stop(vectors)
    decoded = weights.decoder(encoded - stop(left))
    loss = (jnp.square(x - decoded).sum(1) + distance).mean()
    return loss, (jnp.stack(codes), jnp.stack(residuals))


def _step(
    optimiser: optax.GradientTransformation, weights: _Weights, state: optax.OptState, batch: jax.Array
) -> tuple[_Weights, optax.OptState, tuple[jax.Array, jax.Array]]:
    gradients, seen = jax.grad(_loss, has_aux=True)(weights, batch)
    updates, state = optimiser.update(gradients, state, weights)
    return optax.apply_updates(weights, updates), state, seen


def _revived(books: jax.Array, used: np.ndarray, residuals: np.ndarray, rng: np.random.Generator) -> jax.Array:
    """Codebooks whose unused codes are moved to vectors of a batch."""
    changed = np.array(books)
    for book, taken, rows in zip(changed, used, residuals, strict=True):
        idle = np.flatnonzero(~taken)
        book[idle] = rows[rng.integers(len(rows), size=len(idle))]
    return jnp.asarray(changed)
