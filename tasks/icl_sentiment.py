"""Is this review positive or negative, judged after a few labelled ones?"""

from __future__ import annotations

import csv
import functools
import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from attriboard.errors import ConfigurationError, TaskError
from attriboard.task import SPLITS, Example, Span, Task, split_of, split_of_frame

Thing = TypeVar("Thing")

POSITIVE, NEGATIVE = 0, 1
HUB_NAME = "stanfordnlp/sst2"
MOST_WORDS = 14  # of an SST-2 sentence, which is then about as long as one of ours
PARTNERS = 8  # sentences offered as counterfactual of one query, where none is paired with it


@dataclass(frozen=True)
class Review:
    """A sentence; two that share an item say opposite things about one matter, in equally many tokens."""

    text: str
    label: int
    item: str


@dataclass(frozen=True)
class Frame:
    """What stands before a sentence, between it and its label, and between two labelled sentences."""

    lead: str
    arrow: str
    separator: str

    def __str__(self) -> str:
        return f"{self.lead}_{self.arrow} _{self.separator}"


LEADS = ("", "Review: ", "Text: ", "Comment: ", "> ")
ARROWS = (" ->", " =>", " -->", " ==>", " →", " |", " =", " :", " -", " --")
SEPARATORS = ("\n", "\n\n")
FRAMES = tuple(Frame(*parts) for parts in product(LEADS, ARROWS, SEPARATORS))
PARAPHRASED = (Frame("", " Sentiment:", "\n"), Frame("", " It is", "\n"))


