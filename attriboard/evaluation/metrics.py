"""Every aggregate that a record may hold: name, version, unit, direction and meaning, defined once.

Records, the board's columns and ``docs/metrics.md`` come from this table. When a metric turns out wrong, its version is
raised and the old one kept under another name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One aggregate.

    Attributes:
        name: key in records.
        title: column head.
        version: raised when the definition changes.
        unit: of the value.
        better: "higher", "lower", or "neither" for descriptions.
        family: the evaluation it belongs to.
        digits: decimals shown on the board.
        description: what it is, in a sentence or two.
    """

    name: str
    title: str
    version: int
    unit: str
    better: Literal["higher", "lower", "neither"]
    family: str
    digits: int
    description: str


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric(
            "sufficiency_log_area",
            "S",
            1,
            "1 = perfect",
            "higher",
            "faithfulness",
            3,
            "Area under the sufficiency curve (keep the top k components, replace the rest) over log(k/n), divided by "
            "the axis' length: 1 means that the first component alone already restores the metric. Not clipped.",
        ),
        Metric(
            "necessity_log_area",
            "N",
            1,
            "1 = perfect",
            "higher",
            "faithfulness",
            3,
            "Area under 1 - f of the necessity curve (replace the top k, keep the rest) over log(k/n), divided by the "
            "axis' length: 1 means that replacing the first component alone already destroys the metric. Not clipped.",
        ),
        Metric(
            "cpr",
            "CPR",
            1,
            "at most about 0.999 if f <= 1",
            "higher",
            "faithfulness",
            3,
            "MIB's circuit performance ratio: linear area under f at 0.1 to 100 % of the components, kept by signed "
            "score.",
        ),
        Metric(
            "cmd",
            "CMD",
            1,
            "0 = perfect",
            "lower",
            "faithfulness",
            3,
            "MIB's circuit-model distance: linear area between f and 1 at 0.1 to 100 % of the components, kept by "
            "absolute score. Equals 0.999 - CPR whenever f stays at or below 1 and no score is negative.",
        ),
        Metric(
            "ablation_drop_p",
            "drop in p",
            1,
            "probability",
            "higher",
            "ablation",
            3,
            "Drop in p(answer) when the top k components are replaced, minus the drop for as many components drawn at "
            "random from the same layers (several draws), averaged over k = 1, 2, 5, 10, 20, 50, 100, 300 as far "
            "as k is at most half of the level. The interval is over examples and "
            "does not include the error of the draws.",
        ),
        Metric(
            "ablation_drop_logprob",
            "drop in log p",
            1,
            "nats",
            "higher",
            "ablation",
            2,
            "As the drop in p, for log p(answer).",
        ),
        Metric(
            "ablation_drop_accuracy",
            "drop in accuracy",
            1,
            "share",
            "higher",
            "ablation",
            3,
            "As the drop in p, for the share of examples answered correctly.",
        ),
        Metric(
            "concept_sensitivity",
            "sensitivity",
            1,
            "share",
            "higher",
            "concepts",
            3,
            "Of an example's top 10 neurons, the share whose vocabulary words (the 10 tokens with the largest product "
            "of output vector and unembedding) name the example's concept or answer, minus that share among as many "
            "neurons drawn from the same layers (several draws). Case and surrounding spaces are ignored.",
        ),
        Metric(
            "region_invariance",
            "region invariance",
            1,
            "share",
            "higher",
            "concepts",
            3,
            "Share of an example's top 100 neurons that are also its top 100 when the image's patches are permuted at "
            "the entrance of the language model (positions stay).",
        ),
        Metric(
            "cross_image_invariance",
            "cross-image invariance",
            1,
            "share",
            "higher",
            "concepts",
            3,
            "Share of an example's top 100 neurons that are also among the top 100 of an example of the same concept "
            "on another image, averaged over those examples.",
        ),
        Metric(
            "concept_specificity",
            "specificity",
            1,
            "share",
            "lower",
            "concepts",
            3,
            "Share of an example's top 100 neurons that are also among the top 100 of an example of another concept, "
            "averaged over those examples: 0 means that no neuron is shared between concepts.",
        ),
        Metric(
            "concept_contrast",
            "contrast",
            1,
            "share",
            "higher",
            "concepts",
            3,
            "Cross-image invariance minus specificity: 0 for a method that names the same neurons whatever is asked.",
        ),
        Metric(
            "concept_causal_effect",
            "causal effect",
            1,
            "nats",
            "higher",
            "concepts",
            3,
            "Drop in log p(answer) under noise on the output vectors of an example's top 100 neurons, minus the drop "
            "under the same noise on as many neurons drawn from the same layers (several draws). The noise is normal "
            "and independent in every entry, with the root mean square of all output vectors' entries as its standard "
            "deviation.",
        ),
        Metric(
            "seconds_per_example",
            "s / example",
            1,
            "seconds",
            "lower",
            "speed",
            3,
            "Time the method takes per example: median of warm repeats on the suite's first speed_examples train "
            "examples, with their smallest and largest; for a method too slow to repeat, its one run over the train "
            "split. Work that a method does once for all examples counts in full.",
        ),
        Metric(
            "forward_equivalents",
            "forwards",
            1,
            "forward passes per example",
            "lower",
            "speed",
            1,
            "Passes through the model per example, counted on the same examples as the time; a backward pass counts as "
            "two, a partial pass as the fraction of layers and positions it ran. Products with the unembedding that a "
            "method makes by itself are not counted.",
        ),
        Metric(
            "peak_memory_mib",
            "peak MiB",
            1,
            "MiB",
            "lower",
            "speed",
            0,
            "Most memory the method held above what was there before it started, while scoring the train split: "
            "allocated GPU memory on a GPU, growth of the process' resident memory on a CPU.",
        ),
    )
}


def page() -> str:
    """``docs/metrics.md``: every metric in words."""
    lines = [
        "# Metrics",
        "",
        "Made from `attriboard/evaluation/metrics.py` by `make docs`; every record stores the version of each metric.",
        "",
        "With *m* the task's metric (logit of the answer minus logit of the foil) averaged over test examples,",
        "f(k) = (m_k − m_empty) / (m_full − m_empty): m_full is the untouched model, m_empty the model with",
        "every component of the level replaced, at all positions. Sizes k are the distinct whole numbers nearest to",
        "0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50 and 100 % of the level's n components, at least 1; MIB's two scores use",
        "floor(k n).",
        "f is never clipped.",
        "",
        "Metrics of the family *concepts* are measured at level neurons on tasks whose examples each carry a concept,",
        "and only of methods that score single examples. Of fewer than 200 neurons, half of them are the top 100.",
        "",
    ]
    for metric in METRICS.values():
        lines += [
            f"## {metric.title}",
            "",
            f"`{metric.name}`, version {metric.version}, {metric.family}. "
            f"Unit: {metric.unit}. Better: {metric.better}.",
            "",
            metric.description,
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(page(), end="")
