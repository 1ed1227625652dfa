"""Which word comes next in the model's own caption of a picture?"""

from __future__ import annotations

import csv
import functools
import io
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from PIL.Image import Image

from attriboard.errors import ConfigurationError, ExampleError, TaskError
from attriboard.images import as_rgb, check_size, open_image
from attriboard.instructions import open_dataset
from attriboard.levels import LEVELS
from attriboard.task import Example, Task, split_of
from attriboard.zoo.language import CAPTION
from attriboard.zoo.scenes import COLORS, HELD_OUT, KINDS, Scene, random_scene

from .color_vqa import regions

COUNTERFACTUALS = ("replaced", "removed")
NOUNS_PER_PHOTO = 2
CAPTION_COLUMNS = ("caption", "captions", "text")
NO_THING = frozenset({
    "back", "background", "bottom", "bunch", "close", "couple", "front", "group", "image", "kind", "lot", "middle",
    "pair", "photo", "photograph", "picture", "side", "top", "type", "variety", "view", "way",
})  # fmt: skip
"""Nouns of captions that name nothing one could point at ("on top of", "a group of")."""


@dataclass(frozen=True)
class Photo:
    """A picture with captions by people; it is opened when it is needed."""

    name: str
    captions: tuple[str, ...]
    open: Callable[[], Image]


@dataclass(frozen=True, kw_only=True)
class SceneCandidate(Example):
    """A drawn picture to be captioned, and the thing its example will be about."""

    scene: Scene
    asked: int


@dataclass(frozen=True, kw_only=True)
class PhotoCandidate(Example):
    """A picture of a data set to be captioned: the one at ``place`` among all."""

    place: int


