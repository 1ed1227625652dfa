"""What does this post feel, how much, and is what it says a conspiracy theory or true?"""

from __future__ import annotations

import csv
import functools
import io
import random
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import ClassVar, TypeVar

from attriboard.errors import ConfigurationError, TaskError
from attriboard.instructions import Instruction, chat, read_instructions
from attriboard.task import SPLITS, Example, Span, Task, split_of, split_of_frame

OWN = "own"
PARAPHRASES = 2
PARTNERS = 8  # questions offered as counterfactual of one that has no pair

LABELS: dict[str, tuple[str, ...]] = {
    "emotion": ("anger", "fear", "joy", "sadness"),
    "polarity": ("positive", "negative"),
    "intensity": ("0", "1", "2", "3"),
    "conspiracy": ("unrelated", "related", "conspiracy"),
    "claim": ("True", "False", "NEI"),
}
"""The labels of our own texts."""

USUAL = ("emotion", "polarity")
"""The subsets asked where none is named."""

FEW_SHOT_WORDS: dict[str, tuple[str, ...]] = {
    "emotion": (" anger", " fear", " joy", " sadness"),
    "polarity": (" positive", " negative"),
    "intensity": ("0", "1", "2", "3"),
    "conspiracy": (" unrelated", " related", " conspiracy"),
    "claim": (" True", " False", " Unknown"),
}
"""What stands for each label in a few-shot prompt; "NEI" is not one token."""

HEADS: dict[str, tuple[str, ...]] = {
    "emotion": (
        "Label each post with anger, fear, joy or sadness.\n",
        "Is it anger, fear, joy or sadness?\n",
        "Choose anger, fear, joy or sadness for every text.\n",
        "Every post shows anger, fear, joy or sadness.\n",
        "Sort the posts into anger, fear, joy and sadness.\n",
        "Posts and their emotions: anger, fear, joy, sadness.\n",
        "Name the emotion of each message: anger, fear, joy or sadness.\n",
        "Which of anger, fear, joy and sadness does the writer feel?\n",
        "Below, each text is followed by its emotion.\n",
        "Some of these people feel anger, some fear, some joy, some sadness.\n",
        "Short texts, with anger, fear, joy or sadness behind them.\n",
        "What do people feel: anger, fear, joy or sadness?\n",
        "The following texts were marked with one emotion each.\n",
        "Answer with anger, fear, joy or sadness.\n",
        "Anger, fear, joy or sadness?\n",
        "Read the text and name its main emotion.\n",
        "These are the words of people who feel something strongly.\n",
        "Pick the emotion that fits: anger, fear, joy or sadness.\n",
    ),
    "polarity": (
        "",
        "Label each post as positive or negative.\n",
        "Positive or negative?\n",
        "Is the opinion positive or negative?\n",
        "Sort these texts into positive and negative.\n",
        "Some judgments are positive, others negative.\n",
        "Posts and their sentiment, positive or negative.\n",
        "Decide whether the writer is positive or negative about it.\n",
        "Each text is followed by its sentiment.\n",
        "Answer with positive or negative.\n",
        "Read the text and say if it is positive or negative.\n",
        "Mark the posts as positive or negative.\n",
        "What is the tone, positive or negative?\n",
        "The posts below were sorted by tone.\n",
        "Choose positive or negative for each message.\n",
        "Short texts with the opinion of their writers.\n",
    ),
    "intensity": (
        "",
        "Rate each post from 0 (none) to 3 (most).\n",
        "How strong is the emotion, from 0 to 3?\n",
        "0 is none, 1 a little, 2 some, 3 very much.\n",
        "Give every post a number from 0 to 3.\n",
        "Levels of emotion, from 0 to 3.\n",
        "From 0 (not at all) to 3 (extremely):\n",
        "Posts and how strongly their writers feel, 0 to 3.\n",
    ),
    "conspiracy": (
        "Label each post as unrelated, related or conspiracy.\n",
        "",
        "Is it unrelated, related or conspiracy?\n",
        "Sort the posts into unrelated, related and conspiracy.\n",
        "Unrelated, related or conspiracy?\n",
        "Choose unrelated, related or conspiracy for every text.\n",
        "What has the post to do with a conspiracy theory?\n",
        "Answer with unrelated, related or conspiracy.\n",
    ),
    "claim": (
        "",
        "True, False or Unknown?\n",
        "Check each claim.\n",
        "Is the claim True, False or Unknown?\n",
        "Answer with True, False or Unknown.\n",
        "Say whether the claim follows: True, False or Unknown.\n",
        "Claims after what is known about them.\n",
        "Decide between True, False and Unknown.\n",
    ),
}
"""By subset the lines that can stand above a few-shot prompt."""

