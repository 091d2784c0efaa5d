"""The optax transformation: bases, Adam inside them, gates, one fused update inside the null space."""
