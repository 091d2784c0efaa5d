"""Names of types that all rooms share."""

from typing import Any, TypeAlias

# Nested containers of arrays, as JAX takes them; there is no type for that.
PyTree: TypeAlias = Any
