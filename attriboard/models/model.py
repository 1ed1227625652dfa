"""A Hugging Face causal language model whose heads, neurons and residual stream can be read, replaced and restarted.

What a model is made of stands in the modules beside this one: activation names (:mod:`~attriboard.models.names`), rows
of tokens (:mod:`~attriboard.models.batch`), strings to tokens (:mod:`~attriboard.models.encoding`), weights
(:mod:`~attriboard.models.weights`), passes with hooks (:mod:`~attriboard.models.hooks`), the proof at load
(:mod:`~attriboard.models.proof`) and what a score explains (:mod:`~attriboard.models.objective`).

Shapes: ``B`` rows, ``T`` positions, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ExampleError, ModelError
from ..task import Example
from ..truth import Truth
from . import objective
from .architectures import VISION
from .batch import (
    Batch,
    EncodedExample,
    columns_behind,
    leading_columns,
    own_prefixes,
    pad_rows,
    path_behind,
    shared_columns,
)
from .cost import Cost
from .encoding import Encoder
from .hooks import Edit, Run, forward, images_in, keys_and_values
from .parts import submodule
from .proof import prove as prove_parts
from .vision import Vision
from .weights import Weights


class Model(Weights):
    """A causal language model with its tokenizer, proven part by part.

    Args:
        hf: a Hugging Face causal language model, or vision-language model, of a family in
            :mod:`attriboard.models.architectures`.
        tokenizer: its tokenizer; None when only token ids are used.
        processor: of a vision-language model; without it the model takes text only.
        name: as it stands in records.
        source: where the weights came from (a path, a hub id with its commit), for the record.
        batch_size: most rows in one forward pass.
        padding_side: "left" or "right"; results do not depend on it. The proof takes the other one where the model
            does not mask padding on this side.
        prove: whether the parts are proven now.
        truth: the mechanism, of a model that was built with a known one.

    Attributes:
        cost: the work done so far, in floating-point operations; see :meth:`full_pass`.
        set_rows: most rows in one pass that keeps nothing, in which sets of components are replaced; ``batch_size``
            unless more is known to fit.
        vision: the processor and vision tower; None for a model that reads text only.
        shares_prefixes: whether keys and values of a prefix are computed once; found out by the proof.

    Raises:
        ModelError: the family is unknown, or a part found by the table does not behave as that part.
    """

    def __init__(
        self,
        hf: nn.Module,
        tokenizer: Any = None,
        name: str = "model",
        source: str = "in memory",
        batch_size: int = 16,
        padding_side: str = "left",
        prove: bool = True,
        processor: Any = None,
        truth: Truth | None = None,
    ) -> None:
        super().__init__(hf, name)
        self.source, self.batch_size, self.padding_side, self.truth = source, batch_size, padding_side, truth
        self._set_rows: int | None = None
        self.cost, self.shares_prefixes = Cost(), True
        self.vision: Vision | None = None
        if processor is not None:
            text_model = submodule(self.hf, VISION[self.hf.config.model_type])
            self.vision = Vision(self.hf, text_model, processor, name)
        self._encoder = Encoder(self.hf, tokenizer, self.vision, name, self.max_length)
        if prove:
            self.prove()

    @property
    def set_rows(self) -> int:
        return self.batch_size if self._set_rows is None else self._set_rows

    @set_rows.setter
    def set_rows(self, rows: int) -> None:
        self._set_rows = rows

    def prove(self) -> None:
        """Shows that the parts are what the architecture table says (see :mod:`attriboard.models.proof`).

        Raises:
            ModelError: names the first part that fails.
        """
        self.padding_side, self.shares_prefixes = prove_parts(self, self.vision, self.padding_side)

    # --- strings to tokens ------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        return self._encoder.tokenizer

    def pieces(self, text: str) -> list[str]:
        """The tokens of a text, each decoded by itself."""
        return self._encoder.pieces(text)

    def encode(self, example: Example) -> EncodedExample:
        """An example in this model's tokens; raises ExampleError (see :meth:`.Encoder.encode`)."""
        return self._encoder.encode(example)

    def tokens(self, text: str) -> tuple[int, ...]:
        """The token ids of a text, the last of them the text's own last one (see :meth:`.Encoder.tokens`)."""
        return self._encoder.tokens(text)

    def continuation(self, prompt: str, text: str) -> tuple[int, ...]:
        """The token ids of ``text`` directly behind ``prompt``; ExampleError where it has none of its own there."""
        return self._encoder.continuation(prompt, text)

    def why_not(self, example: Example) -> str | None:
        """None when :meth:`encode` accepts the example, else the reason."""
        return self._encoder.why_not(example)

    def write(self, example: Example, n: int) -> str:
        """What the model writes after an example's prompt: at most ``n`` tokens, greedily, up to the end of a line."""
        return self._encoder.write(example, n)

    def mark_positions(self, encoded: EncodedExample, mark: str) -> list[int]:
        """Token positions (counted from the first real token) that a named mark of the example covers."""
        return self._encoder.mark_positions(encoded, mark)

    def patch_coverage(self, encoded: EncodedExample, region: str) -> Tensor:
        """``[rows, columns]`` in 0..1: the share of every patch that a named region of the example's image covers."""
        return self._encoder.patch_coverage(encoded, region)

    # --- batches ----------------------------------------------------------------------------------------------------

    def batches(self, examples: Sequence[EncodedExample], batch_size: int | None = None) -> Iterator[Batch]:
        """The examples in order, padded to the longest of each batch."""
        size = batch_size or self.batch_size
        for start in range(0, len(examples), size):
            yield self.batch(examples[start : start + size])

    def batch(self, examples: Sequence[EncodedExample]) -> Batch:
        """One batch; its counterfactual is set if every example has one.

        Raises:
            ExampleError: some examples have an image and others none, or a prompt is longer than the model takes.
        """
        clean = self._pad([e.tokens for e in examples], examples, [e.image for e in examples])
        if any(e.counterfactual is None for e in examples):
            return clean
        others = self._pad(
            [e.counterfactual or () for e in examples], examples, [e.counterfactual_image for e in examples]
        )
        return replace(clean, counterfactual=others)

    def _pad(
        self, rows: Sequence[Sequence[int]], examples: Sequence[EncodedExample], images: Sequence[Tensor | None]
    ) -> Batch:
        if (longest := max(map(len, rows))) > self.max_length:
            raise ExampleError(f"a prompt is {longest} tokens long, {self.name} takes at most {self.max_length}.")
        return pad_rows(
            rows,
            examples,
            images,
            pad=self._encoder.pad,
            padding_side=self.padding_side,
            placeholder=-1 if self.vision is None else self.vision.placeholder,
            grid=None if self.vision is None else self.vision.turned,
            device=self.device,
        )

    def first_position(self, batch: Batch) -> Tensor:
        """``[B]``: the column of each row's first real token."""
        return batch.first

    # --- passes -----------------------------------------------------------------------------------------------------

    def run(
        self,
        batch: Batch,
        capture: Iterable[str] = (),
        edits: Mapping[str, Edit] | None = None,
        start: tuple[int, Tensor] | None = None,
        gradients: bool = False,
        needed: Sequence[int] | None = None,
        remember: bool = False,
        also: Callable[[ExitStack], None] | None = None,
    ) -> Run:
        """One forward pass.

        Args:
            batch: the rows.
            capture: names of activations to keep (see :mod:`attriboard.models.names`), as they stand after any edit.
            edits: by activation name, a function from the activation to its replacement (same shape).
            start: ``(layer, resid)``: begin at that block with ``resid`` ``[B, T, d_model]`` as its input, bit for bit
                what the full pass would have computed if ``resid`` is the residual it had there.
            gradients: build the graph, so that :meth:`Run.gradients` works (parameters get none).
            needed: by row, the first layer that it would have to run by itself, where rows that need fewer layers run
                beside others; work is counted from there. All need ``start`` if it is None.
            remember: keep the keys and values of every position (see :class:`.CleanPass`).
            also: puts more on the model until the stack closes (see :mod:`attriboard.models.edges`).

        Returns:
            logits ``[B, V]`` at each row's last token, the captured activations, and keys and values if remembered.

        Raises:
            KeyError: an activation name that does not exist, or an edit of one that can only be read.
        """
        self._look(batch)
        return forward(self, batch, self.cost, capture, edits, start, gradients, needed, remember, also)

    def embeddings(self, batch: Batch) -> Tensor:
        """``[B, T, d_model]``: ``hook_embed`` of a batch, without running the model."""
        self._look(batch)
        with torch.no_grad(), images_in(self, batch):
            embeddings: Tensor = self.parts.embed(batch.tokens)
        return embeddings

    def share_prefix(self, batch: Batch) -> Batch:
        """The batch and its counterfactual behind the leading columns that they have in common.

        Attention is causal, so activations there are the same in both prompts and replacing the one by the other
        does nothing: keys and values of the prefix are computed once and only what follows is run. Exact, for
        interventions that exchange activations between the two prompts; not for zero or mean replacement.
        Returns the batch unchanged when nothing is shared, or where prompts are read in both directions (PaliGemma).
        """
        other = batch.counterfactual
        if other is None or batch.past or not self.shares_prefixes or self.architecture.bidirectional == "prompt":
            return batch
        # a picture whose positions see each other is run with all that stands before it
        before_image = self.architecture.bidirectional != "images"
        own = own_prefixes(batch, other, before_image)
        if not any(own):
            return batch
        # what is counted is each row's own prefix, though neighbors that share less may leave more of it to be run
        self.cost.forward += sum(self.sizes.flops(n, logits=0) for n in own)
        spans = tuple((full - n, n) for (full, _), n in zip(batch.spans, own))
        n = shared_columns(batch, other, before_image)
        if n < 1:
            return replace(batch, spans=spans, counterfactual=replace(other, spans=spans))
        leading = leading_columns(batch, n)
        self._look(leading)
        past, _ = keys_and_values(self, leading, logits=False)
        clean, paired = columns_behind(batch, n, past), columns_behind(other, n, past)
        return replace(clean, spans=spans, counterfactual=replace(paired, spans=spans))

    def continued(self, batch: Batch, paths: Sequence[Sequence[int]]) -> Tensor:
        """``[B, n, V]``: the logits after every row and each of ``n`` paths of tokens behind it; the rows run once.

        Args:
            batch: rows of one length, so that no padding stands between them and what follows.
            paths: token ids; the empty path gives the logits at the row's own last token.
        """
        if not bool(batch.real.all()):
            raise ValueError("the rows have different lengths; continue rows of one length at a time.")
        # a prompt read in both directions is read so to its end, and what follows it in one
        fixed = self.shares_prefixes or self.architecture.bidirectional == "prompt"
        if self.length_dependent or not fixed:  # the rows' own keys depend on what follows them
            whole = [[(*e.tokens, *path) for e in batch.examples] for path in paths]
            return torch.stack([self.run(self._pad(r, batch.examples, [None] * len(batch))).logits for r in whole], 1)
        self._look(batch)
        past, logits_at_end = keys_and_values(self, batch, logits=True)
        self.cost.forward += self.sizes.rows(batch)
        return torch.stack(
            [self.run(path_behind(batch, path, past)).logits if path else logits_at_end[:, 0] for path in paths], 1
        )

    # --- work -------------------------------------------------------------------------------------------------------

    def full_pass(self, example: EncodedExample) -> int:
        """Floating-point operations of one forward pass of an example's prompt: the unit of forward equivalents.

        All layers at all its positions, the unembedding at the last one and, with an image, the vision tower.
        """
        tower = self.vision.flops if self.vision is not None and example.image is not None else 0
        return self.sizes.flops(len(example.tokens)) + tower

    def forward_equivalents(self, examples: Sequence[EncodedExample]) -> float:
        """The work done so far in forward passes per example: over that of one :meth:`full_pass` of each."""
        return self.cost.flops / sum(map(self.full_pass, examples))

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        """As :meth:`.Vision.features`, counted as work; a picture that is encoded counts when a pass first reads it.

        Raises:
            ModelError: the model reads text only, or as there.
        """
        if self.vision is None:
            raise ModelError(
                f"{self.name} reads text only and cannot look at an image; choose a vision-language model."
            )
        self.cost.forward += self.vision.flops
        return self.vision.features(inputs)

    def _look(self, batch: Batch) -> None:
        if batch.images is not None and self.vision is not None:
            self.cost.look(batch, self.vision.flops)

    # --- what a score explains --------------------------------------------------------------------------------------

    def metric(self, logits: Tensor, batch: Batch) -> Tensor:
        """``[B]``: logit(answer) - logit(foil), or log p(answer) for rows without a foil."""
        return objective.metric(logits, batch)

    def correct(self, logits: Tensor, batch: Batch) -> Tensor:
        """``[B]`` bool: the answer is the top token of logits ``[B, V]``; of a choice, likelier than the foil."""
        return objective.correct(logits, batch)
