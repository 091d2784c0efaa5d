"""Names of jax primitives by what they do to the axes of their operands."""

_names = str.split

# These only pass a value on.
ALIASES = frozenset(
    _names(
        "convert_element_type copy copy_p optimization_barrier pvary reduce_precision sharding_constraint stop_gradient"
    )
)
# Each entry of the result depends on the same entry of the operands.
ELEMENTWISE = ALIASES | frozenset(
    _names(
        "abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp clz complex "
        "conj cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow "
        "is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not or polygamma population_count pow "
        "random_gamma real regularized_incomplete_beta rem round rsqrt select_n shift_left shift_right_arithmetic "
        "shift_right_logical sign sin sinh sqrt square sub tan tanh xor"
    )
)
# Each entry depends on those of an axis that is left.
CUMULATIVE = frozenset(_names("cumlogsumexp cummax cummin cumprod cumsum"))
# Axes are gone.
REDUCTIONS = frozenset(
    _names("argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum reduce_xor")
)
# Entries are moved, none is computed.
MOVEMENTS = frozenset(
    _names(
        "broadcast_in_dim concatenate dynamic_slice dynamic_update_slice expand_dims gather pad reshape rev slice "
        "split squeeze transpose"
    )
)
# Primitives that are a call of an inner jaxpr on all their operands, and its parameter.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
}