@dataclass
class IclSentiment(Task):
    """``Very dirty bathroom and a terrible view. -> negative⏎`` ... ``I adore this song, it makes me happy. ->``

    The counterfactual exchanges the query for the opposite sentence about the same matter. Everything before the
    query, and the number of its tokens, stay the same, so all that differs is what the answer has to be read from.
    Exchanging the labels of the demonstrations instead (``counterfactual="labels"``) asks whether the model takes
    its labels from them; with words it already understands a small model mostly does not, and the answer stays.

    A demonstration comes from the query's split and never from the query's pair, so no sentence of a training prompt
    stands in a test prompt. The frame is what stands before each sentence, between it and its label, and after the
    label; arrows and dashes are followed best by a model of 135 M parameters. Paraphrases ask about the same sentence
    after other demonstrations, with other words before the label. The other question puts a sentence that judges
    nothing (a shop's opening hours) in the place of the query.

    Attributes:
        shots: how many demonstrations, an even number. ``balanced``: as many of each label, mixed; ``imbalanced``:
            all but one of one label; ``order``: as many of each, one label first, then the other.
        label_words: the word for positive and the word for negative ("foo" and "bar" mean nothing by themselves).
        counterfactual: "query" or "labels", see above.
        source: "own" (this project's pairs), "sst2" (from the hub), or the folder of a copy of SST-2. SST-2 has no
            pairs: a query is exchanged for a sentence of the other label with as many words.
    """

    name: ClassVar[str] = "icl_sentiment"
    version: ClassVar[int] = 2
    description: ClassVar[str] = "Label a short review after a few labelled ones."
    paper: ClassVar[str] = "arXiv:2402.02872"
    labels: ClassVar[tuple[str, ...]] = (" positive", " negative")
    all_subsets: ClassVar[tuple[str, ...]] = ("balanced", "imbalanced", "order")
    marks: ClassVar[tuple[str, ...]] = ("label", "query")
    evidence: ClassVar[tuple[str, ...]] = ("query",)

    shots: int = 4
    label_words: Sequence[str] = ("positive", "negative")
    counterfactual: str = "query"
    source: str = "own"

    def __post_init__(self) -> None:
        super().__post_init__()
        fewest = 4 if "imbalanced" in self.subsets else 2
        if self.shots < fewest or self.shots % 2:
            raise ConfigurationError(f"shots is {self.shots}, expected an even number of at least {fewest}.")
        words = [str(word).strip() for word in self.label_words]
        if isinstance(self.label_words, str) or len(words) != 2 or not all(words) or words[0] == words[1]:
            raise ConfigurationError(f"label_words is {self.label_words!r}, expected two different words.")
        if self.counterfactual not in ("query", "labels"):
            raise ConfigurationError(f"counterfactual is {self.counterfactual!r}, expected 'query' or 'labels'.")
        self.labels = (f" {words[0]}", f" {words[1]}")  # type: ignore[misc]  # an option decides

    def candidates(self, subset: str, rng: random.Random) -> Iterator[Example]:
        reviews = own_reviews() if self.source == "own" else sst2_reviews(self.source)
        pools = {(split, label): pool(reviews, split, label) for split in SPLITS for label in (0, 1)}
        smallest = min(len(texts) for texts in pools.values())
        if smallest <= self.shots:
            raise TaskError(
                f"source {self.source!r} has only {smallest} short sentences of one label in one split, "
                f"too few for {self.shots} shots."
            )
        said = {split: {(r.item, r.label): r for r in reviews if split_of(r.item) == split} for split in SPLITS}
        items: dict[str, list[str]] = {split: [] for split in SPLITS}
        frames: dict[str, list[Frame]] = {split: [] for split in SPLITS}
        wanted = {split: rng.randrange(2) for split in SPLITS}
        while True:
            split = rng.choice(SPLITS)
            # from shuffled decks, so that every item and every frame comes before any comes again; labels alternate
            items[split] = items[split] or shuffled(list(dict.fromkeys(item for item, _ in said[split])), rng)
            frames[split] = frames[split] or shuffled([f for f in FRAMES if split_of_frame(str(f)) == split], rng)
            item, frame, label = items[split].pop(), frames[split].pop(), wanted[split]
            label = label if (item, label) in said[split] else 1 - label
            query, wanted[split] = said[split][item, label], 1 - label
            by_label = [pools[split, POSITIVE], pools[split, NEGATIVE]]
            shown = demonstrations(by_label, pattern(subset, self.shots, rng), query, rng)
            prompt, marks = write(shown, query, self.labels, frame)
            again = random.Random(f"paraphrases of {prompt}")  # its own, so that rng draws what it drew without them
            paraphrases = []
            for other_frame in PARAPHRASED:
                others_shown = demonstrations(by_label, pattern(subset, self.shots, again), query, again)
                paraphrases.append(write(others_shown, query, self.labels, other_frame)[0])
            neutral = Review(again.choice(alike(query, neutral_sentences())), label, "")
            if self.counterfactual == "labels":
                others = [write(shown, query, self.labels[::-1], frame)[0]]
            else:
                opposite = [review for review in pools[split, 1 - label] if review not in shown]
                others = [write(shown, other, self.labels, frame)[0] for other in partners(query, opposite, rng)]
            for other in others:
                yield Example(
                    prompt=prompt,
                    answer=self.labels[label],
                    foil=self.labels[1 - label],
                    counterfactual=other,
                    marks=marks,
                    item=query.item,
                    frame=str(frame),
                    demonstrations=tuple(review.item for review in shown),
                    subset=subset,
                    paraphrases=tuple(paraphrases),
                    other_question=write(shown, neutral, self.labels, frame)[0],
                )


def shuffled(things: Sequence[Thing], rng: random.Random) -> list[Thing]:
    """The things in random order."""
    return rng.sample(list(things), len(things))


def demonstrations(
    by_label: Sequence[Sequence[Review]], wanted: Sequence[int], query: Review, rng: random.Random
) -> list[Review]:
    """Sentences with these labels, in this order, none of them from the query's pair or from one pair."""
    shown: list[Review] = []
    for label in wanted:
        used = {query.item, *(review.item for review in shown)}
        shown.append(rng.choice([review for review in by_label[label] if review.item not in used]))
    return shown