@dataclass
class CaptioningNeurons(Task):
    """``<image>`` ... ``An image of a red circle and a blue`` asks for `` star``, if the model wrote so far itself.

    The model captions each picture first (greedily). An example is about one word of what it wrote: its prompt ends
    right before that word, and its answer is the word that is true there, so a model that wrote another one is seen
    and not answering correctly.

    *Drawn pictures* (the default). A caption names things from left to right as "a COLOR KIND"; what comes after the
    first full stop or line break is not read. The i-th phrase of the form "a WORD WORD" ("an" too) is about the i-th
    thing, its first word in the place of the color and its second in that of the kind, whatever words they are. It is
    read up to the first word that is not the true one: that word still has an example, nothing after it has, because
    what would be right there is no longer certain. A thing that the caption does not reach has none; phrases beyond
    the last thing are not read.

    Every picture gives at most one example: of one of its things, drawn uniformly, the kind (subset ``kind``) or the
    color (``color``). No (color, kind) pair of one split is asked for in the other.

    *Pictures of a data set* (``data``). Examples are about nouns in the first sentence of the model's caption that a
    reference caption of that picture has too (in singular or plural); other nouns may be wrong or not, so they are
    left out, as are nouns that name no thing ("top", "group"). A picture gives at most two, the first ones, each where
    it first stands; the split goes by picture. The counterfactual is the next picture of the split, in the order
    of the data set, no caption of which has the noun. There is one subset, ``noun``, no foil and no region.

    Attributes:
        counterfactual: of drawn pictures. "replaced": the thing is of another kind (or color) that no thing in the
            picture has, which is the foil; "removed": the thing is not there, and log p(answer) is explained, as
            there is no foil.
        data: "" (drawn pictures); a folder with pictures and ``metadata.jsonl`` or ``metadata.csv`` (``file_name`` and
            ``text``); COCO's captions file, or the folder it is in, with the pictures beside it; a folder of a data
            set saved by ``datasets``; or one on the hub, as ``owner/name`` (columns ``image`` and ``caption``,
            ``captions`` or ``text``).
    """

    name: ClassVar[str] = "captioning_neurons"
    version: ClassVar[int] = 1
    description: ClassVar[str] = "Caption a picture; each example is about one word of the model's own caption."
    paper: ClassVar[str] = "arXiv:2311.07470"
    all_subsets: ClassVar[tuple[str, ...]] = ("kind", "color")
    regions: ClassVar[tuple[str, ...]] = ("object", "other", "background")
    evidence: ClassVar[tuple[str, ...]] = ("object",)
    distractors: ClassVar[tuple[str, ...]] = ("other",)
    levels: ClassVar[tuple[str, ...]] = tuple(LEVELS)
    modality: ClassVar[str] = "vision"
    writes: ClassVar[int] = 32

    counterfactual: str = "replaced"
    data: str = ""

    def __post_init__(self) -> None:
        if self.counterfactual not in COUNTERFACTUALS:
            raise ConfigurationError(f"counterfactual is {self.counterfactual!r}, expected 'replaced' or 'removed'.")
        if not isinstance(self.data, str):
            raise ConfigurationError(f"data is {self.data!r}, expected a folder, a file or a name, or '' for none.")
        if self.data:
            if self.counterfactual != "replaced":
                raise ConfigurationError(
                    f"counterfactual is {self.counterfactual!r}, which only drawn pictures have: leave it out, as data "
                    f"is {self.data!r}."
                )
            self.declare(all_subsets=("noun",), regions=())
        super().__post_init__()

    def candidates(self, subset: str, rng: random.Random) -> Iterator[Example]:
        return self._photographed(rng) if self.data else self._drawn(subset, rng)

    def targets(self, candidate: Example, written: str) -> Iterator[Example]:
        if isinstance(candidate, SceneCandidate):
            thing = candidate.scene.things[candidate.asked]
            truth = [(t.color, t.kind) for t in candidate.scene.left_to_right]
            for about, slot, start in read(written, truth):
                if truth[about] == (thing.color, thing.kind) and slot == candidate.subset:
                    yield self._target(candidate, written, start, candidate.concept)
        elif isinstance(candidate, PhotoCandidate):
            photos = photos_of(self.data)
            for word, lemma, start in nouns_shown(written, photos[candidate.place])[:NOUNS_PER_PHOTO]:
                other = photo_without(lemma, photos, candidate.place)
                if other is not None:
                    yield replace(
                        self._target(candidate, written, start, word), concept=lemma, counterfactual_image=other.open()
                    )

    def _target(self, candidate: Example, written: str, start: int, word: str) -> Example:
        """The example about the word of ``written`` that starts at ``start``, a space before it."""
        return replace(candidate, prompt=candidate.prompt + written[: start - 1], answer=f" {word}")

    def _drawn(self, subset: str, rng: random.Random) -> Iterator[Example]:
        while True:
            scene = random_scene(rng, rng.randint(1, 3))
            asked = rng.randrange(len(scene.things))
            thing = scene.things[asked]
            if subset == "kind":
                kinds = {t.kind for t in scene.things}
                foil = rng.choice([k for k in KINDS if k not in kinds and (thing.color, k) not in HELD_OUT])
                other = scene.replaced(asked, foil, thing.color)
            else:
                colors = {t.color for t in scene.things}
                foil = rng.choice([c for c in COLORS if c not in colors and (c, thing.kind) not in HELD_OUT])
                other = scene.recolored(asked, foil)
            removed = self.counterfactual == "removed"
            yield SceneCandidate(
                prompt=CAPTION,
                answer="",
                foil=None if removed else f" {foil}",
                item=f"{thing.color} {thing.kind}",
                subset=subset,
                image=scene.draw(),
                counterfactual_image=(scene.without(asked) if removed else other).draw(),
                regions=regions(scene, asked),
                concept=thing.kind if subset == "kind" else thing.color,
                scene=scene,
                asked=asked,
            )

    def _photographed(self, rng: random.Random) -> Iterator[Example]:
        photos = photos_of(self.data)
        tagger()  # before the model has written anything
        for place in rng.sample(range(len(photos)), len(photos)):
            photo = photos[place]
            yield PhotoCandidate(
                prompt=CAPTION, answer="", item=photo.name, subset="noun", image=photo.open(), place=place
            )


# Captions of drawn pictures


def read(written: str, truth: list[tuple[str, str]]) -> list[tuple[int, str, int]]:
    """Which of a caption's words are about which thing; the class tells how.

    Args:
        truth: color and kind of each thing, from left to right.

    Returns:
        For each word: the thing's place in ``truth``, "color" or "kind", and where the word starts.
    """
    places: list[tuple[int, str, int]] = []
    phrases = re.finditer(r"\ban? (\w+)(?: (\w+))?", first_sentence(written))
    for i, (pair, phrase) in enumerate(zip(truth, phrases)):
        for group, slot in ((1, "color"), (2, "kind")):
            word = phrase[group]
            if word is None:
                return places
            places.append((i, slot, phrase.start(group)))
            if word != pair[group - 1]:
                return places
    return places


