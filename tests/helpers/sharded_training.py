"""Training steps on eight devices made of one processor, beside the same steps on one; run as a program.

    python sharded_training.py FOLDER                 all meshes, in one process
    python sharded_training.py FOLDER PORT PROCESS    those of `TOGETHER`, in two processes of four devices

A process has its devices for life, so `training/test_mesh_training` runs this in processes of their own. Writes JSON
and checkpoints into the folder.
"""

import json
import sys
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from fake_devices import fake_devices
from few_kernels import few_kernels
from jax.sharding import AxisType, Mesh

STEPS = 3  # refreshes at the first and the third
TASKS = ("rec", "src")
ROWS, LENGTH, WIDTH, VOCABULARY, ITEMS = 8, 6, 16, 32, 16
MESHES = {
    "data 8": {"data": 8, "fsdp": 1, "tensor": 1},
    "fsdp 8": {"data": 1, "fsdp": 8, "tensor": 1},
    "fsdp 4 x tensor 2": {"data": 1, "fsdp": 4, "tensor": 2},
    "task 2 x fsdp 4": {"data": 1, "fsdp": 4, "task": 2, "tensor": 1},
}
ONE = {"data": 1, "fsdp": 1, "tensor": 1}
# A T5 model has no axes that a decoder lacks.
FAMILIES = {"t5": ("fsdp 4 x tensor 2",), "decoder": tuple(MESHES)}
# The kernels that have subspaces: one split by input over `fsdp` and by output over `tensor`, one the other way round.
KERNELS = {
    "t5": r"encoder/block/mlp/wo|decoder/block/cross_attention/k",
    "decoder": r"(q|down)/kernel",
}
# Rows of both tasks on the devices of both processes.
TOGETHER = ("task 2 x fsdp 4",)


def model_of(family):
    """A model of two layers (T5: in each of its stacks) with items."""
    from gems_jax.models import T5, Decoder, DecoderConfig, T5Config

    shared = {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_ff": WIDTH, "num_layers": 2, "num_heads": 2}
    shared |= {"eos_token_id": 1, "num_added_tokens": ITEMS}
    if family == "t5":
        return T5.create(T5Config(**shared, d_kv=8, num_decoder_layers=2), jax.random.key(0))
    return Decoder.create(DecoderConfig(**shared, num_kv_heads=2, head_dim=8), jax.random.key(0))


def batch_of(family, number):
    """A batch of all tasks and rows."""
    rng = np.random.default_rng([number, len(family)])
    shape = (len(TASKS), ROWS, LENGTH)
    tokens = rng.integers(2, VOCABULARY, shape).astype(np.int32)
    batch = {"input_ids": tokens, "attention_mask": np.ones(shape, np.int32)}
    answers = (len(TASKS), ROWS, 2) if family == "t5" else shape
    labels = rng.integers(VOCABULARY, VOCABULARY + ITEMS, answers).astype(np.int32)
    mask = np.ones(answers, np.int32)
    if family == "t5":
        batch["decoder_input_ids"] = np.concatenate([np.zeros_like(labels[..., :1]), labels[..., :-1]], -1)
    else:
        mask[..., :-2] = 0
    mask[1, :3] = 0  # the tasks differ in their number of tokens
    return batch | {"labels": labels, "label_mask": mask}


def config_of(method="gems"):
    import dataclasses

    from gems_jax.config.run import Config

    config = Config()
    return dataclasses.replace(
        config,
        gems=dataclasses.replace(config.gems, rank=4, task_rank=2, refresh_every=2),
        train=dataclasses.replace(
            config.train,
            method=method,
            steps=STEPS,
            warmup=0,
            schedule="constant",
            weight_decay=0.1,
            learning_rate=1e-2,
        ),
    )


def null_space_of(model):
    """Random protected directions of the input of every kernel."""
    from flax import nnx

    from gems_jax import NullSpace
    from gems_jax.leaf_path import leaf_path

    moments = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.state(model, nnx.Param)):
        if leaf_path(path).endswith("kernel"):
            x = np.random.default_rng(len(moments)).normal(size=(leaf.shape[0], 3, leaf.shape[1]))
            moments[leaf_path(path)] = np.einsum("lni,lnj->lij", x, x)
    return NullSpace.from_moments(moments, rank=3)


