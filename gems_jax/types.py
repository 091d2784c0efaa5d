"""Names of types that all rooms share."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

# Nested containers of arrays, as JAX takes them; there is no type for that.
PyTree: TypeAlias = Any

# The arrays of a batch on the host, by name.
Batch: TypeAlias = dict[str, np.ndarray]

# A batch of text that a person hands in: arrays by name.
TextBatch: TypeAlias = Mapping[str, Any]