FORMS: dict[str, tuple[str, ...]] = {
    "emotion": (
        "{text} Emotion:",
        "Post: {text} Answer:",
        "{text} ->",
        "{text} Feeling:",
        "{text} =>",
        "Text: {text} Emotion:",
        "Post: {text} Feeling:",
        "{text} Label:",
        "Message: {text} Emotion:",
        "{text} The emotion is",
        "{text} The writer feels",
        "Q: {text} A:",
        "{text} Main emotion:",
        "{text} Mood:",
        "Tweet: {text} Emotion:",
        "{text} This is",
        "{text} |",
        "Text: {text} Label:",
    ),
    "polarity": (
        "{text} ->",
        "{text} Sentiment:",
        "{text} Label:",
        "{text} Opinion:",
        "Post: {text} Answer:",
        "{text} =>",
        "{text} Verdict:",
        "{text} Rating:",
        "{text} The tone is",
        "{text} Overall:",
        "Text: {text} Sentiment:",
        "{text} This is",
        "Q: {text} A:",
        "Message: {text} Tone:",
        "{text} |",
        "{text} The opinion is",
    ),
    "intensity": (
        "{text} {affect}: ",
        "{text} {affect} = ",
        "How much {affect}? {text} -> ",
        "{text} Level of {affect}: ",
        "{text} {affect}, 0 to 3: ",
        "Post: {text} {affect}: ",
        "{text} Amount of {affect}: ",
        "{text} | {affect}: ",
    ),
    "conspiracy": (
        "{text} Label:",
        "{text} ->",
        "Post: {text} Answer:",
        "{text} Class:",
        "{text} =>",
        "Text: {text} Label:",
        "{text} This is",
        "{text} |",
    ),
    "claim": (
        "{context} {text} ->",
        "{context} Claim: {text} Answer:",
        "{context} {text} Verdict:",
        "Known: {context} Claim: {text} Verdict:",
        "{context} So: {text} Answer:",
        "{context} Claim: {text} ->",
        "Fact: {context} Claim: {text} Answer:",
        "{context} {text} =>",
    ),
}
"""By subset the forms that every text of a few-shot prompt can take. A line and a form make a frame."""

OTHER_FRAMES = {
    "veracity": ("Is each post reliable or misleading?\n", "{text} Veracity:"),
    "tone": ("Is the tone of each post positive or negative?\n", "{text} Tone:"),
    "tone of a claim": ("Is the tone of each claim positive or negative?\n", "{context} {text} Tone:"),
}
"""The frames of the other question, which is about what is balanced against the label: see :attr:`Post.group`."""

PUBLISHED_WORDS: dict[str, tuple[str, ...]] = {
    "emotion": (" anger", " fear", " joy", " sadness"),
    "polarity": ("1", "-"),
    "intensity": ("0", "1", "2", "3"),
    "conspiracy": ("0", "1", "2"),
    "claim": (" True", " False", " NE"),
}
"""The first token of each label in the published formats: "-" begins "-1", " NE" begins "NEI". The emotions have a
leading space there too, since few tokenizers know the bare words."""

