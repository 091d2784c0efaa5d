"""``gems-jax export``."""

from typing import Any, Literal

from gems_jax.arguments import Command, Options
from gems_jax.commands.shared import quiet, tuned_run


def _add_options(options: Options) -> None:
    options.add("--out", str, "folder to write", required=True)
    about = "of the weights; default: the run's, model.dtype"
    options.add("--dtype", Literal["float32", "bfloat16"], about, default=None)


def _run(options: Any) -> int:
    quiet()
    from gems_jax.training.export import export
    from gems_jax.training.export_folder import check_folder
    from gems_jax.training.tuned import load_run
    from gems_jax.training.workdir.files import check_config

    config, workdir = tuned_run(options, check_config)
    inputs = {"the dataset (data.dir)": config.data.dir, "the null space (null_space.path)": config.null_space.path}
    inputs |= {"the identifiers (items.path)": config.items.path}
    check_folder(options.out, options.workdir, config.model.path, inputs)
    run = load_run(config, workdir)
    agreement = export(config, run.assets, run.model, options.out, options.workdir, options.dtype, run.edits.notice())
    print(f"export: {agreement.alike} of {agreement.tried} prompts tried have the tokens of training in transformers")
    if agreement.other:
        print(f"export: otherwise, for example: {agreement.other}")
    print(f"export: {options.out}")
    return 0


EXPORT = Command("write the tuned model as a Hugging Face folder", _run, _add_options, config="of a run")