def first_sentence(written: str) -> str:
    return re.split(r"[.\n]", written, maxsplit=1)[0]


# Captions of pictures of a data set


def nouns_shown(written: str, photo: Photo) -> list[tuple[str, str, int]]:
    """The nouns of a caption that the picture's own captions have too: word, lemma, and where it first starts."""
    caption_words = words_of(photo.captions)
    nouns: dict[str, tuple[str, str, int]] = {}
    for word, lemma, tag, start in tagged(first_sentence(written)):
        if (
            tag.startswith("NN")
            and lemma in caption_words
            and lemma not in NO_THING
            and written[start - 1 : start] == " "
        ):
            nouns.setdefault(lemma, (word, lemma, start))
    return list(nouns.values())


def photo_without(lemma: str, photos: tuple[Photo, ...], place: int) -> Photo | None:
    """The next picture of the same split whose captions lack a word, starting over after the last one."""
    split = split_of(photos[place].name)
    for photo in (*photos[place + 1 :], *photos[:place]):
        if split_of(photo.name) == split and lemma not in words_of(photo.captions):
            return photo
    return None


@functools.lru_cache(maxsize=65536)
def words_of(captions: tuple[str, ...]) -> frozenset[str]:
    """Every word of some captions, as written and as its lemma."""
    entries = [entry for caption in captions for entry in tagged(caption)]
    return frozenset(word.lower() for word, *_ in entries) | frozenset(lemma for _, lemma, *_ in entries)


def tagged(text: str) -> list[tuple[str, str, str, int]]:
    """Each word of a text: as written, its lemma in small letters, its tag (of the BNC's set C5), where it starts."""
    words = list(re.finditer(r"[^\W\d_]+", text))
    tags = tagger()([word[0] for word in words]) if words else []
    return [(word[0], lemma.lower(), tag, word.start()) for word, (_, lemma, tag) in zip(words, tags)]


@functools.cache
def tagger() -> Callable[[list[str]], list[tuple[str, str, str]]]:
    """HanTa's English tagger, whose model is part of the package.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        from HanTa.HanoverTagger import HanoverTagger
    except ImportError as error:
        raise ConfigurationError(
            "captions of a data set need the tagger HanTa to find their nouns; type: pip install 'attriboard[captions]'"
        ) from error
    tag: Callable[[list[str]], list[tuple[str, str, str]]] = HanoverTagger("morphmodel_en.pgz").tag_sent
    return tag


@functools.cache
def photos_of(data: str) -> tuple[Photo, ...]:
    """The pictures that ``data`` names, in its own order.

    Raises:
        ConfigurationError: it names nothing that could be read.
        TaskError: what it names cannot be read, or lacks pictures or captions.
    """
    path = Path(data).expanduser()
    if path.is_file():
        photos = from_coco(path)
    elif path.is_dir():
        photos = from_folder(path)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", data) and not data.startswith("."):
        photos = from_datasets(data)
    else:
        raise ConfigurationError(
            f"data is {data!r}, expected '' (drawn pictures), a folder of pictures with captions, a COCO captions "
            "file, or a data set on the hub as owner/name."
        )
    if not photos:
        raise TaskError(f"data {data!r} has no picture with a caption.")
    return tuple(photos)


def from_folder(folder: Path) -> list[Photo]:
    """A folder of pictures with ``metadata.jsonl`` or ``metadata.csv``, with COCO's captions, or saved by datasets."""
    for name in ("metadata.jsonl", "metadata.csv"):
        if (folder / name).exists():
            return from_metadata(folder / name)
    files = [
        file
        for place in (folder, folder / "annotations")
        for file in sorted(place.glob("*.json"))
        if file.name not in ("dataset_info.json", "dataset_dict.json", "state.json")
    ]
    files = [file for file in files if file.name.startswith("captions")] or files
    if len(files) > 1:
        names = ", ".join(str(file.relative_to(folder)) for file in files)
        raise TaskError(f"the folder {str(folder)!r} has several captions files ({names}): name one as data=PATH.")
    return from_coco(files[0]) if files else from_datasets(str(folder))