PUBLISHED: dict[str, tuple[str, ...]] = {
    "emotion": (
        "Task: Say which emotion the text below conveys: anger, fear, joy or sadness. "
        "Tweet: {text} This tweet contains emotions: ",
        "Task: Name the one of anger, fear, joy and sadness that the author shows. "
        "Tweet: {text} This tweet contains emotions: ",
        "Task: Decide between anger, fear, joy and sadness for the writer of this text. "
        "Tweet: {text} This tweet contains emotions: ",
    ),
    "polarity": (
        "Task: Sort the text into one class of the author's mental state: 1: positive, 0: neutral, -1: negative. "
        "Text: {text} Intensity Class: ",
        "Task: Give the class that fits the feelings of the author, -1 for negative, 0 for neutral, 1 for positive. "
        "Text: {text} Intensity Class: ",
        "Task: Is the author in a positive (1), neutral (0) or negative (-1) state of mind? "
        "Text: {text} Intensity Class: ",
    ),
    "intensity": (
        "Task: Sort the text into one of four classes of how much {affect} its author feels: 0: no {affect}, "
        "1: low amount, 2: moderate amount, 3: high amount. Tweet: {text} Emotion E: {affect}. Intensity Class: ",
        "Task: Give the level of {affect} in the text, from 0 (none) over 1 (low) and 2 (moderate) to 3 (high). "
        "Tweet: {text} Emotion E: {affect}. Intensity Class: ",
        "Task: How strong is the emotion E in this text: 0 none, 1 low, 2 moderate or 3 high? "
        "Tweet: {text} Emotion E: {affect}. Intensity Class: ",
    ),
    "conspiracy": (
        "Task: Sort the text by its relation to conspiracy theories into one class: 0. Unrelated. 1. Related (but not "
        "supporting). 2. Conspiracy (related and supporting). Text: {text} Class: ",
        "Task: Does the text have nothing to do with a conspiracy theory (0. Unrelated.), speak of one (1. Related "
        "(but not supporting).) or support it (2. Conspiracy (related and supporting).)? Text: {text} Class: ",
        "Task: Choose the class of the text. The classes are 0. Unrelated. 1. Related (but not supporting). "
        "2. Conspiracy (related and supporting). Text: {text} Class: ",
    ),
    "claim": (
        "Task: Decide from the contextual information whether the claim is True, False or NEI (not enough "
        "information), and explain it. Answer in the form Prediction: [True, or False, or NEI] Explanation: [why] "
        "Claim: {text} \ncontextual information: {context}",
        "Task: Check the claim against the contextual information; say True, False, or NEI if it does not settle it, "
        "then explain. Format: Prediction: [True, or False, or NEI] Explanation: [why] "
        "Claim: {text} \ncontextual information: {context}",
        "Task: Is the claim True or False, or is the contextual information not enough (NEI)? Reply with Prediction: "
        "[True, or False, or NEI] Explanation: [why] Claim: {text} \ncontextual information: {context}",
    ),
}
"""By subset three wordings of the instruction: the order and the ends of the published prompts, in words of our own."""

ANSWER_OPENS = {"claim": "Prediction:"}
"""What the answer of a subset begins with before its label."""

_DIGIT = r"\s*(-?\d+)(?![.\d]*\d)"
PUBLISHED_LABELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "emotion": (
        r"\s*([a-z]+)",
        (
            "anger",
            "anticipation",
            "disgust",
            "fear",
            "joy",
            "love",
            "neutral",
            "optimism",
            "pessimism",
            "sadness",
            "surprise",
            "trust",
        ),
    ),
    "polarity": (_DIGIT, ("-1", "0", "1", "2", "3", "4")),
    "intensity": (_DIGIT, ("0", "1", "2", "3")),
    "conspiracy": (_DIGIT, ("0", "1", "2")),
    "claim": (r"\s*Prediction:\s*(\w+)", ("True", "False", "NEI")),
}
"""By subset how a label stands in a published answer, and the labels there are."""


@dataclass(frozen=True)
class Post:
    """One wording of a text; the other one of its pair has the same ``item``.

    Attributes:
        text, context: what is judged, and what it is judged by (claims alone).
        spans: by the name of the field, the words in which the two wordings differ.
        affect: the emotion asked about (intensity), or the tone of the text (conspiracy and claim).
        group: what is balanced against the label: the veracity or, where the label says that, the affect.
    """

    subset: str
    label: str
    text: str
    context: str
    spans: Mapping[str, tuple[Span, ...]]
    affect: str
    group: str
    item: str


