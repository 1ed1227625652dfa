"""Replaces any set of components, a different set in every row, and measures what the model then answers.

Two shortcuts keep this cheap, both exact: a pass restarts at the first layer in which a row differs from a pass
already made (the clean one, or the one in which everything is replaced), and with counterfactual replacement the
prompt's beginning that both prompts share is never run again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from .errors import ConfigurationError, ExampleError, SkipCell, UnknownNameError
from .levels import REPLACEMENTS, InputReplacement, Replacement, check_replacement
from .measurements.base import Measure
from .model import Batch, CleanPass, Edit, columns_from, hook_name
from .models.edges import ReplacedEdges, Written
from .models.objective import measure
from .task import IMAGE

if TYPE_CHECKING:
    from .components import InputLevel, Level
    from .model import EncodedExample, Model


def measure_all(model: Model, examples: Sequence[EncodedExample], edits: dict[str, Edit] | None = None) -> Tensor:
    """``[N, 3]`` float32: the three measures of every example, under edits that fit batches of any shape.

    In the order of :class:`attriboard.measurements.base.Measure`.
    """
    return torch.cat([measure(model.run(b, edits=edits).logits, b).cpu() for b in model.batches(examples)])


def component_means(model: Model, examples: Sequence[EncodedExample], level: Level) -> dict[str, Tensor]:
    """The mean of every activation of a level over all real tokens of the examples, by name: one value per unit.

    One mean per component (and head dimension), as mean ablation is meant; computed in float64.
    """
    names = level.hooks(model)
    sums: dict[str, Tensor] = {}
    count = 0
    for batch in model.batches(examples):
        run = model.run(batch, names)
        real = batch.real
        count += int(real.sum())
        for name in names:
            total = run[name][real].double().sum(0)
            sums[name] = sums[name] + total if name in sums else total
    return {name: (total / count).to(model.dtype) for name, total in sums.items()}


@dataclass(frozen=True)
class Asked:
    """Sets of components to be replaced, each on every one of some examples.

    Attributes:
        masks: ``[S, n]`` bool: the components replaced in each set.
        members: ``[N]``: the examples, as places in a list of them.
    """

    masks: Tensor
    members: Sequence[int]


def distinct(masks: Tensor) -> tuple[Tensor, Tensor]:
    """``[D, n]``: each set of ``masks`` ``[S, n]`` bool once; and ``[S]``: which of them each is."""
    packed = np.packbits(masks.cpu().numpy(), axis=1)
    rows = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1])))[:, 0]
    _, first, place = np.unique(rows, return_index=True, return_inverse=True)
    return masks[torch.from_numpy(first)], torch.from_numpy(place)


Rows = dict[tuple[str, int], Tensor]
"""One prompt's activations ``[T, width]`` by site and layer."""
Fill = Callable[[Tensor], Tensor]
"""From sets ``[S, n]`` of one example's positions to embeddings that broadcast against ``[S, T, d_model]``."""


