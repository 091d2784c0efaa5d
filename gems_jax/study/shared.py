"""All that the trials of a study share: data, base model, null spaces, evaluation rows, the base's measurements."""

import contextlib
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gems_jax.config.items import ItemsConfig
from gems_jax.config.run import Config
from gems_jax.data.batching.encoded_table import EncodedTable
from gems_jax.data.dataset import storage
from gems_jax.data.dataset.tables import Dataset, Table
from gems_jax.data.text.general_text import read_lines, token_stream
from gems_jax.evaluation.baselines import baselines
from gems_jax.evaluation.drift import general_loss, read_shift
from gems_jax.evaluation.facts import KnownFacts, known_facts
from gems_jax.evaluation.output_shift import OutputShift
from gems_jax.evaluation.simple_rankers import simple_rankers
from gems_jax.identifiers.text_embeddings import text_embeddings
from gems_jax.models import load
from gems_jax.models.hf.tokenizer import load_tokenizer
from gems_jax.null_space.space import NullSpace
from gems_jax.staging import write_json
from gems_jax.study.claims import claim_waiting
from gems_jax.study.config import StudyConfig
from gems_jax.study.spectra import gradient_spectra
from gems_jax.training.compile import Programs
from gems_jax.training.evaluate_run import evaluation_tables
from gems_jax.training.identify import identify, is_missing
from gems_jax.training.optimiser.chain import needs_null_space
from gems_jax.training.pretrain import heldout_text, unigram_loss
from gems_jax.training.stages import Assets, assemble, ensure_base, ensure_data, ensure_null_space


class Shared:
    """Made once a process, by one process at a time; what is missing on disk is made on the way.

    Args:
      config: of the study.
      study: of the study.
      workdir: of the study.

    Attributes:
      dataset: prepared interactions.
      text: batches that general-domain loss is measured on.
      tables: split -> task -> the rows that are measured.
      base: loss of the base model on general text, beside a unigram guess; the rankers of
        ``evaluate.baselines`` on the test rows.
      width: of the model.
      programs: that trials have compiled.
    """

    def __init__(self, config: Config, study: StudyConfig, workdir: Path):
        self._config, self._workdir = config, workdir
        with self._making(
            not (storage.is_complete(config.data.dir) and (Path(config.model.path) / "config.json").is_file())
            or is_missing(config)
        ):
            self.dataset: Dataset = ensure_data(config)
            self._folder = ensure_base(config)
            self.model, tokenizer = load(self._folder, config.model.dtype)
            if is_missing(config):
                identify(config, self.dataset, self.model, tokenizer)
        self.width = int(self.model.config.d_model)
        self.tables = {
            "valid": valid_tables(self.dataset, study.valid_rows),
            "test": evaluation_tables(config, self.dataset),
        }
        self.text = heldout_text(tokenizer, config, self.model.layout)
        self.programs: Programs = {}
        self._shift: OutputShift | None = None
        self._facts: KnownFacts | None = None
        self._spectra: dict[int, dict[str, list[float]]] = {}
        self._assets: dict[Any, Assets] = {}
        self._null_spaces: dict[str, NullSpace] = {}
        self._encoded: dict[Any, dict[str, EncodedTable]] = {}
        self.base = self._once("base.json", lambda: self._measure_base(tokenizer))

    def assets(self, config: Config) -> Assets:
        """The grown base model and the items of a run."""
        items = config.items
        seed = config.train.seed if items.init == "random" else 0
        key = (items.init, items.added_loss, *_identifiers(items), seed)
        if key not in self._assets:
            self._assets.clear()  # one grown model at a time
            _, tokenizer = load(self._folder, config.model.dtype)  # growing adds to the tokenizer
            self._assets[key] = assemble(config, self.dataset, (self.model, tokenizer))
        return self._assets[key]

    def null_space(self, config: Config) -> NullSpace | None:
        """The null space that a run needs, estimated where it is missing."""
        if not needs_null_space(config):
            return None
        path = config.null_space.path
        if path not in self._null_spaces:
            with self._making(not (Path(path) / "null_space.json").is_file()):
                _, tokenizer = load(self._folder, config.model.dtype)
                self._null_spaces[path] = ensure_null_space(config, self.model, tokenizer)
        return self._null_spaces[path]

    def shift(self, config: Config) -> OutputShift:
        """Second moments of the kernels' inputs on general text, of the base model."""
        if self._shift is None:
            self._shift = read_shift(self.assets(config).model, self.text)
        return self._shift

    def facts(self) -> KnownFacts:
        """What the base model is sure of."""
        if self._facts is None:
            self._facts = known_facts(self.model, load_tokenizer(self._folder, self.model.config.vocab_size))
        return self._facts

    def spectra_before(self, config: Config, batch: Mapping[str, Any]) -> dict[str, list[float]]:
        """Spectra of the gradients by the base model of a seed's first batch."""
        seed = config.train.seed
        if seed not in self._spectra:
            assets = self.assets(config)
            self._spectra[seed] = gradient_spectra(config, assets.model, batch, tuple(assets.dataset.tasks))
        return self._spectra[seed]

    def encoded(self, config: Config, split: str) -> dict[str, EncodedTable]:
        """The measured rows of a split as tokens."""
        items = config.items
        key = (split, items.template, tuple(items.prompts.items()), items.max_length, *_identifiers(items))
        if key not in self._encoded:
            assets = self.assets(config)
            self._encoded[key] = {task: assets.encode(config, table) for task, table in self.tables[split].items()}
        return self._encoded[key]

    def _making(self, missing: bool) -> contextlib.AbstractContextManager[None]:
        """One process at a time makes what is missing; all may read at once what is there."""
        return claim_waiting(self._workdir / "claims" / "shared") if missing else contextlib.nullcontext()

    def _once(self, name: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """A measurement kept in the study's folder."""
        path = self._workdir / name
        with self._making(not path.is_file()):
            if not path.is_file():
                write_json(path, dict(make()))
            return dict(json.loads(path.read_text(encoding="utf-8")))

    def _measure_base(self, tokenizer: Any) -> dict[str, Any]:
        read = functools.partial(text_embeddings, self.model, tokenizer, progress=True)
        rankers = baselines(self._config.evaluate, self.dataset, read, folder=self._workdir / "baselines")
        measurements: dict[str, Any] = {
            "general": general_loss(self.model, self.text),
            "general_with_items": general_loss(self.assets(self._config).model, self.text),
            "rankers": simple_rankers(self.dataset, self.tables["test"], 0, rankers),
        }
        # Span corruption has targets of single pieces of the text, which a unigram model can guess at.
        tokens = token_stream(read_lines(self._config.text.train, "train", self._config.text.field), tokenizer)
        vocab_size = int(self.model.config.vocab_size)
        measurements["unigram_loss"] = unigram_loss(tokens, list(self.text), vocab_size)
        return measurements


def _identifiers(items: ItemsConfig) -> tuple[Any, ...]:
    """All that decides the items' tokens."""
    return items.identifiers, items.collisions, items.levels, items.codebook_size, items.capacity_factor, items.path


def valid_tables(dataset: Dataset, rows: int) -> dict[str, Table]:
    """A fixed choice of validation rows of each task, or all for 0."""
    tables = {task: dataset.table("valid", task) for task in dataset.tasks}
    if not rows:
        return tables
    rng = np.random.default_rng(0)
    return {task: table.take(np.sort(rng.permutation(len(table))[:rows])) for task, table in tables.items()}