def pattern(subset: str, shots: int, rng: random.Random) -> list[int]:
    """The labels of the demonstrations, in order."""
    first = rng.randrange(2)
    if subset == "imbalanced":
        labels = [first] * (shots - 1) + [1 - first]
    else:
        labels = [first] * (shots // 2) + [1 - first] * (shots // 2)
    if subset != "order":
        rng.shuffle(labels)
    return labels


def partners(query: Review, opposite: Sequence[Review], rng: random.Random) -> list[Review]:
    """The sentence paired with the query; without one, a few of the other label with as many words."""
    paired = [review for review in opposite if review.item == query.item]
    if paired:
        return paired
    alike = [review for review in opposite if len(review.text.split()) == len(query.text.split())] or opposite
    return rng.sample(alike, min(PARTNERS, len(alike)))


def write(
    shown: Sequence[Review], query: Review, labels: Sequence[str], frame: Frame
) -> tuple[str, dict[str, tuple[Span, ...]]]:
    """The prompt and its marks."""
    text = ""
    words: list[Span] = []
    for review in shown:
        text += f"{frame.lead}{review.text}{frame.arrow}"
        words.append((len(text) + 1, len(text) + len(labels[review.label])))
        text += f"{labels[review.label]}{frame.separator}"
    text += frame.lead
    marks: dict[str, tuple[Span, ...]] = {
        "label": tuple(words),
        "query": ((len(text), len(text) + len(query.text)),),
    }
    return f"{text}{query.text}{frame.arrow}", marks


def alike(query: Review, sentences: Sequence[str]) -> list[str]:
    """Those that come closest to the query in the number of their words."""
    wanted = len(query.text.split())
    nearest = min(abs(len(sentence.split()) - wanted) for sentence in sentences)
    return [sentence for sentence in sentences if abs(len(sentence.split()) - wanted) == nearest]


def pool(reviews: Sequence[Review], split: str, label: int) -> list[Review]:
    return [review for review in reviews if review.label == label and split_of(review.item) == split]


@functools.cache
def own_reviews() -> tuple[Review, ...]:
    """The pairs in ``data/reviews.tsv``; a pair is known by its positive sentence, wherever it stands."""
    text = files("attriboard.tasks.data").joinpath("reviews.tsv").read_text(encoding="utf-8")
    return tuple(
        Review(row[column], label, row["positive"])
        for row in csv.DictReader(io.StringIO(text), delimiter="\t")
        for label, column in ((POSITIVE, "positive"), (NEGATIVE, "negative"))
    )


@functools.cache
def neutral_sentences() -> tuple[str, ...]:
    """Sentences that judge nothing, in ``data/neutral.tsv``."""
    text = files("attriboard.tasks.data").joinpath("neutral.tsv").read_text(encoding="utf-8")
    return tuple(text.splitlines()[1:])


@functools.cache
def sst2_reviews(source: str) -> tuple[Review, ...]:
    """The short sentences of SST-2, from its validation part where there is one.

    The training part is made of phrases cut out of each other, which would put one review into both splits.
    """
    dataset = load(source)
    parts = dataset if isinstance(dataset, dict) else {"validation": dataset}
    part = parts.get("validation") or next(iter(parts.values()))
    missing = {"sentence", "label", "idx"} - set(part.column_names)
    if missing:
        raise TaskError(f"SST-2 in {source!r} lacks the columns {', '.join(sorted(missing))}.")
    reviews: dict[str, Review] = {}
    for sentence, label, idx in zip(part["sentence"], part["label"], part["idx"]):
        text = sentence.strip()
        if label in (0, 1) and 1 < len(text.split()) <= MOST_WORDS:
            reviews.setdefault(text, Review(text, POSITIVE if label == 1 else NEGATIVE, f"sst2-{idx}"))
    return tuple(reviews.values())


def load(source: str) -> Any:
    """What ``datasets`` makes of the hub's SST-2, of a folder of its files, or of a folder it saved itself.

    Raises:
        TaskError: neither the hub nor such a folder can be read.
    """
    import datasets

    folder = Path(source).expanduser()
    if source != "sst2" and not folder.is_dir():
        raise TaskError(f"source is {source!r}, expected 'own', 'sst2' or the folder of a copy of SST-2.")
    try:
        if source == "sst2":
            return datasets.load_dataset(HUB_NAME)
        if (folder / "dataset_dict.json").exists() or (folder / "dataset_info.json").exists():
            return datasets.load_from_disk(str(folder))
        return datasets.load_dataset(str(folder))
    except Exception as error:  # the hub, its client and the file readers each raise their own kinds
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        if source == "sst2":
            raise TaskError(
                f"SST-2 cannot be reached ({reason}): download {HUB_NAME} and give its folder as source=PATH, "
                "or use source='own'."
            ) from error
        raise TaskError(f"the folder {source!r} cannot be read as SST-2 ({reason}).") from error
