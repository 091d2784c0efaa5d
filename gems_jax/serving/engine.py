"""A model that answers requests: loaded once, in batches of a few shapes, so that its programs are kept."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gems_jax.data.dataset.tables import Dataset
from gems_jax.items.tokens import ItemIndex
from gems_jax.models.vocabulary import Vocabulary
from gems_jax.ranking.beam_search import beam_search
from gems_jax.ranking.filtered_trie import TrieFilter
from gems_jax.ranking.rank_items import check_options, check_tokens
from gems_jax.ranking.trie import catalogue_of
from gems_jax.serving.answers import Answer, Found
from gems_jax.serving.catalogue import Catalogue, Ranking
from gems_jax.serving.prompts import PromptMaker, padded
from gems_jax.serving.requests import Request
from gems_jax.serving.shapes import Shape, Shapes
from gems_jax.serving.together import Together


class _Batch(NamedTuple):
    """A batch on its way: which requests it has, and what the device will give."""

    rows: list[int]
    items: jax.Array
    scores: jax.Array


class Sent(NamedTuple):
    """Requests on their way: what is asked, what is to be said of each, and the batches."""

    rankings: Sequence[Ranking]
    notes: list[tuple[str, ...]]
    batches: list[_Batch]


class Engine:
    """Ranks the items of a catalogue for requests.

    The answer to a request has the items and scores that `gems_jax.ranking.rank_items.rank_items` gives of the same
    prompt and width if there were only the items that the request allows. Items that share an identifier have one score
    and stand side by side in the order of the catalogue; where the last of an answer leaves some of them out, a note
    says how many.

    Args:
      model: a `gems_jax.models.family.LanguageModel`, tuned.
      tokenizer: with the items' tokens.
      dataset: that it was tuned on.
      items: identifiers of the dataset's items.
      templates: task to the template of its prompts.
      max_length: of prompts, in tokens.
      beams: width of the search; where a request asks for more results it is the next power of two.
      vocabulary: what probabilities are normalised over, see `rank_items`.
      batch_size: requests that are ranked at once.
      listed: items that a request may allow or deny without a program of its own.
      edited: how the catalogue was edited since training, in a few words.
      base: the model before its first step, to be asked the same; ``None``: it is not kept.

    Attributes:
      catalogue: the items, users and tasks that may be asked for.
      base: an engine over that model, with the same prompts, trie and programs; ``None`` without one.

    Raises:
      ValueError: the items have tokens that the model has not.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        dataset: Dataset,
        items: ItemIndex,
        templates: Mapping[str, str],
        max_length: int,
        *,
        beams: int = 20,
        vocabulary: Vocabulary = "full",
        batch_size: int = 16,
        listed: int = 0,
        edited: str = "",
        base: Any | None = None,
    ):
        check_options(model.config, 1, beams, vocabulary)
        self._together = Together(items) if items.shared else None
        trie, tokens = catalogue_of(items if self._together is None else self._together.index)
        check_tokens(model.config, tokens, vocabulary)
        self.catalogue = Catalogue(dataset, templates, items.removed, edited)
        self._model, self._vocabulary, self._templates = model, vocabulary, dict(templates)
        self._filter = TrieFilter(trie)
        self._prompts = PromptMaker(tokenizer, dataset, items, max_length, model.layout)
        self._shapes = Shapes(batch_size, max_length, beams, min(listed + self.catalogue.longest, len(dataset.items)))
        self.base: Engine | None = None
        if base is not None:
            untuned = copy.copy(self)
            untuned._model = base
            self.base = untuned

    @property
    def beams(self) -> int:
        """The most results that are found without a program of their own."""
        return self._shapes.beams

    def rank(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers, in the order of the requests.

        Raises:
          RequestError: a request cannot be answered.
          ValueError: the model gives scores that are no numbers.
        """
        return self.answer([self.catalogue.look_up(request) for request in requests])

    def answer(self, rankings: Sequence[Ranking]) -> list[Answer]:
        """The answers to requests that were looked up before, see `rank`."""
        return [found.answer(self.catalogue.dataset.items) for found in self.receive(self.send(rankings))]

    def send(self, rankings: Sequence[Ranking]) -> Sent:
        """Starts the search for requests that were looked up before: the device works while others are made ready."""
        prompts, notes = self._encoded(rankings)
        lengths = np.asarray([len(tokens) for tokens in prompts], np.int64)
        widths = [self._width(one) for one in rankings]
        batches = [
            self._search(rows, [prompts[row] for row in rows], [rankings[row] for row in rows])
            for rows in self._shapes.batches(lengths, widths)
        ]
        return Sent(rankings, notes, batches)

    def receive(self, sent: Sent) -> list[Found]:
        """Waits for what was sent, see `rank`."""
        rankings, notes, batches = sent
        found: dict[int, Found] = {}
        for rows, items, scores in batches:
            values = np.asarray(scores)[: len(rows)]
            if np.isnan(values).any():
                raise ValueError(
                    "the model gives scores that are not numbers; its weights hold nan or inf: go back to an earlier "
                    "checkpoint"
                )
            for row, numbers, of_row in zip(rows, np.asarray(items).tolist(), values.tolist(), strict=False):
                found[row] = self._found(rankings[row], numbers, of_row, notes[row])
        return [found[row] for row in range(len(rankings))]

    def warm_up(self) -> int:
        """Compiles the programs of all usual shapes; returns their number."""
        shapes = list(self._shapes.usual())
        jax.block_until_ready([self._run(shape, [], []) for shape in shapes])
        return len(shapes)

    def _encoded(self, rankings: Sequence[Ranking]) -> tuple[list[np.ndarray], list[tuple[str, ...]]]:
        """Each request's prompt, and what is to be said of it."""
        prompts: dict[int, np.ndarray] = {}
        notes: dict[int, tuple[str, ...]] = {}
        for task in dict.fromkeys(one.task for one in rankings):
            rows = [row for row, one in enumerate(rankings) if one.task == task]
            template = self._templates[task]
            encoded = self._prompts.encode(template, [rankings[row] for row in rows])
            prompts |= {row: encoded.tokens_of(place) for place, row in enumerate(rows)}
            said = self._prompts.notes(template, [rankings[row] for row in rows], encoded.clipped_queries > 0)
            notes |= zip(rows, said, strict=True)
        every = range(len(rankings))
        return [prompts[row] for row in every], [notes[row] for row in every]

    def _search(self, rows: list[int], prompts: list[np.ndarray], rankings: list[Ranking]) -> _Batch:
        shape = self._shapes.around(
            rows=len(rows),
            length=max(map(len, prompts)),
            listed=max(len(one.listed) for one in rankings),
            beams=max(map(self._width, rankings)),
        )
        return _Batch(rows, *self._run(shape, prompts, rankings))

    def _width(self, ranking: Ranking) -> int:
        """Beams of a request's search: there are no more results than items."""
        return self._shapes.width(min(ranking.k, self.catalogue.ranked))

    def _run(self, shape: Shape, prompts: list[np.ndarray], rankings: list[Ranking]) -> tuple[jax.Array, jax.Array]:
        """Rows of the batch that are left over rank the catalogue for an empty prompt."""
        left = shape.rows - len(prompts)
        nothing = [np.zeros(0, np.int32)] * left
        constraint = self._filter.filtered(
            [*(one.listed if self._together is None else self._together.listed(one) for one in rankings), *nothing],
            [*(one.keeps for one in rankings), *[False] * left],
            shape.listed,
        )
        inputs = padded(prompts, shape.rows, shape.length, self._model.config.pad_token_id)
        return beam_search(
            self._model, inputs, constraint, k=shape.beams, beams=shape.beams, vocabulary=self._vocabulary
        )

    def _found(self, ranking: Ranking, items: list[int], scores: list[float], notes: tuple[str, ...]) -> Found:
        if self._together is not None:
            items, scores, said = self._together.items_of(ranking, items, scores)
            notes += said
        # Those that are no items come last.
        count = min(ranking.k, items.index(-1) if -1 in items else len(items))
        items = items[:count]
        return Found(items, scores[:count], list(map(ranking.known.__contains__, items)), notes)
