"""Learning rates that follow from the method, where a configuration gives none."""

import dataclasses

from gems_jax.config.methods import METHODS
from gems_jax.config.run import Config
from gems_jax.config.train import TrainConfig


def kernel_rate(train: TrainConfig) -> float:
    """The learning rate of kernels: the one that is given, else the method's own.

    Example:
      >>> kernel_rate(TrainConfig(method="adamw")), kernel_rate(TrainConfig(method="adamw", learning_rate=0.5))
      (0.0003, 0.5)
    """
    return METHODS[train.method].own_rate.value if train.learning_rate is None else train.learning_rate


def with_rates(config: Config) -> Config:
    """The configuration with a number for ``train.learning_rate``, as runs keep it.

    Example:
      >>> with_rates(Config()).train.learning_rate
      0.003
    """
    return dataclasses.replace(config, train=dataclasses.replace(config.train, learning_rate=kernel_rate(config.train)))


def said(config: Config) -> str:
    """The learning rates for readers, and where the kernels' is from.

    Example:
      >>> said(Config(train=TrainConfig(learning_rate=0.5)))
      'learning rates: kernels 0.5, item rows 0.003'
      >>> print(said(Config(train=TrainConfig(method="released"))).replace("; ", ";\\n"))
      learning rates: kernels 0.0005 (of the method;
      the authors' own, of their train.sh;
      train.learning_rate sets another), item rows 0.003
    """
    train = config.train
    rates = f"learning rates: kernels {kernel_rate(train):g}{{}}, item rows {train.item_learning_rate:g}"
    if train.learning_rate is not None:
        return rates.format("")
    why = METHODS[train.method].own_rate.why
    if train.method == "gems" and not config.gems.null_space:
        galore = METHODS["galore"].own_rate.value
        why = f"for updates inside the null space, which gems.null_space false gives up: GaLore has {galore:g}"
    return rates.format(f" (of the method; {why}; train.learning_rate sets another)")
