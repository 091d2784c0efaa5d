"""The program of a step with projected gradients is small: its memory is what the way is for, and compiling is dear."""

import pytest
from scanned_step import TASKS, traced_step

import gems_jax as gj
from gems_jax.projected.packed_bases import SKETCH

LAYERS, WIDTH, RANK, KERNELS = 4, 128, 32, 4
F32 = 4


def traced(kernels):
    return traced_step(kernels, LAYERS, WIDTH, RANK, gj.projected_task_grads)


@pytest.mark.slow
def test_a_step_holds_a_few_times_its_products_and_no_copies_of_moments_and_updates():
    products = KERNELS * LAYERS * TASKS * (RANK + RANK // 2 + SKETCH) * WIDTH * F32
    # 4.3 of them; 4.9 when bases were copied from pass to pass; 8.5 when a refresh kept those with the former bases,
    # and the step all moments and updates twice.
    compiled = traced(KERNELS).lower().compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4.8 * products


def equations(jaxpr):
    yield from jaxpr.eqns
    for eqn in jaxpr.eqns:
        for value in eqn.params.values():
            for inner in value if isinstance(value, list | tuple) else (value,):
                if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                    yield from equations(getattr(inner, "jaxpr", inner))


def test_another_stack_of_kernels_adds_a_bounded_number_of_equations():
    fewer, more = (list(equations(traced(n).jaxpr.jaxpr)) for n in (2, 3))
    # 1,173, 140 of them to keep bases where they lie; 200 more when sizes of gradients were written down wherever they
    # are needed.
    assert len(more) - len(fewer) < 1_200
    # XLA of jaxlib 0.10.2 copies the body of a loop whose condition is on one of its values, in pass after pass.
    loops = [eqn for eqn in more if eqn.primitive.name == "while"]
    of_passes = max(loops, key=lambda eqn: len(list(equations(eqn.params["body_jaxpr"].jaxpr))))
    condition = of_passes.params["cond_jaxpr"].jaxpr
    read = {v for eqn in condition.eqns for v in eqn.invars if v in condition.invars}
    assert len(read) == 2