def from_metadata(file: Path) -> list[Photo]:
    """Hugging Face's folder of pictures: one line for each caption."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        rows: list[Any]
        if file.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise TaskError(f"{file} cannot be read ({_first_line(error)}).") from error
    captions: dict[str, list[str]] = {}
    for number, row in enumerate(rows, 1):
        keys = [key for key in CAPTION_COLUMNS if isinstance(row, Mapping) and row.get(key)]
        if not keys or not row.get("file_name"):
            raise TaskError(f"entry {number} of {file} lacks file_name or text.")
        captions.setdefault(str(row["file_name"]), []).extend(_texts(row[keys[0]]))
    return [
        Photo(name, tuple(texts), functools.partial(open_image, file.parent / name))
        for name, texts in captions.items()
        if texts
    ]


def from_coco(file: Path) -> list[Photo]:
    """COCO's captions file; its pictures are in the file's folder, in the one above ``annotations``, or one below."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        captions: dict[str, list[str]] = {}
        for annotation in content["annotations"]:
            captions.setdefault(names[annotation["image_id"]], []).extend(_texts(annotation["caption"]))
    except (KeyError, TypeError) as error:
        raise TaskError(
            f"{file} is no COCO captions file: it needs 'images' with id and file_name, and 'annotations' with "
            f"image_id and caption ({_first_line(error)})."
        ) from error
    except (OSError, ValueError) as error:
        raise TaskError(f"{file} cannot be read ({_first_line(error)}).") from error
    root = file.parent.parent if file.parent.name == "annotations" else file.parent
    places = [root, *sorted(place for place in root.iterdir() if place.is_dir())]

    def place_of(name: str) -> Path:
        return next((place / name for place in places if (place / name).exists()), root / name)

    return [
        Photo(name, tuple(texts), functools.partial(open_image, place_of(name)))
        for name, texts in captions.items()
        if texts
    ]


def from_datasets(source: str) -> list[Photo]:
    """What ``datasets`` makes of a name on the hub, of a folder of its files, or of a folder it saved itself.

    Of several parts the validation part is taken, else the test part, else the first.
    """
    dataset = opened(source)
    parts = dataset if isinstance(dataset, dict) else {"": dataset}
    part = next(parts[name] for name in ("validation", "test", *parts) if name in parts)
    column = next((name for name in CAPTION_COLUMNS if name in part.column_names), None)
    if column is None or "image" not in part.column_names:
        raise TaskError(
            f"data {source!r} has the columns {', '.join(part.column_names)}; it needs 'image' and one of "
            f"{', '.join(repr(name) for name in CAPTION_COLUMNS)}."
        )
    return [
        Photo(f"{row}", texts, functools.partial(open_row, part, row, source))
        for row, texts in enumerate(tuple(_texts(entry)) for entry in part[column])
        if texts
    ]


def opened(source: str) -> Any:
    """The data set at ``source``.

    Raises:
        TaskError: neither the hub nor such a folder can be read.
    """
    try:
        return open_dataset(source)
    except Exception as error:  # the hub, its client and the file readers each raise their own kinds
        reason = f"{type(error).__name__}: {_first_line(error)}"
        if Path(source).expanduser().is_dir():
            raise TaskError(f"the folder {source!r} cannot be read as pictures with captions ({reason}).") from error
        raise TaskError(
            f"data {source!r} cannot be reached ({reason}): download it and give its folder as data=PATH."
        ) from error


def open_row(part: Any, row: int, source: str) -> Image:
    """The picture in one row of a data set, decoded by ``datasets`` or named by its path.

    Raises:
        ExampleError: it cannot be opened.
    """
    name = f"in row {row} of {source!r}"
    try:
        image = part[row]["image"]
    except Exception as error:  # whatever the decoder raises
        raise ExampleError(f"the image {name} cannot be read ({_first_line(error)}).") from error
    if isinstance(image, str):
        return open_image(image)
    if not isinstance(image, Image):
        raise ExampleError(f"the image {name} is {type(image).__name__}, expected a picture or the path of one.")
    check_size(image.size, name)
    return as_rgb(image)


def _texts(entry: Any) -> list[str]:
    """One caption or several as a list, without empty ones."""
    entries = entry if isinstance(entry, list | tuple) else [entry]
    return [text.strip() for text in entries if isinstance(text, str) and text.strip()]


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else "no message"
