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
        optional: True if a record with the family's measurements may lack it.
    """

    name: str
    title: str
    version: int
    unit: str
    better: Literal["higher", "lower", "neither"]
    family: str
    digits: int
    description: str
    optional: bool = False


_RING = (
    " Each patch goes together with the eight around it, since attention in the vision tower writes an object into "
    "the features of neighboring patches; the axis is the share of patches really replaced."
)


def _pruning_metrics() -> tuple[Metric, ...]:
    found = []
    for suffix, title, order in (
        ("", "", "the lowest signed scores first"),
        ("_absolute", " (|score|)", "the scores nearest to zero first"),
    ):
        found += [
            Metric(
                f"pruning_accuracy_area{suffix}",
                f"accuracy area{title}",
                1,
                "share",
                "higher",
                "pruning",
                3,
                f"Area under the accuracy, over all test examples drawn, against the share of components removed "
                f"({order}), by trapezoid from 0 to the largest share, divided by the axis' length.",
            ),
            Metric(
                f"pruning_accuracy_half{suffix}",
                f"accuracy at 50 %{title}",
                1,
                "share",
                "higher",
                "pruning",
                3,
                f"Accuracy over all test examples drawn at the share of removed components nearest to one half "
                f"({order}).",
            ),
            Metric(
                f"pruning_kept_sparsity{suffix}",
                f"keeps 95 % to{title}",
                1,
                "share removed",
                "higher",
                "pruning",
                2,
                f"Largest share of components that can be removed ({order}) while accuracy stays at or above 95 % of "
                f"the whole model's, there and at every smaller share measured; 0 if none.",
            ),
        ]
    return (
        *found,
        Metric(
            "parameters_removed",
            "parameters removed",
            1,
            "share",
            "higher",
            "pruning",
            3,
            "Share of all parameters that the sliced model does without, at the share of components that is sliced "
            "away for real, the lowest signed scores first.",
            optional=True,
        ),
        Metric(
            "speed_up",
            "speed-up",
            1,
            "times",
            "higher",
            "pruning",
            2,
            "Seconds of a forward pass over test examples before slicing divided by those after it: ratio of the "
            "medians of alternating warm repeats, with the smallest and largest ratio of a pair.",
            optional=True,
        ),
        Metric(
            "capability_kept",
            "capability kept",
            1,
            "share",
            "higher",
            "pruning",
            3,
            f"What the sliced model keeps of general ability: {_KEPT}",
            optional=True,
        ),
        Metric(
            "pruning_accuracy_recovered",
            "accuracy, recovered",
            1,
            "share",
            "higher",
            "pruning",
            3,
            "Accuracy of the sliced model over all test examples drawn, after a small fixed budget of LoRA training on "
            "the train split.",
            optional=True,
        ),
        Metric(
            "capability_recovered",
            "capability, recovered",
            1,
            "share",
            "higher",
            "pruning",
            3,
            f"What the sliced model has of general ability after that training: {_KEPT}",
            optional=True,
        ),
        Metric(
            "coefficient_ratio",
            "coefficients after / before",
            1,
            "times",
            "neither",
            "pruning",
            2,
            "Mean size of the coefficients at the last token of the train examples, of the 50 highest-scored neurons "
            "that were kept: after that training over before it, with the interval over neurons (Yu & Ananiadou 2024, "
            "arXiv 2409.14144, find that training enlarges those of important neurons).",
            optional=True,
        ),
        Metric(
            "coefficient_ratio_control",
            "the same, same layers",
            1,
            "times",
            "neither",
            "pruning",
            2,
            "As the ratio of coefficients, of as many kept neurons drawn from the same layers.",
            optional=True,
        ),
    )


_KEPT = "mean over the capability tasks of accuracy after over before, or perplexity before over after, each at most 1."

EDITS = {
    "suppress": "the top components' output weights are scaled by suppress_factor, 0 by default; changed means: no "
    "longer the answer",
    "boost": "the top components' output weights are scaled by boost_factor, 2 by default; changed means: the answer "
    "where the model was wrong before",
    "rewrite": "for each example, a rank-one change of the top neurons' output vectors towards its foil; changed "
    "means: the foil",
}
"""The kinds of edits, and what each does and is after."""


def _edit_metrics() -> tuple[Metric, ...]:
    def metric(
        kind: str,
        name: str,
        unit: str,
        better: Literal["higher", "lower", "neither"],
        description: str,
    ) -> Metric:
        said = f"{description} ({kind}: {EDITS[kind]}.)"
        return Metric(f"edit_{kind}_{name}", f"{kind}: {_EDIT_TITLES[name]}", 1, unit, better, "editing", 3, said, True)

    found = []
    for kind in EDITS:
        found += [
            metric(
                kind,
                "score",
                "share",
                "higher",
                "Harmonic mean of efficacy, generality, locality and capability kept, of those measured: high only "
                "where all are.",
            ),
            metric(
                kind,
                "efficacy",
                "share",
                "higher",
                "Share of test examples whose answer the edit changes, by top token.",
            ),
            metric(
                kind,
                "efficacy_probability",
                "share",
                "higher",
                "As efficacy, by probability: p(foil) above p(answer); for boost, p(answer) higher than before.",
            ),
            metric(kind, "generality", "share", "higher", "As efficacy, on paraphrases that the edit never saw."),
            metric(
                kind,
                "locality",
                "share",
                "higher",
                "Share of other prompts whose top token stays: neutral prompts, and for rewrite other examples.",
            ),
            metric(
                kind,
                "locality_kl",
                "nats",
                "lower",
                "Mean divergence KL(before || after) of the next token's distribution on those other prompts.",
            ),
            metric(
                kind,
                "capability_kept",
                "share",
                "higher",
                f"What the edited model keeps of general ability: {_KEPT}",
            ),
        ]
    return tuple(found)


_EDIT_TITLES = {
    "score": "score",
    "efficacy": "efficacy",
    "efficacy_probability": "efficacy by p",
    "generality": "generality",
    "locality": "locality",
    "locality_kl": "KL elsewhere",
    "capability_kept": "capability kept",
}

_HALVINGS = (
    "Mean over random halvings, the same for every method; brackets: the middle 95 % of the halvings, no interval. "
    "Of a method that scores all examples together: one halving."
)


def _sanity_metrics() -> tuple[Metric, ...]:
    def metric(name: str, title: str, description: str) -> Metric:
        return Metric(name, title, 1, "rank correlation", "lower", "sanity", 3, description, True)

    noise = (
        "the projections of attention and FFN are redrawn from a normal distribution with each tensor's own mean and "
        "standard deviation, and norms, embeddings and the unembedding stay"
    )
    among = "over the components in those layers, or over an example's positions, averaged over test examples"
    return (
        metric(
            "model_randomisation",
            "after randomizing the model",
            f"Spearman's rank correlation of |score| in the model and in one whose layers are randomized (all of them, "
            f"unless sanity_stages says otherwise): {noise}. Taken {among}. Near 0: the method sees what the model "
            f"learned; 1: it does not.",
        ),
        metric(
            "model_randomisation_signed",
            "the same, signed scores",
            "As after randomizing the model, of the scores themselves.",
        ),
        metric(
            "model_randomisation_50",
            "upper half",
            "As after randomizing the model, with only the upper half of the layers randomized.",
        ),
        metric(
            "model_randomisation_25",
            "upper quarter",
            "As after randomizing the model, with only the upper quarter of the layers randomized.",
        ),
        metric(
            "label_randomisation",
            "after changing the labels",
            "Spearman's rank correlation of the scores for the answer (against the foil) and for another answer "
            "(against another foil), both drawn for each example from the answers and foils of the task's examples; "
            "prompt and counterfactual stay. Over all components, or over an example's positions, averaged over test "
            "examples. 1: the method does not look at the answer.",
        ),
        metric(
            "label_randomisation_absolute",
            "the same, |score|",
            "As after changing the labels, of |score|.",
        ),
    )


_TIED = "Scores closer than 1e-5 of the largest in size are ties. Parts that no scored example needs are not judged."


def _truth_metrics() -> tuple[Metric, ...]:
    found = []
    for suffix, title, what in (
        ("", "", "the parts that help the answer against all others, by signed scores"),
        (
            "_absolute",
            " (|score|)",
            "the parts that help or hurt the answer against those that do nothing, by size of the scores",
        ),
    ):
        for name, head, said in (
            (
                "auroc",
                "AUROC",
                "Area under the ROC curve of {what}: the share of pairs ordered right, ties counted half; chance is "
                "one half.",
            ),
            (
                "average_precision",
                "AP",
                "Average precision of {what}; ties come together. By chance about the share of true parts.",
            ),
            (
                "precision_at_size",
                "P at size",
                "Precision of {what}, among as many of the highest as there are true parts; ties broken at random, in "
                "expectation. By chance the share of true parts.",
            ),
        ):
            described = f"{said.format(what=what)} {_TIED}"
            key = f"truth_{name}{suffix}"
            found.append(Metric(key, f"{head}{title}", 1, "share", "higher", "ground_truth", 3, described, True))
    return (
        *found,
        Metric(
            "suppressor_auroc",
            "AUROC of suppressors",
            1,
            "share",
            "higher",
            "ground_truth",
            3,
            f"Area under the ROC curve of the parts that work against the answer, against all others, by lowest signed "
            f"score; only where the model has such parts. {_TIED}",
            optional=True,
        ),
        Metric(
            "truth_share",
            "share of true parts",
            1,
            "share of components",
            "neither",
            "ground_truth",
            3,
            "Share of the judged components or positions that help the answer: the chance level of average precision "
            "and of precision at size.",
            optional=True,
        ),
    )


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
            optional=True,
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
            optional=True,
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
            optional=True,
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
            optional=True,
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
            optional=True,
        ),
        Metric(
            "insertion_auc",
            "insertion",
            1,
            "1 = perfect",
            "higher",
            "localization",
            3,
            "Linear area under f of the insertion curve (all positions replaced but the top k of each example) over "
            "the share k/n of positions, from 0 to 1 (Petsiuk et al. 2018, arXiv:1806.07421, normalized). Not clipped.",
        ),
        Metric(
            "deletion_auc",
            "deletion",
            1,
            "0 = perfect",
            "lower",
            "localization",
            3,
            "Linear area under f of the deletion curve (the top k positions of each example replaced) over the share "
            "k/n of positions, from 0 to 1 (Petsiuk et al. 2018, arXiv:1806.07421, normalized). Not clipped.",
        ),
        Metric(
            "comprehensiveness_aopc",
            "comp.",
            1,
            "probability",
            "higher",
            "localization",
            3,
            "Drop in p(answer) when the top 1, 5, 10, 20 and 50 % of the positions (at least one) are replaced, "
            "averaged over these five bins (DeYoung et al. 2020, arXiv:1911.03429; their formula also counts the "
            "empty bin, which multiplies by 5/6).",
        ),
        Metric(
            "sufficiency_aopc",
            "suff.",
            1,
            "probability",
            "lower",
            "localization",
            3,
            "Drop in p(answer) when all positions but the top 1, 5, 10, 20 and 50 % (at least one) are replaced, "
            "averaged over these five bins (DeYoung et al. 2020, arXiv:1911.03429).",
        ),
        Metric(
            "pointing_game",
            "pointing",
            1,
            "share of examples",
            "higher",
            "localization",
            3,
            "Whether the highest position (the first of equal ones) is evidence, by the marks or regions that the task "
            "declares (Zhang et al. 2016, arXiv:1608.00507, without their margin). By chance: the share of evidence.",
            optional=True,
        ),
        Metric(
            "precision_at_mark",
            "precision",
            1,
            "share of positions",
            "higher",
            "localization",
            3,
            "Share of evidence among as many top positions as there is evidence. By chance: the share of evidence.",
            optional=True,
        ),
        Metric(
            "iou_best",
            "IoU",
            1,
            "1 = perfect",
            "higher",
            "localization",
            3,
            "Intersection over union of the evidence and the positions that score at least t, at the best t of each "
            "example. Never below the share of evidence, which marking everything gives.",
            optional=True,
        ),
        Metric(
            "iou_half",
            "IoU at 0.5",
            1,
            "1 = perfect",
            "higher",
            "localization",
            3,
            "Intersection over union of the evidence and the positions above the middle between an example's smallest "
            "and largest score; 0 where all scores are equal.",
            optional=True,
        ),
        Metric(
            "mass_evidence",
            "mass in evidence",
            1,
            "share of score",
            "higher",
            "localization",
            3,
            "Share of the positive scores that lies in the evidence (relevance mass, Arras et al. 2022, "
            "arXiv:2003.07258); an example without a positive score counts as equal scores. By chance: the share of "
            "evidence.",
            optional=True,
        ),
        Metric(
            "mass_other",
            "mass in distractors",
            1,
            "share of score",
            "lower",
            "localization",
            3,
            "As the mass in the evidence, for the marks or regions that the task declares as distractors. By chance: "
            "their share.",
            optional=True,
        ),
        Metric(
            "mass_background",
            "mass elsewhere",
            1,
            "share of score",
            "lower",
            "localization",
            3,
            "As the mass in the evidence, for positions that are neither evidence nor distractors. By chance: their "
            "share.",
            optional=True,
        ),
        Metric(
            "evidence_share",
            "share of evidence",
            1,
            "share of positions",
            "neither",
            "localization",
            3,
            "Share of the positions that is evidence: covered by it by at least a quarter or, where there is none, the "
            "one covered most. The chance level of pointing, precision and mass.",
            optional=True,
        ),
        Metric(
            "other_share",
            "share of distractors",
            1,
            "share of positions",
            "neither",
            "localization",
            3,
            "Share of the positions that is distractors and not evidence: the chance level of the mass there.",
            optional=True,
        ),
        Metric(
            "background_share",
            "share elsewhere",
            1,
            "share of positions",
            "neither",
            "localization",
            3,
            "Share of the positions that is neither evidence nor distractors: the chance level of the mass there.",
            optional=True,
        ),
        Metric(
            "insertion_auc_ring1",
            "insertion, ring 1",
            1,
            "1 = perfect",
            "higher",
            "localization",
            3,
            f"As the insertion area.{_RING}",
            optional=True,
        ),
        Metric(
            "deletion_auc_ring1",
            "deletion, ring 1",
            1,
            "0 = perfect",
            "lower",
            "localization",
            3,
            f"As the deletion area.{_RING}",
            optional=True,
        ),
        Metric(
            "comprehensiveness_aopc_ring1",
            "comp., ring 1",
            1,
            "probability",
            "higher",
            "localization",
            3,
            "As comprehensiveness, each of the top patches together with the eight around it: a scattered top is then "
            "more patches than one that hangs together.",
            optional=True,
        ),
        Metric(
            "sufficiency_aopc_ring1",
            "suff., ring 1",
            1,
            "probability",
            "lower",
            "localization",
            3,
            "As sufficiency, each of the top patches together with the eight around it.",
            optional=True,
        ),
        *_pruning_metrics(),
        *_edit_metrics(),
        *_truth_metrics(),
        Metric(
            "bias_removed",
            "bias removed",
            1,
            "share",
            "higher",
            "preference",
            3,
            "Share of the bias over all test examples drawn that goes when the top k neurons are suppressed (removed, "
            "unless suppress_factor says otherwise), at the k with the least bias over the train examples among those "
            "at which perplexity on prose rises by at most 2 %; 0 if there is none.",
        ),
        Metric(
            "perplexity_rise",
            "perplexity rise",
            1,
            "share",
            "lower",
            "preference",
            3,
            "Rise of word perplexity on prose at that k, as a share of the untouched model's.",
            optional=True,
        ),
        Metric(
            "bias",
            "bias",
            1,
            "nats",
            "neither",
            "preference",
            2,
            "Bias of the untouched model: mean over all test examples drawn of |log p(first) - log p(second)| of the "
            "task's two continuations.",
        ),
        Metric(
            "bias_signed",
            "bias, signed",
            1,
            "nats",
            "neither",
            "preference",
            2,
            "As the bias, signed: above 0 where the first continuation is preferred.",
        ),
        Metric(
            "bias_control",
            "bias, control",
            1,
            "nats",
            "neither",
            "preference",
            2,
            "Bias of the untouched model on the task's control subsets.",
            optional=True,
        ),
        Metric(
            "bias_control_left",
            "control, edited",
            1,
            "nats",
            "neither",
            "preference",
            2,
            "Bias on the control subsets when those k neurons are suppressed.",
            optional=True,
        ),
        Metric(
            "reliability",
            "split halves",
            1,
            "rank correlation",
            "higher",
            "reliability",
            3,
            f"Spearman's rank correlation over components of the scores averaged over two halves of the train "
            f"examples, no base item torn apart. {_HALVINGS} A method that does not look at the examples has 1.",
        ),
        Metric(
            "reliability_stepped_up",
            "stepped up",
            1,
            "rank correlation",
            "higher",
            "reliability",
            3,
            "Spearman and Brown's estimate of what the split halves' correlation r would be of sets as large as the "
            "whole: 2 r / (1 + |r|), of the mean r. Their formula is for sums of parallel parts; of ranks it is an "
            "approximation.",
        ),
        Metric(
            "reliability_top",
            "top 20 in common",
            1,
            "share",
            "higher",
            "reliability",
            3,
            f"Share of the 20 highest-scored components that two halves of the train examples have in common (of "
            f"fewer than 40 components, of their upper half). {_HALVINGS}",
        ),
        *_sanity_metrics(),
        Metric(
            "seconds_per_example",
            "s / example",
            1,
            "seconds",
            "lower",
            "speed",
            3,
            "Time the method takes per example: median of warm repeats on the first speed_examples examples that it "
            "scores (of the train split; of the test split at levels of inputs), with their smallest and largest; for "
            "a method too slow to repeat, its one run over the split. Work that a method does once for all examples "
            "counts in full.",
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
            "Most memory the method held above what was there before it started, while scoring its split: "
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
        "At levels of inputs (patches, tokens) the same f is taken over positions of the input: m_empty is the model",
        "with every position of the level replaced, and the sizes are those nearest to 1, 2, 5, 10, 20, 50 and 100 %",
        "of each example's own n positions. Areas belong to an example; like the metric itself they are averaged over",
        "examples before the division. *Evidence* and *distractors* are marks or regions that the task declares.",
        "",
        "Metrics of the family *ground_truth* are measured of models whose mechanism is known",
        "([ground_truth.md](ground_truth.md)); components are judged once, on the train examples that were scored.",
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
