"""Identifiers of items from their texts: residual quantisation of embeddings, and codes that no two items share."""

from gems_jax.identifiers.code_files import load
from gems_jax.identifiers.codes import Identifiers
from gems_jax.identifiers.placement import Placed, place
from gems_jax.identifiers.reassignment import Reassigned, reassign
from gems_jax.identifiers.residual_kmeans import rkmeans
from gems_jax.identifiers.residual_vae import rqvae

__all__ = ["Identifiers", "Placed", "Reassigned", "load", "place", "reassign", "rkmeans", "rqvae"]