def mesh_of(sizes):
    count = int(np.prod(list(sizes.values())))
    devices = np.array(jax.devices()[:count]).reshape(tuple(sizes.values()))
    return Mesh(devices, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


class Trained:
    """A few steps on a mesh."""

    def __init__(self, family, sizes):
        from gems_jax.training.compile import compile_step
        from gems_jax.training.distributed.mesh import row_part

        model = model_of(family)
        self.family = family
        self.mesh = mesh_of(sizes)
        with few_kernels(KERNELS[family]):
            self.made = compile_step(self.mesh, model, config_of(), TASKS, null_space_of(model), 2)
        self.begin = self.gathered(self.made.params)
        part, parts = row_part(self.mesh)
        self.own = slice(part * ROWS // parts, (part + 1) * ROWS // parts)
        params, state = self.made.params, self.made.opt_state
        self.places = [places(params, state)]
        self.losses, self.leaks = [], []
        for number in range(STEPS):
            params, state, told = self.step(params, state, number)
            self.places.append(places(params, state))
            self.losses.append([float(x) for x in told["losses"].addressable_data(0)])
            self.leaks.append(float(told["null_space/leak"].addressable_data(0)))
        self.params, self.state = params, state

    def step(self, params, state, number):
        return self.made.step(params, state, *self.others(number))

    def lowered(self):
        return self.made.step.lower(self.params, self.state, *self.others(0))

    def others(self, number):
        """What a step gets beside parameters and state."""
        from gems_jax.training.distributed.mesh import batch_sharding

        where = batch_sharding(self.mesh)
        batch = {
            name: jax.make_array_from_process_local_data(where, x[:, self.own])
            for name, x in batch_of(self.family, number).items()
        }
        return self.made.frozen, batch, self.control(number)

    def control(self, number):
        from jax.sharding import NamedSharding, PartitionSpec

        from gems_jax.training.distributed.mesh import on_every_device
        from gems_jax.training.optimiser.rates import peak_rates
        from gems_jax.training.step import Control

        put = lambda x: on_every_device(x, self.mesh)  # noqa: E731
        by_device = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
        codes = np.zeros(len(self.mesh.local_devices), np.int32)
        stop = jax.make_array_from_process_local_data(by_device, codes, (self.mesh.size,))
        train = config_of().train
        rates, seed = put(peak_rates(train)), put(np.uint32(train.seed))
        return Control(put(np.int32(number)), put(np.int32(0)), put(np.bool_(True)), stop, rates, seed)

    def gathered(self, tree):
        from gems_jax.training.distributed.mesh import gathered

        return jax.device_get(gathered(tree, self.mesh))


def places(*trees):
    return [x.sharding for x in jax.tree.leaves(trees)]


def same_places(found, wanted, leaves):
    return all(a.is_equivalent_to(b, x.ndim) for a, b, x in zip(found, wanted, leaves, strict=True))


def difference(found, expected):
    """Largest difference, relative to the largest entry of each leaf."""
    return max(
        float(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)), initial=0))
        / max(float(np.max(np.abs(np.asarray(b, np.float64)), initial=0)), 1e-30)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    )


def checkpoints(folder):
    from gems_jax.training.workdir.checkpoints import Checkpoints

    return Checkpoints(folder)


def save(trained, folder):
    with checkpoints(folder) as kept:
        kept.save(STEPS, trained.params, trained.state, {})
        kept.wait()


def restored(trained, folder):
    """Whether a checkpoint comes back where a run on this mesh has its arrays, and whether one more step compiles."""
    with checkpoints(folder) as kept:
        # What a run begins with was donated; its shapes and places are those of what it has now.
        _, params, state, _ = kept.restore_latest(trained.params, trained.state)
    same = same_places(places(params, state), trained.places[0], jax.tree.leaves((params, state)))
    arrays = trained.gathered((params, state))
    trained.step(params, state, STEPS)
    return arrays, {"in place": same, "compiled": trained.made.step._cache_size()}


def wait_for(path):
    begin = time.monotonic()
    while not path.exists():
        if time.monotonic() - begin > 1000:
            raise TimeoutError(f"no {path}")
        time.sleep(0.1)


# Which branch of a conditional a step takes, by the file it is in: blocks are in a good condition, gradients finite,
# the leak is not measured.
BRANCHES = {"orthonormal.py": 1, "guard.py": 1, "step.py": 0}


def sent(text, refresh=False):
    """Calls and bytes each device sends, by kind of collective, of a compiled program."""
    from planning.costs import costs_of

    branches = BRANCHES | {"refresh_groups.py": int(refresh)}
    # Loops whose trip count is data: two passes.
    costs = costs_of(text, lambda x: branches.get(Path(x.source).name), unknown_trips=2)
    found = {}
    for key, calls in costs.calls.items():
        before = found.get(key.kind, (0, 0))
        found[key.kind] = (before[0] + round(calls), before[1] + round(costs.wire[key]))
    return found


