"""Paths and matrix roles of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gems_jax as gj
from gems_jax.linalg.matrix_dims import MatrixDims, resolve


@pytest.mark.parametrize(
    ("dims", "shape", "batch", "matrix"),
    [
        (MatrixDims(), (4, 6), 1, (4, 6)),
        (MatrixDims(), (3, 4, 6), 3, (4, 6)),
        (MatrixDims(0, (1, 2)), (4, 2, 3), 1, (4, 6)),
        (MatrixDims((1, 2), 3), (5, 2, 3, 4), 5, (6, 4)),
        (MatrixDims(1, 0), (6, 4), 1, (4, 6)),
        (MatrixDims(-2, -1), (2, 3, 4, 6), 6, (4, 6)),
    ],
    ids=str,
)
def test_matrices_and_leaves_go_both_ways(dims, shape, batch, matrix):
    spec = resolve(dims, shape)
    x = jnp.arange(float(np.prod(shape))).reshape(shape)
    m = spec.to_matrices(x)
    assert (spec.batch, spec.matrix_shape, m.shape) == (batch, matrix, (batch, *matrix))
    np.testing.assert_array_equal(spec.from_matrices(m), x)
    two = jnp.stack([x, -x])
    np.testing.assert_array_equal(spec.from_matrices(spec.to_matrices(two, 1), 1), two)


def test_a_product_with_the_matrix_is_the_layers_contraction():
    w = jax.random.normal(jax.random.key(0), (4, 2, 3))
    x = jax.random.normal(jax.random.key(1), (5, 4))
    flat = resolve(MatrixDims(0, (1, 2)), w.shape).to_matrices(w)[0]
    np.testing.assert_allclose(x @ flat, jnp.einsum("bm,mhd->bhd", x, w).reshape(5, 6), rtol=1e-5)


def test_dimension_numbers_that_do_not_fit_are_refused_by_name():
    with pytest.raises(ValueError, match=r"'a/b' of shape \[4\]: axis out of range"):
        resolve(MatrixDims(), (4,), "a/b")
    with pytest.raises(ValueError, match="twice"):
        resolve(MatrixDims(0, -2), (4, 6), "a")


def test_the_default_rule_takes_kernels_and_leaves_tables_and_gains_alone():
    rule = gj.default_matrix_dims
    matrix, stack = np.zeros((4, 4)), np.zeros((2, 4, 4))
    for path in ("encoder/mlp/wi/kernel", "q_proj/kernel", "w", "layers/0/weight"):
        assert rule(path, matrix) == MatrixDims()
    for path in ("token_embedding/embedding", "lm_head/kernel", "block/norm/scale", "relative_bias/embedding", "wte"):
        assert rule(path, matrix) is None
    assert rule("q/kernel", stack) is None
    assert gj.stacked_matrix_dims("q/kernel", stack) == MatrixDims()
    assert gj.stacked_matrix_dims("norm/scale", np.zeros((2, 4))) is None


KERNELS = str.split("""
    encoder/multi_head_attention/query encoder/cross_head_mixer positionwise_feed_forward/w1 pos_ffn/w1 norm/dense
    post_attention/dense block/post_mlp embedding_hidden_mapping_in h/0/ln_f_proj classification_head/dense norm_mlp
    decoder/posterior/dense unet/scale_1 head/mlp/dense lm_head/dense embeddings/project bias_network
""")
OTHERS = str.split("""
    token_embedding/embedding wte wpe lm_head/kernel lm_head/embedding relative_attention_bias/embedding
    embed_tokens/weight pos_embedding attention_norm/scale input_layernorm/weight ln_1/weight query/bias
""")


def test_names_count_whole_and_only_those_of_the_leaf_and_its_module():
    matrix = np.zeros((4, 4))
    assert [path for path in KERNELS if gj.default_matrix_dims(f"{path}/kernel", matrix) is None] == []
    assert [path for path in OTHERS if gj.default_matrix_dims(f"model/{path}", matrix) is not None] == []


def test_a_leaf_has_one_path_in_plain_trees_and_in_nnx():
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([nnx.Linear(2, 3, rngs=nnx.Rngs(0))])

    state = nnx.state(Model(), nnx.Param)
    plain = nnx.to_pure_dict(state)
    paths = [[gj.leaf_path(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)] for tree in (state, plain)]
    assert paths[0] == paths[1] == ["layers/0/bias", "layers/0/kernel"]
