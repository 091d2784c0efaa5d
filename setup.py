"""Installs gems_jax; what is installed, with which packages, stands in pyproject.toml."""

from setuptools import setup

setup()
