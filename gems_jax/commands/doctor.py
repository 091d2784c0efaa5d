"""``gems-jax doctor``."""

from typing import Any

from gems_jax.arguments import Command, Options, config_of


def _add_options(options: Options) -> None:
    about = "item tokens to reckon with; default: those of data.dir, or 20,000"
    options.add("--num_items", int, about, default=None)


def _run(options: Any) -> int:
    from gems_jax.training.doctor import doctor

    if options.num_items is not None and options.num_items < 1:
        raise ValueError(f"--num_items must be at least 1, got {options.num_items}")
    print(doctor(config_of(options), options.num_items))
    return 0


DOCTOR = Command("say what is installed, which devices there are and whether a run fits on them", _run, _add_options)