def collectives(trained):
    # Compiled already: this is a matter of looking it up.
    text = trained.lowered().compile().as_text()
    return {"plain": sent(text), "refresh": sent(text, refresh=True)}


def sent_by_a_loss(kept):
    """Bytes sent for a decoder's loss and its gradient, of many tokens, with kernels and table split by ``fsdp``."""
    from gems_jax.models import vocabulary
    from gems_jax.training.distributed.mesh import on_mesh, param_sharding
    from gems_jax.training.losses import task_loss
    from gems_jax.training.trainable import split_model

    mesh = mesh_of(MESHES["fsdp 8"])
    graph, params, frozen = split_model(model_of("decoder"), config_of())
    params, frozen = (jax.device_put(tree, param_sharding(tree, mesh)) for tree in (params, frozen))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
    batch = {name: jax.device_put(np.tile(x[0], (32, 1)), rows) for name, x in batch_of("decoder", 0).items()}
    loss = jax.value_and_grad(task_loss(graph, "items"))
    places = jax.tree.map(lambda x: x.sharding, params)
    with mock.patch.object(vocabulary, "keep_rows", vocabulary.keep_rows if kept else lambda x: x):
        step = jax.jit(on_mesh(loss, mesh), out_shardings=(None, places))
        text = step.lower(params, frozen, batch).compile().as_text()
    return sum(size for _, size in sent(text).values())


def told_of(trained):
    """What there is to know of a run by itself."""
    leaves = jax.tree.leaves((trained.params, trained.state))
    return {
        "losses": trained.losses,
        "leak": max(trained.leaks),
        "stays": [same_places(found, trained.places[0], leaves) for found in trained.places],
        "compiled": trained.made.step._cache_size(),
    }


def alone(folder):
    """All meshes of eight devices in this process, beside one device; checkpoints go from each to the next."""
    told = {"rows kept": sent_by_a_loss(True), "rows left": sent_by_a_loss(False)}
    for family, meshes in FAMILIES.items():
        one = Trained(family, ONE)
        expected = one.gathered(one.params)
        told[family] = {"one": told_of(one) | {"moved": difference(expected, one.begin)}}
        before = one
        for name in meshes:
            found = Trained(family, MESHES[name])
            arrays = found.gathered((found.params, found.state))
            told[family][name] = told_of(found) | {"params": difference(arrays[0], expected)}
            if family == "decoder":
                place = folder / f"before {name}"
                save(before, place)
                saved = before.gathered((before.params, before.state))
                again, found_again = restored(found, place)
                told[family][name] |= found_again | {"kept": difference(again, saved)}
                told[family][name]["collectives"] = collectives(found)
                if name in TOGETHER:
                    np.savez(folder / f"{name}.npz", *jax.tree.leaves(arrays))
            before = found
    save(before, folder / "last")
    (folder / "last is saved").touch()
    wait_for(folder / "together is saved")
    again, told["from two processes"] = restored(one, folder / "together")
    told["from two processes"]["kept"] = difference(again, arrays_in(folder / "together.npz"))
    (folder / "alone.json").write_text(json.dumps(told))


def together(folder, port, process):
    """The same in two processes of four devices each."""
    jax.distributed.initialize(f"localhost:{port}", 2, process)
    told = {}
    for name in TOGETHER:
        found = Trained("decoder", MESHES[name])
        arrays = jax.tree.leaves(found.gathered((found.params, found.state)))
        told[name] = told_of(found)
        if process == 0:
            np.savez(folder / f"two {name}.npz", *arrays)
    save(found, folder / "together")
    if process == 0:
        np.savez(folder / "together.npz", *arrays)
        (folder / "together is saved").touch()
    wait_for(folder / "last is saved")
    again, told["from one process"] = restored(found, folder / "last")
    told["from one process"]["kept"] = difference(again, arrays_in(folder / f"{TOGETHER[-1]}.npz"))
    if process == 0:
        (folder / "together.json").write_text(json.dumps(told))


def arrays_in(path):
    with np.load(path, allow_pickle=False) as found:
        return [found[f"arr_{i}"] for i in range(len(found.files))]


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]
    jax.config.update("jax_platforms", "cpu")
    fake_devices(4 if len(sys.argv) > 2 else 8)
    if len(sys.argv) > 2:
        together(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    else:
        alone(Path(sys.argv[1]))