@dataclass
class MisinformationAffect(Task):
    """``Label each post with anger, fear, joy or sadness.⏎... I am so angry that I threw mine out. Emotion:``

    Posts and claims, reliable and misleading, whose affect has nothing to do with their veracity: every label is
    equally frequent in both. The counterfactual exchanges the affect words of the query (the key words of a
    conspiracy theory or claim) for those that make the foil right. Emotion and polarity are asked unless others are
    asked for: SmolLM2-135M answers hardly any question about intensity, conspiracy or a claim together with its
    counterfactual, so these are for larger models.

    Demonstrations come from the query's split, never from the query's pair, and as many from each label. Few-shot
    frames are made of a line above and a form of the texts, and no line, form or frame of one split stands in the
    other. The other question asks, with the same texts and demonstrations labelled for it, for the veracity of a post
    (of a conspiracy theory or claim, for its tone), which the label says nothing about. SmolLM2-135M
    keeps a tenth of emotion's logit difference there, and all of polarity's: it prefers the word that the writer's
    judgment suggests whatever it is asked. The published form has a few
    wordings of its own, which both splits share, so it declares no frame and asks no other question.

    Attributes:
        form: "few_shot" (short), or "published" (the instruction formats of EmoLLMs, ConspEmoLLM and FMD in words of
            our own).
        shots: demonstrations of each label in a few-shot prompt.
        source: "own" (this project's texts), or a JSON-lines file, a folder, or a data set on the hub in the published
            format (see :mod:`attriboard.instructions`), whose questions are asked as they stand. They are all of one
            subset, which has to be chosen.
        counterfactual: "text", or "none". Published questions have no pairs: one is exchanged for a question with
            another answer and as many words, if the model finds them equally long. Long texts rarely are.
    """

    name: ClassVar[str] = "misinformation_affect"
    version: ClassVar[int] = 2
    description: ClassVar[str] = "Name what a post feels and how much, spot a conspiracy theory, judge a claim."
    paper: ClassVar[str] = "arXiv:2401.08508, arXiv:2403.06765, arXiv:2409.16452"
    labels: ClassVar[tuple[str, ...]] = tuple(word for words in FEW_SHOT_WORDS.values() for word in words)
    all_subsets: ClassVar[tuple[str, ...]] = tuple(LABELS)
    marks: ClassVar[tuple[str, ...]] = ("affect",)
    evidence: ClassVar[tuple[str, ...]] = ("affect",)
    scale_questions: ClassVar[Path | None] = Path(__file__).parent / "data" / "affect_regression.jsonl"

    form: str = "few_shot"
    shots: int = 1
    source: str = OWN
    counterfactual: str = "text"

    def __post_init__(self) -> None:
        self.subsets = tuple(self.subsets) or USUAL
        super().__post_init__()
        if self.form not in ("few_shot", "published"):
            raise ConfigurationError(f"form is {self.form!r}, expected 'few_shot' or 'published'.")
        if self.shots < 1:
            raise ConfigurationError(f"shots is {self.shots}, expected at least 1 demonstration of each label.")
        if self.counterfactual not in ("text", "none"):
            raise ConfigurationError(f"counterfactual is {self.counterfactual!r}, expected 'text' or 'none'.")
        if self.source != OWN and len(self.subsets) != 1:
            raise ConfigurationError(
                f"source {self.source!r} holds questions of one kind: choose one subset of "
                f"{', '.join(self.all_subsets)}."
            )
        words = [word for subset in self.subsets for word in self._words(subset)]
        self.labels = tuple(dict.fromkeys(words))  # type: ignore[misc]  # options decide

    @property
    def chance(self) -> float:
        """The mean over the subsets, each with labels of its own."""
        return fmean(1 / len(self._words(subset)) for subset in self.subsets)

    def _words(self, subset: str) -> tuple[str, ...]:
        """What a model can answer in a subset."""
        if self.source != OWN:
            return tuple(first_token(subset, label) for label in PUBLISHED_LABELS[subset][1])
        return (FEW_SHOT_WORDS if self.form == "few_shot" else PUBLISHED_WORDS)[subset]

    def candidates(self, subset: str, rng: random.Random) -> Iterator[Example]:
        for example in self._own(subset, rng) if self.source == OWN else self._published(subset, rng):
            yield replace(example, counterfactual=None) if self.counterfactual == "none" else example

    def _own(self, subset: str, rng: random.Random) -> Iterator[Example]:
        words = dict(zip(LABELS[subset], self._words(subset)))
        posts = [post for post in own_posts() if post.subset == subset]
        pools = {
            split: {
                label: [post for post in posts if split_of(post.item) == split and post.label == label]
                for label in words
            }
            for split in SPLITS
        }
        decks = {split: _deck([post for post in posts if split_of(post.item) == split], rng) for split in SPLITS}
        frame_decks = {split: _rounds(frames_of(subset, split), rng) for split in SPLITS}
        while True:
            split = rng.choice(SPLITS)
            pool = pools[split]
            query, other = next(decks[split])
            label = query.label
            if self.form == "published":
                number = rng.randrange(len(PUBLISHED[subset]))
                wordings = [*PUBLISHED[subset][number:], *PUBLISHED[subset][:number]]
                written = [_published_prompt(wording, query, other) for wording in wordings]
                frame, shown, other_question = "", [], None
            else:
                own = next(frame_decks[split])
                others = [frame for frame in frames_of(subset, split) if frame != own]
                frames = [own, *rng.sample(others, PARAPHRASES)]
                shown, *shown_too = [self._shown(query, pool, rng) for _ in frames]
                written = [
                    _few_shot(frame, [(post, words[post.label]) for post in posts_shown], query, other)
                    for frame, posts_shown in zip(frames, (shown, *shown_too))
                ]
                frame = "".join(frames[0])
                about = "tone of a claim" if subset == "claim" else "tone" if subset == "conspiracy" else "veracity"
                grouped = [(post, f" {post.group}") for post in shown]
                other_question = _few_shot(OTHER_FRAMES[about], grouped, query, other)[0]
            prompt, counterfactual, spans = written[0]
            yield Example(
                prompt=prompt,
                answer=words[label],
                foil=words[other.label],
                counterfactual=counterfactual,
                marks={"affect": spans},
                item=query.item,
                frame=frame,
                demonstrations=tuple(post.item for post in shown),
                subset=subset,
                paraphrases=tuple(paraphrase for paraphrase, _, _ in written[1:]),
                other_question=other_question,
            )

    def _shown(self, query: Post, pool: Mapping[str, Sequence[Post]], rng: random.Random) -> list[Post]:
        """The demonstrations: as many of each label, mixed, no two of one pair.

        Raises:
            TaskError: the split has too few texts of a label.
        """
        wanted = [label for label in pool for _ in range(self.shots)]
        rng.shuffle(wanted)
        shown: list[Post] = []
        for label in wanted:
            used = {query.item, *(post.item for post in shown)}
            left = [post for post in pool[label] if post.item not in used]
            if not left:
                raise TaskError(
                    f"subset {query.subset!r} has too few {split_of(query.item)} texts for {self.shots} demonstrations "
                    f"of each label; lower shots."
                )
            shown.append(rng.choice(left))
        return shown

    def _published(self, subset: str, rng: random.Random) -> Iterator[Example]:
        questions = published_questions(self.source, subset)
        occurring = sorted({answer for question in questions for answer in question.answers})
        if len(occurring) < 2:
            raise TaskError(f"all questions of {self.source} have the same answer; there is no foil.")
        for question in rng.sample(questions, len(questions)):
            others = [q for q in questions if q.answers[0] not in question.answers]
            alike = [q for q in others if q.length == question.length]
            for other in rng.sample(alike or others, min(PARTNERS, len(alike or others))):
                yield Example(
                    prompt=question.prompt,
                    answer=question.answers[0],
                    foil=other.answers[0],
                    counterfactual=other.prompt,
                    item=question.prompt,
                    subset=subset,
                )


