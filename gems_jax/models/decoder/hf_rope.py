"""Rotary positions as ``config.json`` describes them, in the keys of older and newer versions of transformers."""

from collections.abc import Mapping
from typing import Any

from gems_jax.models.config_checks import is_number, shown
from gems_jax.models.decoder.rope import LinearScaling, Llama3Scaling, YarnScaling

RopeScaling = LinearScaling | Llama3Scaling | YarnScaling

_TYPES: dict[str, type[RopeScaling]] = {"linear": LinearScaling, "llama3": Llama3Scaling, "yarn": YarnScaling}
# Their name -> our field.
_FIELDS = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_max_positions",
    },
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original_max_positions",
        "attention_factor": "attention_factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "mscale": "mscale",
        "mscale_all_dim": "mscale_all_dim",
        "truncate": "truncate",
    },
}
_DEFAULT_THETA = 10000.0


def read_rope(values: Mapping[str, Any], max_positions: int) -> tuple[float, RopeScaling | None]:
    """Base of the wavelengths and scaling.

    Args:
      values: of a ``config.json``: ``rope_parameters``, or ``rope_theta`` and ``rope_scaling``.
      max_positions: the config's longest text, where the scaling names no original length.

    Raises:
      ValueError: if the type of scaling or one of its keys is unknown, or one is missing.

    Example:
      >>> read_rope({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}, 64)
      (500000.0, LinearScaling(factor=2.0))
    """
    written = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(written, Mapping):
        raise ValueError(f"rope_scaling and rope_parameters must be objects or null, got {shown(written)}")
    scaling = dict(written)
    nested = sorted(key for key, value in scaling.items() if isinstance(value, Mapping))
    if nested:
        raise ValueError(f"rope_parameters differ by kind of layer ({nested}), implemented is one for all")
    theta = scaling.pop("rope_theta", None)
    theta = values.get("rope_theta") if theta is None else theta
    kind = scaling.pop("rope_type", None) or scaling.get("type") or "default"
    scaling.pop("type", None)
    if scaling.pop("partial_rotary_factor", None) not in (None, 1):
        raise ValueError("partial_rotary_factor of the rotary positions is not 1: implemented are whole heads")
    if kind not in ["default", *_TYPES]:
        known = ["default", *_TYPES]
        raise ValueError(f"rotary positions of type {shown(kind)} are not implemented, known are {known}")
    scaling = {key: value for key, value in scaling.items() if value is not None}
    fields = _FIELDS.get(kind, {})
    if "original_max_position_embeddings" in fields:
        original = values.get("original_max_position_embeddings")
        scaling["original_max_position_embeddings"] = (
            scaling.get("original_max_position_embeddings", max_positions) if original is None else original
        )
        if kind == "yarn" and "factor" not in scaling:
            length = scaling["original_max_position_embeddings"]
            scaling["factor"] = max_positions / length if is_number(length) and length > 0 else 0
    unknown = sorted(set(scaling) - set(fields))
    if unknown:
        raise ValueError(f"rotary positions of type {kind!r} have unknown options {unknown}")
    theta = _DEFAULT_THETA if theta is None else theta
    if not is_number(theta) or theta <= 0:
        raise ValueError(f"rope_theta must be a number above 0, got {shown(theta)}")
    theta = float(theta)
    if kind == "default":
        return theta, None
    missing = sorted(key for key in _required(kind) if key not in scaling)
    if missing:
        raise ValueError(f"rotary positions of type {kind!r} need {missing}")
    return theta, _TYPES[kind](**{fields[key]: value for key, value in scaling.items()})


def _required(kind: str) -> set[str]:
    return set(_FIELDS[kind]) if kind != "yarn" else {"factor"}


def rope_values(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The keys of a ``config.json``: the older ones, which all versions of transformers and others read.

    Example:
      >>> rope_values(10000.0, LinearScaling(2.0))["rope_scaling"]
      {'rope_type': 'linear', 'factor': 2.0}
    """
    if scaling is None:
        return {"rope_theta": theta, "rope_scaling": None}
    kind = next(name for name, kind in _TYPES.items() if isinstance(scaling, kind))
    options = {theirs: getattr(scaling, ours) for theirs, ours in _FIELDS[kind].items()}
    options = {key: value for key, value in options.items() if value is not None}
    return {"rope_theta": theta, "rope_scaling": {"rope_type": kind, **options}}
