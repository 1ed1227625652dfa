"""Concepts: do the neurons that a method finds for a word of a caption behave like neurons of that concept?

The properties are those that Pan et al. (2024, arXiv 2311.07470) ask of multi-modal neurons. Their definitions are not
published in code; the ones here are this project's own. Each test example is scored by itself, and ``top K`` are the
neurons with its K highest scores (K is never more than half of the level):

- *sensitivity*: of the top 10 neurons, the share whose vocabulary words name the concept, minus that share among as
  many neurons drawn from the same layers. A neuron's vocabulary words are the 10 tokens with the largest product of
  its output vector and the unembedding, without norms; special and added tokens are left out. A token names the
  concept if, without surrounding spaces and in small letters, it is the example's concept or its answer.
- *region invariance*: overlap of the top 100 with those of the same example whose image features are permuted among
  the patches (the counterfactual's alike); position ids are not.
- *cross-image invariance*: overlap of the top 100 with those of the examples of the same concept on another image.
- *specificity*: overlap of the top 100 with those of the examples of other concepts; low is specific.
- *causal effect*: noise is added to the output vectors of the top 100; log p(answer) lost, minus what is lost with
  the same noise on as many neurons drawn from the same layers. The noise is N(0, sigma^2 I), with sigma the root mean
  square of all entries of all output vectors: each vector is disturbed by about its own length.

The overlap of two sets of K is the number of common neurons divided by K. An example's overlaps with several others are
averaged first, then those of the examples. Examples without an image are told apart by their prompts.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..levels import names_where
from ..stats.intervals import Array, nanmean
from . import base
from .base import Measurement, Metric, Statistic


class Concepts(Measurement):
    """Per-example measurements behind the properties.

    Attributes:
        naming, top: the two numbers of top neurons, as far as the level allows.
        sigma: standard deviation of the noise.
        concepts: ``[N]``, the concept of each test example.
        sources: ``[N]``, equal for examples about the same image (of examples without one, the same prompt).
        named: ``[N]``, share of the top neurons whose words name the concept.
        named_random: ``[draws][N]``, the same of neurons drawn from the same layers.
        overlap: ``[N][N]``, of the top sets of two examples.
        shuffled: ``[N]``, overlap with the top set under permuted patches; None if it was not measured.
        clean: ``[N]``, log p(answer) of the untouched model; None if the causal effect was not measured.
        noised, noised_random: ``[draws][N]``, the same with noise on the top set and on one drawn from the same layers.
        not_measured: by metric name, why it was not measured.
    """

    class Options(base.Options):
        """How they are measured.

        Attributes:
            draws: random sets and noises for each example.
        """

        draws: int = Field(5, ge=1)

    name = "concepts"
    text = (
        "Measured at level neurons on tasks whose examples each carry a concept, and only of methods that score single "
        "examples. Of fewer than 200 neurons, half of them are the top 100."
    )
    levels = names_where(hidden_units=True)
    default = True
    needs_method = True
    position = 40
    metrics = (
        Metric(
            "concept_sensitivity",
            title="sensitivity",
            unit="share",
            better="higher",
            text="Of an example's top 10 neurons, the share whose vocabulary words (the 10 tokens with the largest "
            "product of output vector and unembedding) name the example's concept or answer, minus that share among "
            "as many neurons drawn from the same layers (several draws). Case and surrounding spaces are ignored.",
        ),
        Metric(
            "region_invariance",
            title="region invariance",
            unit="share",
            better="higher",
            optional=True,
            text="Share of an example's top 100 neurons that are also its top 100 when the image's patches are "
            "permuted at the entrance of the language model (positions stay).",
        ),
        Metric(
            "cross_image_invariance",
            title="cross-image invariance",
            unit="share",
            better="higher",
            optional=True,
            text="Share of an example's top 100 neurons that are also among the top 100 of an example of the same "
            "concept on another image, averaged over those examples.",
        ),
        Metric(
            "concept_specificity",
            title="specificity",
            unit="share",
            better="lower",
            optional=True,
            text="Share of an example's top 100 neurons that are also among the top 100 of an example of another "
            "concept, averaged over those examples: 0 means that no neuron is shared between concepts.",
        ),
        Metric(
            "concept_contrast",
            title="contrast",
            unit="share",
            better="higher",
            optional=True,
            text="Cross-image invariance minus specificity: 0 for a method that names the same neurons whatever is "
            "asked.",
        ),
        Metric(
            "concept_causal_effect",
            title="causal effect",
            unit="nats",
            better="higher",
            optional=True,
            text="Drop in log p(answer) under noise on the output vectors of an example's top 100 neurons, minus the "
            "drop under the same noise on as many neurons drawn from the same layers (several draws). The noise is "
            "normal and independent in every entry, with the root mean square of all output vectors' entries as its "
            "standard deviation.",
        ),
    )

    shapes: ClassVar = {
        **dict.fromkeys(("concepts", "sources", "named"), "examples"),
        "named_random": "draws examples",
        "overlap": "examples examples",
        **dict.fromkeys(("shuffled", "clean"), "examples?"),
        "noised": "noises examples?",
        "noised_random": "noises examples?",
    }

    naming: int
    top: int
    sigma: float
    concepts: list[str]
    sources: list[str]
    named: list[float]
    named_random: list[list[float]]
    overlap: list[list[float]]
    shuffled: list[float] | None
    clean: list[float] | None
    noised: list[list[float]] | None
    noised_random: list[list[float]] | None
    not_measured: dict[str, str]

    @property
    def n(self) -> int:
        return len(self.concepts)

    def check_values(self) -> None:
        if not self.concepts or not self.named_random:
            raise ValueError("concepts or named_random are empty")

    def gaps(self) -> dict[str, str]:
        return self.not_measured

    def per_example(self) -> dict[str, Array]:
        """By metric name its value on each example ``[N]``, NaN where an example has none."""
        overlap, concepts = np.asarray(self.overlap), np.asarray(self.concepts)
        same = concepts[:, None] == concepts[None]
        elsewhere = np.asarray(self.sources)[:, None] != np.asarray(self.sources)[None]
        values = {
            "concept_sensitivity": np.asarray(self.named) - np.asarray(self.named_random).mean(0),
            "cross_image_invariance": _mean_of_chosen(overlap, same & elsewhere),
            "concept_specificity": _mean_of_chosen(overlap, ~same),
        }
        values["concept_contrast"] = values["cross_image_invariance"] - values["concept_specificity"]
        if self.shuffled is not None:
            values["region_invariance"] = np.asarray(self.shuffled)
        if self.noised is not None and self.noised_random is not None:
            # the drop of the top minus the drop of the random set: the clean value cancels
            values["concept_causal_effect"] = (np.asarray(self.noised_random) - np.asarray(self.noised)).mean(0)
        return values

    def statistics(self) -> dict[str, Statistic]:
        """By metric name, the aggregate as a function of example indices ``[..., N]``.

        Metrics that no example has a value of are left out.
        """
        return {name: nanmean(x) for name, x in self.per_example().items() if np.isfinite(x).any()}


def _mean_of_chosen(values: Array, chosen: NDArray[np.bool_]) -> Array:
    """``[N]``: the mean of each row's chosen entries of ``[N, N]``; NaN where none is."""
    with np.errstate(invalid="ignore"):
        return np.where(chosen, values, 0.0).sum(1) / chosen.sum(1)