T = TypeVar("T")


def _rounds(things: Sequence[T], rng: random.Random) -> Iterator[T]:
    """All things in random order, again and again, so that none comes twice before all have come."""
    while True:
        yield from rng.sample(things, len(things))


def _deck(posts: Sequence[Post], rng: random.Random) -> Iterator[tuple[Post, Post]]:
    """The pairs in random order, again and again: the wording asked about and the other one, in turn."""
    by_item: dict[str, list[Post]] = {}
    for post in posts:
        by_item.setdefault(post.item, []).append(post)
    turned = {item: rng.random() < 0.5 for item in by_item}
    for item in _rounds(list(by_item), rng):
        one, two = by_item[item]
        yield (two, one) if turned[item] else (one, two)
        turned[item] = not turned[item]


Written = tuple[str, str, tuple[Span, ...]]
"""A prompt, the same with the query's other wording, and where its affect words stand."""


def _few_shot(frame: tuple[str, str], shown: Sequence[tuple[Post, str]], query: Post, other: Post) -> Written:
    head, form = frame
    lines = [f"{fill(form, post)[0]}{word}\n" for post, word in shown]
    return _around(head + "".join(lines), form, "", query, other)


def _published_prompt(wording: str, query: Post, other: Post) -> Written:
    before, after = chat("{}").split("{}")
    return _around(before, wording, after + ANSWER_OPENS.get(query.subset, ""), query, other)