class ReplacementKind(ABC):
    """What stands in the place of what is replaced: one class for each name in :mod:`attriboard.levels`.

    Class attributes:
        name: as options and suites say it.
        paired: whether it comes from the counterfactual prompt, so that what both prompts share need not be run again.
        needs_means: whether for components it needs :func:`component_means`.
    """

    name: ClassVar[InputReplacement]
    paired: ClassVar[bool] = False
    needs_means: ClassVar[bool] = False

    def activations(
        self, model: Model, batch: Batch, names: Sequence[str], means: dict[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """What activations are replaced by; see :func:`replacement_values`."""
        raise UnknownNameError("replacement", self.name, REPLACEMENTS)

    def embeddings(self, model: Model, batch: Batch, level: InputLevel) -> Tensor:
        """What embeddings at the positions of a level are replaced by: broadcasts against ``[B, T, d_model]``."""
        raise UnknownNameError("replacement", self.name, REPLACEMENTS)

    def fill(self, model: Model, batch: Batch, level: InputLevel) -> Fill:
        """What sets of positions are replaced by in a batch of one example."""
        value = self.embeddings(model, batch, level)
        return lambda sets: value

    def touched(self, sets: Tensor, columns: Tensor) -> Tensor:
        """``[S, T]`` bool: the columns whose embeddings :meth:`fill` replaces.

        Args:
            sets: ``[S, n]`` bool: positions of a level.
            columns: ``[T]`` bool: where these are.
        """
        touched = torch.zeros(len(sets), len(columns), dtype=torch.bool, device=sets.device)
        touched[:, columns] = sets
        return touched

    def why_not(self, model: Model, examples: Sequence[EncodedExample], level: InputLevel, task: str) -> str:
        """Why positions of a task's examples cannot be replaced in this way, as a sentence; empty if they can."""
        return ""

    @abstractmethod
    def literally(self, own: Rows, counterfactual: Callable[[], Rows], mean: Callable[[], Rows]) -> Rows:
        """The definition that self-tests judge by: what one prompt's activations ``[T, width]`` are replaced by.

        Args:
            own: the activations themselves.
            counterfactual, mean: those of the paired prompt, and their means, each shaped as ``own``.

        Raises:
            SkipCell: it cannot be said in these terms.
        """


class Counterfactual(ReplacementKind):
    """The activation, or embedding or image feature, at the same position of the paired prompt."""

    name = "counterfactual"
    paired = True

    def activations(
        self, model: Model, batch: Batch, names: Sequence[str], means: dict[str, Tensor] | None
    ) -> dict[str, Tensor]:
        run = model.run(_counterfactual(batch), names)
        return {name: run[name] for name in names}

    def embeddings(self, model: Model, batch: Batch, level: InputLevel) -> Tensor:
        other = _counterfactual(batch)
        if not torch.equal(other.image_mask, batch.image_mask):
            raise ExampleError("a prompt and its counterfactual have their images at different positions.")
        return model.embeddings(other)

    def why_not(self, model: Model, examples: Sequence[EncodedExample], level: InputLevel, task: str) -> str:
        if all(
            torch.equal(input_replacement(model, batch, level, self.name), model.embeddings(batch))
            for batch in model.batches(examples)
        ):
            return (
                f"the counterfactuals of task {task!r} differ in none of the {level.name}; choose another replacement."
            )
        return ""

    def literally(self, own: Rows, counterfactual: Callable[[], Rows], mean: Callable[[], Rows]) -> Rows:
        return counterfactual()


class Mean(ReplacementKind):
    """A mean: of a component over all tokens of the examples, of embeddings over an example's positions of the level.

    So one value per component and head dimension, or one vector per example that no other example of the batch touches.
    """

    name = "mean"
    needs_means = True

    def activations(
        self, model: Model, batch: Batch, names: Sequence[str], means: dict[str, Tensor] | None
    ) -> dict[str, Tensor]:
        if means is None:
            raise ConfigurationError("mean replacement needs the component means of the train split.")
        return {name: means[name] for name in names}

    def embeddings(self, model: Model, batch: Batch, level: InputLevel) -> Tensor:
        own = model.embeddings(batch)
        inside = level.columns(model, batch)[..., None].to(torch.float32)
        mean = (own.float() * inside).sum(1, keepdim=True) / inside.sum(1, keepdim=True).clamp(min=1)
        return mean.to(own.dtype)

    def literally(self, own: Rows, counterfactual: Callable[[], Rows], mean: Callable[[], Rows]) -> Rows:
        return mean()


class Zero(ReplacementKind):
    """Zeros."""

    name = "zero"

    def activations(
        self, model: Model, batch: Batch, names: Sequence[str], means: dict[str, Tensor] | None
    ) -> dict[str, Tensor]:
        return dict.fromkeys(names, torch.zeros((), dtype=model.dtype, device=model.device))

    def embeddings(self, model: Model, batch: Batch, level: InputLevel) -> Tensor:
        return torch.zeros_like(model.embeddings(batch))

    def literally(self, own: Rows, counterfactual: Callable[[], Rows], mean: Callable[[], Rows]) -> Rows:
        return {key: torch.zeros_like(x) for key, x in own.items()}


class PatchReplacement(ReplacementKind, ABC):
    """What only patches of an image are replaced by; the self-tests do not judge it."""

    def literally(self, own: Rows, counterfactual: Callable[[], Rows], mean: Callable[[], Rows]) -> Rows:
        raise SkipCell(f"there is no literal judge of replacement by {self.name}.")


class Background(PatchReplacement):
    """The mean embedding of the example's own patches of which the region "background" covers at least 99 %.

    Where there are none, of those that it covers most.
    """

    name = "background"

    def embeddings(self, model: Model, batch: Batch, level: InputLevel) -> Tensor:
        """``[1, 1, d_model]``, of a batch of one example."""
        (encoded,) = batch.examples
        own, columns = model.embeddings(batch), level.columns(model, batch)[0]
        coverage = model.patch_coverage(encoded, self.name).flatten()
        empty = coverage >= min(0.99, float(coverage.max()))
        return own[:, columns][:, empty.to(own.device)].float().mean(1, keepdim=True).to(own.dtype)

    def why_not(self, model: Model, examples: Sequence[EncodedExample], level: InputLevel, task: str) -> str:
        if any(self.name not in e.example.regions for e in examples):
            return f"task {task!r} has examples without a region called {self.name!r} to replace {level.name} by."
        return ""


class Blur(PatchReplacement):
    """Blurs the picture: the pixels of a set's patches are taken from a blurred copy of what the model sees.

    Gaussian, standard deviation one patch. The picture then goes through the vision tower again, so that the embeddings
    of the other patches change with it.
    """

    name = "blur"

    def fill(self, model: Model, batch: Batch, level: InputLevel) -> Fill:
        (encoded,) = batch.examples
        own, columns = model.embeddings(batch), level.columns(model, batch)[0]

        def fill(sets: Tensor) -> Tensor:
            value = own.repeat(len(sets), 1, 1)
            value[:, columns] = torch.stack([_blurred(model, encoded, patches) for patches in sets]).to(own)
            return value

        return fill

    def touched(self, sets: Tensor, columns: Tensor) -> Tensor:
        return sets.any(1, keepdim=True) & columns


REPLACEMENT_KINDS: dict[str, ReplacementKind] = {
    kind.name: kind for kind in (Counterfactual(), Mean(), Zero(), Background(), Blur())
}


def replacement_kind(replacement: str) -> ReplacementKind:
    """What a replacement's name stands for.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if replacement not in REPLACEMENT_KINDS:
        raise UnknownNameError("replacement", replacement, REPLACEMENTS)
    return REPLACEMENT_KINDS[replacement]


def shared_prefix(model: Model, batch: Batch, replacement: str) -> Batch:
    """The batch behind the prefix it shares with its counterfactual, if that is what it is replaced by."""
    return model.share_prefix(batch) if replacement_kind(replacement).paired else batch


def means_for(
    model: Model, examples: Sequence[EncodedExample], level: Level, replacement: str
) -> dict[str, Tensor] | None:
    """The :func:`component_means` that a replacement needs; None where it needs none."""
    return component_means(model, examples, level) if replacement_kind(replacement).needs_means else None


def replacement_values(
    model: Model,
    batch: Batch,
    names: Iterable[str],
    replacement: Replacement,
    means: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """What activations are replaced by: tensors by name that broadcast against the batch's own.

    Raises:
        ConfigurationError: counterfactual replacement of examples without a counterfactual, or mean without means.
        UnknownNameError: another kind of replacement.
    """
    return replacement_kind(replacement).activations(model, batch, list(names), means)


def _counterfactual(batch: Batch) -> Batch:
    if batch.counterfactual is None:
        raise ConfigurationError(
            "counterfactual replacement needs a counterfactual for every example; give one, or choose replacement "
            "'zero' or 'mean'."
        )
    return batch.counterfactual


def input_replacement(model: Model, batch: Batch, level: InputLevel, replacement: str) -> Tensor:
    """``[B, T, d_model]``: what ``hook_embed`` is replaced by at the positions of a level of inputs.

    By the :class:`ReplacementKind` of that name. Columns outside the level keep their own embedding.

    Raises:
        ConfigurationError: counterfactual replacement of examples without a counterfactual.
        ExampleError: prompt and counterfactual have their images at different positions.
        UnknownNameError: another kind of replacement than methods have.
    """
    if replacement not in REPLACEMENTS:
        raise UnknownNameError("replacement", replacement, REPLACEMENTS)
    columns = level.columns(model, batch)[..., None]
    return torch.where(columns, REPLACEMENT_KINDS[replacement].embeddings(model, batch, level), model.embeddings(batch))


def replacing(values: dict[str, Tensor], slices: dict[str, Tensor], rows: Tensor | None = None) -> dict[str, Edit]:
    """Edits that put ``values`` where ``slices`` is True; ``rows`` picks each row's example from batched values."""

    def edit(name: str, mask: Tensor) -> Edit:
        value = values[name]

        def apply(x: Tensor) -> Tensor:
            chosen = value[rows] if rows is not None and value.dim() == x.dim() else value
            return torch.where(mask.to(x.device), chosen, x)

        return apply

    return {name: edit(name, mask) for name, mask in slices.items()}


def pinned(point: Tensor) -> Edit:
    """An edit that sets an activation to ``point`` and leaves it in the graph, so that its gradient can be taken."""
    return lambda x: x + (point - x.detach())


def watched(kept: dict[str, Tensor], name: str, pick: Edit) -> Edit:
    """An edit that changes nothing and keeps ``pick`` of the activation in ``kept[name]``.

    For what is needed of an activation that is much larger, such as one row of an attention pattern.
    """

    def keep(x: Tensor) -> Tensor:
        kept[name] = pick(x)
        return x

    return keep


@dataclass
class _Pass:
    """A finished pass: residuals entering each block ``[L, B, T, d_model]`` and the logits ``[B, V]``."""

    resid: Tensor
    logits: Tensor


class Intervention:
    """Everything needed to replace component sets of one level on one batch.

    Args:
        model: the model.
        batch: the examples.
        level: what is replaced.
        replacement: the name of a :class:`ReplacementKind`, at all positions.
        means: from :func:`component_means`, for mean replacement.

    Raises:
        ConfigurationError: the batch lacks what the replacement needs.
    """

    def __init__(
        self,
        model: Model,
        batch: Batch,
        level: Level,
        replacement: Replacement = "counterfactual",
        means: dict[str, Tensor] | None = None,
    ) -> None:
        self.model, self.level = model, level
        self.batch = shared_prefix(model, batch, replacement)
        self.values = replacement_values(model, self.batch, level.hooks(model), replacement, means)
        self._resid_names = [hook_name("resid_pre", layer) for layer in range(model.n_layers)]
        self.clean = self._pass({})
        self._empty: _Pass | None = None

    @property
    def nbytes(self) -> int:
        """Memory held by this object's tensors, in bytes (the pass with everything replaced counted in advance)."""
        return sum(v.nbytes for v in self.values.values()) + 2 * self.clean.resid.nbytes

    @property
    def empty(self) -> _Pass:
        """The pass in which every component of the level is replaced."""
        if self._empty is None:
            everything = torch.ones(len(self.batch), self.level.size(self.model), dtype=torch.bool)
            self._empty = self._pass(replacing(self.values, self.level.slices(self.model, everything)))
        return self._empty

    def _pass(self, edits: dict[str, Edit]) -> _Pass:
        run = self.model.run(self.batch, self._resid_names, edits)
        return _Pass(run.stack("resid_pre").transpose(0, 1), run.logits)

    def __call__(
        self,
        masks: Tensor,
        measure: Callable[[Tensor, Batch], Tensor] = measure,
    ) -> Tensor:
        """Measures every set on every example.

        Args:
            masks: ``[S, n]`` bool: the components replaced in each of ``S`` sets.
            measure: from (logits ``[R, V]``, batch of ``R`` rows) to ``[R, K]``; by default the three of
                :class:`attriboard.measurements.base.Measure`.

        Returns:
            ``[S, B, K]`` float32.
        """
        n_sets, n_examples = len(masks), len(self.batch)
        rows = torch.arange(n_examples).repeat(n_sets)
        sets = torch.arange(n_sets).repeat_interleave(n_examples)
        return self.rows(masks, rows, measure, sets).view(n_sets, n_examples, -1)

    def rows(
        self,
        masks: Tensor,
        rows: Tensor,
        measure: Callable[[Tensor, Batch], Tensor] = measure,
        sets: Tensor | None = None,
    ) -> Tensor:
        """As calling the object, for explicit rows.

        Args:
            masks: ``[S, n]`` bool: the components replaced in each set.
            rows: ``[R]``: of each row the example.
            measure: as there.
            sets: ``[R]``: of each row the set; by default every row has its own.

        Returns:
            ``[R, K]`` float32.
        """
        model = self.model
        sets = torch.arange(len(rows)) if sets is None else sets
        start, from_empty = (of_set[sets] for of_set in self._starts(masks))
        order = torch.argsort(start, stable=True)
        there = masks.to(model.device)
        results: list[Tensor] = []
        for chunk in order.split(self._most_rows):
            batch = self.batch.rows(rows[chunk])
            example, chosen, restarted = (x[chunk].to(model.device) for x in (rows, sets, from_empty))
            any_restarted = bool(from_empty[chunk].any())
            at = int(start[chunk].min())
            if at == model.n_layers:
                logits = self.clean.logits[example]
                if any_restarted:
                    logits = torch.where(restarted[:, None], self.empty.logits[example], logits)
            else:
                resid = self.clean.resid[at][example]
                if any_restarted:
                    resid = torch.where(restarted[:, None, None], self.empty.resid[at][example], resid)
                needed = start[chunk].tolist()
                logits = self._logits(batch, example, there[chosen], restarted, (at, resid), needed)
            results.append(measure(logits, batch).float())
        return torch.cat(results).cpu()[torch.argsort(order)]

    @property
    def _most_rows(self) -> int:
        return self.model.set_rows

    def _logits(
        self,
        batch: Batch,
        example: Tensor,
        masks: Tensor,
        restarted: Tensor,
        start: tuple[int, Tensor],
        needed: Sequence[int],
    ) -> Tensor:
        """``[R, V]``: of rows whose components ``masks`` ``[R, n]`` are replaced, from a layer on.

        Args:
            example: ``[R]``: of each row the example.
            restarted: ``[R]`` bool: the rows that begin in the pass with everything replaced, and not in the clean one.
            start, needed: as :meth:`attriboard.model.Model.run` takes them.
        """
        slices = self.level.slices(self.model, masks)
        ahead = {name: mask for name, mask in slices.items() if int(name.split(".")[1]) >= start[0]}
        return self.model.run(batch, edits=replacing(self.values, ahead, example), start=start, needed=needed).logits

    def _starts(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """``[S]``: the first layer that each set must run, and whether it may start from the all-replaced pass."""
        layers = torch.arange(self.model.n_layers)

        def first(differs: Tensor) -> Tensor:
            return torch.where(differs, layers, self.model.n_layers).min(1).values

        from_clean, from_empty = (first(self.level.touched(self.model, given)) for given in (masks, ~masks))
        return torch.maximum(from_clean, from_empty), from_empty > from_clean


EDGE_BYTES = 2**29
"""The most that the differences of sources take in a pass in which edges are replaced; a single row may need more."""


class EdgeIntervention(Intervention):
    """As :class:`Intervention`, of the edges of the model's graph.

    An edge that is replaced carries what its source writes in the counterfactual run, in the place of what it writes in
    this one. With all of them replaced, the embedding's among them, the model answers as it answers the counterfactual.

    Raises:
        ConfigurationError: as there, or another replacement.
    """

    def __init__(
        self,
        model: Model,
        batch: Batch,
        level: Level,
        replacement: Replacement = "counterfactual",
        means: dict[str, Tensor] | None = None,
    ) -> None:
        check_replacement(replacement, level.name)
        self.model, self.level = model, level
        self.batch = shared_prefix(model, batch, replacement)
        self.clean, self._written = self._written_by(self.batch)
        other, self._other = self._written_by(_counterfactual(self.batch))
        # the embedding stays in the residual stream and is replaced where it is read
        self._empty = _Pass(other.resid + (self._written.embed - self._other.embed), other.logits)

    @property
    def nbytes(self) -> int:
        return 2 * (self.clean.resid.nbytes + self._written.nbytes)

    def _written_by(self, batch: Batch) -> tuple[_Pass, Written]:
        layers = range(self.model.n_layers)
        sites = [hook_name(site, layer) for site in ("resid_pre", "z", "mlp_out") for layer in layers]
        run = self.model.run(batch, sites)
        resid, z, mlp = (run.stack(site).transpose(0, 1) for site in ("resid_pre", "z", "mlp_out"))
        return _Pass(resid, run.logits), Written(resid[0], z, mlp)

    @property
    def _most_rows(self) -> int:
        model, positions = self.model, self.batch.tokens.shape[1]
        sources = model.graph.sources_before(model.n_layers)
        per_row = sources * positions * model.d_model * self.model.dtype.itemsize
        return max(1, min(model.set_rows, EDGE_BYTES // per_row))

    def _logits(
        self,
        batch: Batch,
        example: Tensor,
        masks: Tensor,
        restarted: Tensor,
        start: tuple[int, Tensor],
        needed: Sequence[int],
    ) -> Tensor:
        other, clean = self._other.rows(example), self._written.rows(example)
        layer = start[0]
        before = Written(
            clean.embed,
            torch.where(restarted[:, None, None, None], other.z[:layer], clean.z[:layer]),
            torch.where(restarted[:, None, None], other.mlp[:layer], clean.mlp[:layer]),
        )
        edges = ReplacedEdges(self.model, batch, masks, other, layer, before, self.model.cost, needed)
        return self.model.run(batch, start=start, needed=needed, also=edges.install).logits


def intervene(
    model: Model,
    batch: Batch,
    level: Level,
    replacement: Replacement = "counterfactual",
    means: dict[str, Tensor] | None = None,
) -> Intervention:
    """What replaces sets of components of any level; see :class:`Intervention`."""
    kind = EdgeIntervention if level.edges else Intervention
    return kind(model, batch, level, replacement, means)


def single_effects(intervention: Intervention, chunk: int = 64, only: Tensor | None = None) -> Tensor:
    """``[B, n]``: the metric lost when each component alone is replaced: clean metric minus replaced metric. Exact.

    Args:
        intervention: of any level.
        chunk: how many components are asked for at a time.
        only: ``[k]``: the components, where not all are measured; the others have 0.
    """
    model, batch = intervention.model, intervention.batch
    size = intervention.level.size(model)
    measured = torch.arange(size) if only is None else only
    clean = measure(intervention.clean.logits, batch)[:, 0].cpu()
    lost = torch.zeros(len(batch), size)
    for part in measured.split(chunk):
        masks = torch.zeros(len(part), size, dtype=torch.bool)
        masks[torch.arange(len(part)), part] = True
        lost[:, part] = (clean - intervention(masks)[:, :, 0]).T
    return lost


def replace_positions(
    model: Model, encoded: EncodedExample, level: InputLevel, replacement: InputReplacement, masks: Tensor
) -> Tensor:
    """Replaces every set of positions of one example's input, and measures what the model then answers.

    At ``hook_embed``, by the :class:`ReplacementKind` of that name.

    Args:
        masks: ``[S, n]`` bool, True where a position of the level is replaced, in the order of ``level.positions``.

    Returns:
        ``[S, 3]`` float32 (see :class:`attriboard.measurements.base.Measure`). Equal sets are run once, and no other
        example has any part in it. What stands before a set's first column is not run again.

    Raises:
        As :func:`input_replacement`; ExampleError: background of an example without that region.
    """
    once, place = distinct(masks)
    batch, kind = model.batch([encoded]), replacement_kind(replacement)
    fill = kind.fill(model, batch, level)
    touched = kind.touched(once.cpu(), level.columns(model, batch)[0].cpu())
    results = torch.empty(len(once), len(Measure))
    for part, rows, n in CleanPass(model, batch).behind(torch.zeros(len(once), dtype=torch.long), touched):
        edits = replacing(
            {"hook_embed": columns_from(fill(once[part]), n)},
            {"hook_embed": touched[part, n:, None].to(model.device)},
        )
        results[part] = measure(model.run(rows, edits=edits).logits, rows).cpu()
    return results[place]


def _blurred(model: Model, encoded: EncodedExample, patches: Tensor) -> Tensor:
    """``[n_patches, d_model]``: the image features with the pixels of ``patches`` ``[n_patches]`` bool blurred."""
    if model.vision is None or encoded.image is None or encoded.example.image is None:
        raise ExampleError("an example without an image cannot be blurred.")
    if not bool(patches.any()):
        return encoded.image
    picture = model.vision.see(encoded.example.image)
    rows, columns = model.vision.grid
    deviation = max(picture.height / rows, picture.width / columns)
    grid = Image.fromarray(patches.view(rows, columns).numpy().astype(np.uint8) * 255)
    where = grid.resize(picture.size, Image.Resampling.NEAREST)
    mixed = Image.composite(picture.filter(ImageFilter.GaussianBlur(deviation)), picture, where)
    with torch.no_grad():
        return model.features(model.vision.inputs(IMAGE, mixed)).cpu()