def _around(before: str, form: str, after: str, query: Post, other: Post) -> Written:
    asked, spans = fill(form, query)
    spans = tuple((len(before) + start, len(before) + end) for start, end in spans)
    return before + asked + after, before + fill(form, other)[0] + after, spans


@functools.cache
def frames_of(subset: str, split: str) -> list[tuple[str, str]]:
    """The line above and the form of the texts of every few-shot frame of a split.

    Lines and forms belong to the splits in turn, as they stand in the lists.
    """
    heads, forms = (parts[subset][SPLITS.index(split) :: len(SPLITS)] for parts in (HEADS, FORMS))
    return [(head, form) for head in heads for form in forms if split_of_frame(head + form) == split]


def first_token(subset: str, label: str) -> str:
    """The beginning of a published label that is one token and no other label's."""
    if subset == "emotion":
        return f" {label}"
    if subset == "claim":
        return f" {'NE' if label == 'NEI' else label}"
    return "-" if label == "-1" else label


def fill(frame: str, post: Post) -> tuple[str, tuple[Span, ...]]:
    """The frame with the post in it, and where its affect words stand."""
    text = ""
    spans: list[Span] = []
    for literal, field, _, _ in string.Formatter().parse(frame):
        text += literal
        if field is not None:
            spans += [(len(text) + start, len(text) + end) for start, end in post.spans.get(field, ())]
            text += getattr(post, field)
    return text, tuple(spans)


SLOT = re.compile(r"\{([^|}]*)\|([^|}]*)\}")
"""Two wordings of one place: ``{angry|happy}``."""


def wording(template: str, side: int) -> tuple[str, tuple[Span, ...]]:
    """A template with the wording of one side (0 or 1) in every slot, and where these stand."""
    text = ""
    end = 0
    spans: list[Span] = []
    for slot in SLOT.finditer(template):
        text += template[end : slot.start()]
        spans.append((len(text), len(text) + len(slot[side + 1])))
        text += slot[side + 1]
        end = slot.end()
    return text + template[end:], tuple(spans)


@functools.cache
def own_posts() -> tuple[Post, ...]:
    """The texts in ``data/affect_posts.tsv``, in pairs; see the README beside it."""
    table = files("attriboard.tasks.data").joinpath("affect_posts.tsv").read_text(encoding="utf-8")
    posts: list[Post] = []
    for row in csv.DictReader(io.StringIO(table), delimiter="\t", quoting=csv.QUOTE_NONE):
        for side, label in enumerate((row["label"], row["other"])):
            text, in_text = wording(row["text"], side)
            context, in_context = wording(row["context"], side)
            posts.append(
                Post(
                    subset=row["subset"],
                    label=label,
                    text=text,
                    context=context,
                    spans={"text": in_text, "context": in_context},
                    affect=row["affect"],
                    group=row["veracity"] or row["affect"],
                    item=f"{row['context']} {row['text']}".strip(),
                )
            )
    return tuple(posts)


@dataclass(frozen=True)
class Question:
    """A published question: its prompt, its answers (the first is the one asked for) and how many words it has."""

    prompt: str
    answers: tuple[str, ...]
    length: int


def published_questions(source: str, subset: str) -> list[Question]:
    """The questions of a source.

    Raises:
        TaskError: the source cannot be read, or an output is none of the subset's labels.
    """
    return [
        Question(
            prompt=chat(item.text) + ANSWER_OPENS.get(subset, ""),
            answers=tuple(first_token(subset, label) for label in published_labels(item, subset)),
            length=len(item.text.split()),
        )
        for item in read_instructions(source)
    ]


def published_labels(item: Instruction, subset: str) -> list[str]:
    """The labels in a published output; several where a text has several emotions.

    Raises:
        TaskError: one of them is not among the subset's labels.
    """
    form, known = PUBLISHED_LABELS[subset]
    labels = []
    for part in item.output.split(",") if subset == "emotion" else [item.output]:
        match = re.match(form, part)
        if match is None or match[1] not in known:
            raise TaskError(
                f"{item.place} has the label {part.strip()[:40]!r}, which is none of {', '.join(known)} "
                f"(subset {subset!r})."
            )
        labels.append(match[1])
    return labels
