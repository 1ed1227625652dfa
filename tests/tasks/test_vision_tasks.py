"""The tasks with pictures, and the twin of one in words: what they promise, checked without a model.

Long because three tasks share the pictures and captions that it makes.
"""

from __future__ import annotations

import csv
import importlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attriboard.errors import AttriboardError, ConfigurationError, ExampleError, TaskError, UnknownNameError
from attriboard.task import Example, split_of, tasks
from attriboard.zoo import scenes
from attriboard.zoo.scenes import COLORS, HELD_OUT, KINDS

CAPTION = "USER: <image>\nDescribe the image in few words.\nASSISTANT: An image of"
Write = Callable[[Example, int], str]

color_vqa = importlib.import_module("attriboard.tasks.color_vqa")
captioning = importlib.import_module("attriboard.tasks.captioning_neurons")
SUBSETS = tasks.get("color_vqa").all_subsets
FOILS = [("absent_color", subset) for subset in SUBSETS] + [("other_object", subset) for subset in SUBSETS[1:]]
each_foil = pytest.mark.parametrize(("foil", "subset"), FOILS)
each_subset = pytest.mark.parametrize("subset", SUBSETS)
each_word = pytest.mark.parametrize("subset", ["kind", "color"])


def fits(example: Example) -> str | None:
    return None


def draw(
    name: str,
    subset: str,
    n: int = 40,
    split: str = "test",
    seed: int = 0,
    write: Write | None = None,
    **options: Any,
) -> list[Example]:
    return tasks.make(name, {"subsets": (subset,), **options}).examples(split, n, seed, fits, write)


def marked(example: Example, mark: str) -> list[str]:
    return [example.prompt[start:end] for start, end in example.marks.get(mark, ())]


def pixels(image: Image.Image | None) -> np.ndarray:
    assert image is not None and image.mode == "RGB"
    return np.asarray(image)


def changed(example: Example) -> np.ndarray:
    """The pixels in which the counterfactual picture differs."""
    return (pixels(example.image) != pixels(example.counterfactual_image)).any(axis=-1)


def check_regions(example: Example, names: set[str]) -> None:
    assert set(example.regions) == names
    height, width, _ = pixels(example.image).shape
    for mask in example.regions.values():
        assert mask.dtype == bool and mask.shape == (height, width) and mask.any()
    assert (np.sum(list(example.regions.values()), axis=0) == 1).all()


# Colors of objects, seen and told


def colors_of(example: Example) -> list[str]:
    """What a picture in words calls the colors, from left to right."""
    spans = sorted([*example.marks["color"], *example.marks.get("other_color", ())])
    return [example.prompt[start:end] for start, end in spans]


@each_subset
def test_with_an_absent_color_the_asked_object_alone_changes(subset: str) -> None:
    for example in draw("color_vqa", subset, foil="absent_color"):
        difference = changed(example)
        assert difference.any() and not (difference & ~example.regions["object"]).any()
        assert difference.sum() > 0.95 * example.regions["object"].sum()  # but for pixels that it barely touches
        assert example.counterfactual is None and example.has_counterfactual


@pytest.mark.parametrize("subset", SUBSETS[1:])
def test_two_objects_exchange_their_colors(subset: str) -> None:
    for seen, told in zip(draw("color_vqa", subset), draw("color_tqa_scenes", subset)):
        difference, objects = changed(seen), seen.regions["object"] | seen.regions["other"]
        assert not (difference & ~objects).any()
        assert (difference & seen.regions["object"]).sum() > 0.95 * seen.regions["object"].sum()
        assert (difference & seen.regions["other"]).any()
        first, second = told.answer.strip(), (told.foil or "").strip()
        exchange = {first: second, second: first}
        words = told.prompt.split("\n")[0]
        expected = " ".join(exchange.get(word, word) for word in words.split(" "))
        assert (told.counterfactual or "").split("\n")[0] == expected
        assert sorted(re.findall(r"\w+", told.counterfactual or "")) == sorted(re.findall(r"\w+", told.prompt))


@each_foil
def test_the_other_question_is_about_something_else_in_the_same_scene(foil: str, subset: str) -> None:
    for seen, told in zip(*(draw(name, subset, foil=foil) for name in ("color_vqa", "color_tqa_scenes"))):
        shown, asked = (told.other_question or "").split("\n", 1)
        assert shown == told.prompt.split("\n")[0] and asked == (seen.other_question or "").split("\n", 1)[1]
        (kind,) = set(re.findall(r"the color of the (\w+)", asked))
        colored = {k: c for c, k in re.findall(r"\ba (\w+) (\w+)", shown)}
        assert kind in KINDS and kind != told.item.split()[1]
        assert (kind in colored) == (len(colored) > 1)
        if foil == "other_object":
            assert colored[kind] == (told.foil or "").strip()
        else:
            assert (told.foil or "").strip() not in colored.values()


@each_foil
def test_seen_answers_foils_marks_and_regions(foil: str, subset: str) -> None:
    for seen, told in zip(*(draw(name, subset, foil=foil) for name in ("color_vqa", "color_tqa_scenes"))):
        color, kind = seen.item.split()
        colors = [*marked(told, "color"), *marked(told, "other_color")]
        n = len(colors)
        assert seen.prompt == (
            f"USER: <image>\nWhat is the color of the {kind}?\nASSISTANT: The color of the {kind} is"
        )
        assert seen.answer == f" {color}" and marked(seen, "object") == [kind, kind]
        assert seen.subset == subset
        assert (seen.foil or "").strip() in (set(COLORS) - set(colors) if foil == "absent_color" else set(colors[1:]))
        assert n in {"one_object": {1}, "two_objects": {2}, "three_objects": {3}}.get(subset, {1, 2, 3})
        check_regions(seen, {"object", "background", "other"} if n > 1 else {"object", "background"})
        core = np.bincount(np.ravel_multi_index(pixels(seen.image)[seen.regions["object"]].T, (256, 256, 256))).argmax()
        assert np.unravel_index(core, (256, 256, 256)) == scenes.RGB[color]


@each_subset
def test_told_says_the_same(subset: str) -> None:
    for example in draw("color_tqa_scenes", subset, foil="absent_color"):
        color, kind = example.item.split()
        statement, question = example.prompt.split("\n", 1)
        assert statement.startswith("USER: There is a ") and statement.endswith(".")
        assert question == f"What is the color of the {kind}?\nASSISTANT: The color of the {kind} is"
        assert f"a {color} {kind}" in statement
        assert marked(example, "color") == [color] and marked(example, "object") == [kind] * 3
        start, end = example.marks["color"][0]
        assert example.counterfactual == example.prompt[:start] + (example.foil or "").strip() + example.prompt[end:]
        assert example.image is None and not example.regions
        assert color not in marked(example, "other_color")


def test_told_reads_as_english() -> None:
    back = scenes.Background("plain", (90, 90, 90), (90, 90, 90), 0.0, 10.0, 0)
    things = (
        scenes.Thing("moon", "gray", 90.0, 20.0, 32.0),
        scenes.Thing("circle", "red", 20.0, 90.0, 32.0),
        scenes.Thing("star", "blue", 55.0, 20.0, 32.0),
    )
    task = tasks.make("color_tqa_scenes")
    drawn = [color_vqa.Question(scenes.Scene(things[:n], back), 0, "black", "cup", False) for n in (1, 2, 3)]
    assert [task.ask(question, "").prompt for question in drawn] == [  # type: ignore[attr-defined]
        f"USER: {told}\nWhat is the color of the moon?\nASSISTANT: The color of the moon is"
        for told in (
            "There is a gray moon.",
            "There is a red circle and a gray moon.",
            "There is a red circle, a blue star and a gray moon.",
        )
    ]


@each_foil
def test_same_seed_same_twins(foil: str, subset: str) -> None:
    seen, told = (draw(name, subset, 60, "train", 3, foil=foil) for name in ("color_vqa", "color_tqa_scenes"))
    assert [e.twin for e in seen] == [e.twin for e in told]
    assert [(e.answer, e.foil, e.item) for e in seen] == [(e.answer, e.foil, e.item) for e in told]
    assert len({e.twin for e in seen}) == len({(e.prompt, e.counterfactual) for e in told}) == 60


def test_twins_can_be_matched_where_one_model_refuses_some() -> None:
    seen = tasks.make("color_vqa").examples("test", 40, 0)
    picky = tasks.make("color_tqa_scenes").examples("test", 40, 0, lambda e: "no" if "red" in e.prompt else None)
    by_twin = {e.twin: e for e in seen}
    matched = [(by_twin[e.twin], e) for e in picky if e.twin in by_twin]
    assert len(matched) >= 20
    assert all((a.answer, a.foil, a.subset) == (b.answer, b.foil, b.subset) for a, b in matched)


@each_foil
def test_splits_share_no_pair_and_held_out_is_respected(foil: str, subset: str) -> None:
    pairs = {
        split: {tuple(e.item.split()) for e in draw("color_tqa_scenes", subset, 60, split, foil=foil)}
        for split in ("train", "test")
    }
    assert not pairs["train"] & pairs["test"]
    assert len(pairs["train"]) >= 5 and len(pairs["test"]) >= 5
    for color, kind in pairs["train"] | pairs["test"]:
        assert ((color, kind) in HELD_OUT) == (subset == "held_out")

    def stated(split: str) -> set[tuple[str, ...]]:
        told = draw("color_tqa_scenes", subset, 60, split, foil=foil)
        return {
            pair
            for e in told
            for text in (e.prompt, e.counterfactual)
            for pair in re.findall(r"\ba (\w+) (\w+)", text or "")
        }

    assert stated("train") and not stated("train") & stated("test")
    for example in draw("color_tqa_scenes", subset, 60, foil=foil):
        for text, allowed in ((example.prompt, subset == "held_out"), (example.counterfactual or "", False)):
            words = text.split("\n")[0].replace(",", "").replace(".", "").split()
            found = {pair for pair in pairwise(words) if pair in HELD_OUT}
            assert found == ({tuple(example.item.split())} if allowed else set())


def test_neither_order_nor_place_gives_the_asked_object_away() -> None:
    for subset in ("three_objects", "held_out"):
        places: Counter[int] = Counter()
        for example in draw("color_tqa_scenes", subset, 240, "train"):
            colors = colors_of(example)
            if len(colors) == 3:
                places[colors.index(example.answer.strip())] += 1
        total = sum(places.values())
        assert all(0.2 * total < places[i] < 0.47 * total for i in range(3)), places


def test_same_seed_same_pictures() -> None:
    first, again = draw("color_vqa", "two_objects", 12), draw("color_vqa", "two_objects", 5)
    for a, b in zip(first, again):
        assert a.key == b.key and (pixels(a.image) == pixels(b.image)).all()
    assert {e.key for e in first}.isdisjoint({e.key for e in draw("color_vqa", "two_objects", 12, seed=1)})


def test_color_vqa_refuses() -> None:
    with pytest.raises(ConfigurationError, match=r"foil is 'near', expected 'other_object' or 'absent_color'\.$"):
        tasks.make("color_vqa", {"foil": "near"})
    with pytest.raises(ConfigurationError, match="does not have: leave out that subset, or set foil='absent_color'"):
        tasks.make("color_tqa_scenes", {"foil": "other_object", "subsets": ("one_object",)})
    with pytest.raises(UnknownNameError, match="did you mean 'two_objects'"):
        tasks.make("color_vqa", {"subsets": ("two_object",)})
    assert tasks.make("color_vqa").subsets == SUBSETS[1:]
    assert tasks.make("color_vqa", {"foil": "absent_color"}).subsets == SUBSETS


def test_asking_for_more_than_there_is_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(color_vqa, "REPEATS", 20)
    with pytest.raises(TaskError, match="its candidates ran out"):
        draw("color_tqa_scenes", "one_object", 2000, foil="absent_color")


# Captions of drawn pictures


def told(things: list[tuple[str, str]]) -> str:
    *first, last = [f"a {color} {kind}" for color, kind in things]
    return f" {', '.join(first)} and {last}." if first else f" {last}."


def truth(candidate: Any) -> list[tuple[str, str]]:
    return [(thing.color, thing.kind) for thing in candidate.scene.left_to_right]


def right(candidate: Example, limit: int) -> str:
    """A model that captions as it should."""
    assert limit >= 20 and candidate.prompt == CAPTION and candidate.answer == ""
    return told(truth(candidate))


@each_word
def test_captions_give_one_word_each(subset: str) -> None:
    asked: Counter[tuple[int, int]] = Counter()
    for example in draw("captioning_neurons", subset, 100, write=right):
        color, kind = example.item.split()
        word = kind if subset == "kind" else color
        assert example.answer == f" {word}" and example.concept == word and example.subset == subset
        assert example.prompt.startswith(CAPTION + " a")
        assert example.prompt.endswith(f" a {color}" if subset == "kind" else " a")
        whole = told(truth(example))
        assert (example.prompt + example.answer).removeprefix(CAPTION) == whole[: whole.index(word) + len(word)]
        asked[len(truth(example)), truth(example).index((color, kind))] += 1
        assert example.image is not None and "<image>" in example.prompt
        check_regions(
            example, {"object", "background", "other"} if len(truth(example)) > 1 else {"object", "background"}
        )
    assert set(asked) == {(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)}


@each_word
def test_caption_counterfactual_replaces_the_thing_alone(subset: str) -> None:
    for example in draw("captioning_neurons", subset, write=right):
        color, kind = example.item.split()
        foil = (example.foil or "").strip()
        assert foil in (KINDS if subset == "kind" else COLORS)
        assert foil not in {word for pair in truth(example) for word in pair}
        assert ((color, foil) if subset == "kind" else (foil, kind)) not in HELD_OUT
        thing = example.scene.things[example.asked]  # type: ignore[attr-defined]
        difference = changed(example)
        rows, columns = np.nonzero(difference)
        assert difference.any() and not (difference & example.regions.get("other", False)).any()
        assert np.abs(columns + 0.5 - thing.x).max() <= thing.size / 2 + 2
        assert np.abs(rows + 0.5 - thing.y).max() <= thing.size / 2 + 2
        if subset == "color":
            assert not (difference & ~example.regions["object"]).any()


@each_word
def test_caption_counterfactual_without_the_thing(subset: str) -> None:
    for example in draw("captioning_neurons", subset, write=right, counterfactual="removed"):
        assert example.foil is None
        assert not (changed(example) & ~example.regions["object"]).any() and changed(example).any()


def test_caption_splits_share_no_pair() -> None:
    pairs = {s: {e.item for e in draw("captioning_neurons", "kind", 80, s, write=right)} for s in ("train", "test")}
    assert not pairs["train"] & pairs["test"]
    assert all(split_of(item) == split for split, items in pairs.items() for item in items)
    assert not {tuple(item.split()) for item in pairs["train"] | pairs["test"]} & HELD_OUT


def test_a_wrong_word_is_seen_and_not_answered() -> None:
    def always_stars(candidate: Example, limit: int) -> str:
        return told([(color, "star") for color, _ in truth(candidate)])

    examples = draw("captioning_neurons", "kind", 30, write=always_stars)
    assert all(e.prompt.count(" star") == 0 or e.answer == " star" or truth(e)[0][1] == "star" for e in examples)
    assert any(e.answer != " star" for e in examples)
    for example in examples:  # everything before the word is true, and so is the answer
        done = (example.prompt + example.answer).removeprefix(CAPTION)
        assert told(truth(example)).startswith(done)


THREE = [("red", "circle"), ("blue", "star"), ("gray", "moon")]


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (" a red circle, a blue star and a gray moon.", "red circle blue star gray moon"),
        (" a red circle, a blue star and a gray moon. A red ring", "red circle blue star gray moon"),
        (" a red circle, a blue star, a gray moon and a pink cup.", "red circle blue star gray moon"),
        (" a red circle and a blue star.", "red circle blue star"),
        (" a red circle and a gray moon.", "red circle gray"),
        (" a red blob, a blue star and a gray moon.", "red blob"),
        (" a small red circle and a blue star", "small"),
        (" a red circle, a blue", "red circle blue"),
        (" a red, blue and gray thing", "red"),
        (" an orange circle", "orange"),
        (" a red circle\nUSER: a blue star", "red circle"),
        (" two things.", ""),
        (" red circle blue star", ""),
        (" a", ""),
        (" a Red circle", "Red"),
        ("", ""),
    ],
)
def test_captions_are_read(written: str, words: str) -> None:
    found = captioning.read(written, THREE)
    assert [written[start:].split(maxsplit=1)[0].rstrip(".,") for _, _, start in found] == words.split()
    assert [(about, slot) for about, slot, _ in found] == [
        (i // 2, ("color", "kind")[i % 2]) for i in range(len(words.split()))
    ]


def test_a_model_that_writes_no_caption_gets_a_sentence() -> None:
    with pytest.raises(TaskError, match="the model wrote no target word"):
        draw("captioning_neurons", "kind", 1, write=lambda candidate, limit: " hello")
    with pytest.raises(TaskError, match="made of what a model writes"):
        draw("captioning_neurons", "kind", 1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"counterfactual": "blurred"}, r"counterfactual is 'blurred', expected 'replaced' or 'removed'\.$"),
        ({"data": "x/y", "counterfactual": "removed"}, "only drawn pictures have"),
        ({"data": 3}, "data is 3"),
    ],
)
def test_captioning_refuses(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        tasks.make("captioning_neurons", options)


def test_subsets_of_drawn_pictures_and_of_data() -> None:
    assert tasks.make("captioning_neurons").subsets == ("kind", "color")
    assert tasks.make("captioning_neurons", {"data": "somewhere"}).subsets == ("noun",)
    assert tasks.get("captioning_neurons").all_subsets == ("kind", "color")
    for options in ({"data": "somewhere", "subsets": ("kind",)}, {"subsets": ("noun",)}):
        with pytest.raises(UnknownNameError, match="unknown subset"):
            tasks.make("captioning_neurons", options)


# Captions of pictures of a data set: pictures of one color each, so that they can be told apart

THINGS = ("dog", "cat", "horse", "train", "pizza", "kite", "boat", "tree")
PLACES = ("park", "street", "field", "beach")


def reference(i: int) -> list[str]:
    thing, place = THINGS[i % len(THINGS)], PLACES[i % 3]
    return [f"A {thing} is in the {place}.", f"Two {thing}s on top of something."]


def picture(i: int) -> Image.Image:
    return Image.new("RGB", (40 + i, 32), (i * 5, 255 - i * 5, 7))


def number(image: Image.Image | None) -> int:
    """Which picture it is."""
    return int(pixels(image)[0, 0, 0]) // 5


def names_all(candidate: Example, limit: int) -> str:
    """A model that names what is there, something that is not, and much that no one can see."""
    i = number(candidate.image)
    return f" a group of {THINGS[i % len(THINGS)]}s with an umbrella on top of a {PLACES[i % 3]}. A zebra."


def save_pictures(folder: Path, n: int = 24) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:03d}.png" for i in range(n)]
    for i, name in enumerate(names):
        picture(i).save(folder / name)
    return names


def as_jsonl(root: Path) -> Path:
    rows = [{"file_name": f, "text": t} for i, f in enumerate(save_pictures(root)) for t in reference(i)]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return root


def as_csv(root: Path) -> Path:
    names = save_pictures(root / "pictures")
    with (root / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "text"])
        rows.writerows([f"pictures/{name}", "\n".join(reference(i))] for i, name in enumerate(names))
    return root


def coco(names: list[str]) -> str:
    return json.dumps(
        {
            "info": {},
            "images": [{"id": 100 + i, "file_name": name} for i, name in enumerate(names)],
            "annotations": [
                {"id": 7, "image_id": 100 + i, "caption": text} for i in range(len(names)) for text in reference(i)
            ],
        }
    )


def as_coco(root: Path) -> Path:
    (root / "annotations").mkdir()
    names = save_pictures(root / "val2017")
    (root / "annotations" / "captions_val2017.json").write_text(coco(names), encoding="utf-8")
    (root / "annotations" / "instances_val2017.json").write_text("{}", encoding="utf-8")
    return root


def as_coco_file(root: Path) -> Path:
    (root / "captions.json").write_text(coco(save_pictures(root)), encoding="utf-8")
    return root / "captions.json"


def saved(column: str, several: bool) -> Any:
    import datasets

    captions = [reference(i) if several else " ".join(reference(i)) for i in range(24)]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            column: datasets.List(datasets.Value("string")) if several else datasets.Value("string"),
        }
    )
    return datasets.Dataset.from_dict({"image": [picture(i) for i in range(24)], column: captions}, features=features)


def as_saved(root: Path) -> Path:
    saved("caption", several=True).save_to_disk(root / "saved")
    return root / "saved"


def as_saved_parts(root: Path) -> Path:
    import datasets

    part = saved("text", several=False)
    datasets.DatasetDict({"train": part.select([0]), "validation": part}).save_to_disk(root / "saved")
    return root / "saved"


def as_parquet(root: Path) -> Path:
    (root / "data").mkdir()
    saved("captions", several=True).to_parquet(root / "data" / "test-00000-of-00001.parquet")
    return root


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def _tagger() -> None:
    pytest.importorskip("HanTa", reason="the tagger of the extra 'captions' is not installed")


@pytest.mark.usefixtures("_own_cache", "_tagger")
@pytest.mark.parametrize(
    "kind",
    [as_jsonl, as_csv, as_coco, as_coco_file, as_saved, as_saved_parts, as_parquet],
    ids=lambda kind: kind.__name__,
)
def test_captions_of_a_data_set(kind: Callable[[Path], Path], tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    data = str(kind(tmp_path / "set"))
    both = {s: draw("captioning_neurons", "noun", 10, s, write=names_all, data=data) for s in ("train", "test")}
    assert not {e.item for e in both["train"]} & {e.item for e in both["test"]}
    for split, examples in both.items():
        assert max(Counter(e.item for e in examples).values()) <= 2
        assert len({e.item for e in examples}) >= 5
        for example in examples:
            i, j = number(example.image), number(example.counterfactual_image)
            thing, place = THINGS[i % len(THINGS)], PLACES[i % 3]
            assert split_of(example.item) == split and example.subset == "noun"
            assert example.image is not None and example.image.size == (40 + i, 32)
            before = example.prompt.removeprefix(CAPTION)
            assert (before, example.answer, example.concept) in [
                (" a group of", f" {thing}s", thing),
                (f" a group of {thing}s with an umbrella on top of a", f" {place}", place),
            ]
            assert not any(example.concept in caption for caption in reference(j))
            assert example.foil is None and not example.regions and example.counterfactual is None
            if example.concept == thing:  # the next picture of the split, of those with another thing
                order = [(i + k) % 24 for k in range(1, 24)]
                assert j in order[: order.index(j) + 1]
    again = draw("captioning_neurons", "noun", 6, "test", write=names_all, data=data)
    assert [(e.key, e.answer) for e in again] == [(e.key, e.answer) for e in both["test"][:6]]


@pytest.mark.usefixtures("_tagger")
def test_the_next_picture_without_the_noun() -> None:
    photos = tuple(captioning.Photo(f"{i}", (f"A {word}.",), Image.Image) for i, word in enumerate(["dog", "Dogs"] * 8))
    place = next(i for i in range(16) if i % 2 == 0)
    assert captioning.photo_without("dog", photos, place) is None
    cats = tuple(captioning.Photo(f"{i}", ("A cat.",), Image.Image) for i in range(16, 40))
    found = captioning.photo_without("dog", photos + cats, place)
    assert found == next(cat for cat in cats if split_of(cat.name) == split_of(photos[place].name))


CAPTIONS = {
    "A man riding a wave on top of a surfboard.": "man wave surfboard",
    "A black cat sitting on a wooden table next to a laptop computer.": "cat table laptop computer",
    "Two dogs play with a red frisbee in the park.": "dog frisbee park",
    "A plate of food with broccoli, rice and chicken.": "plate food broccoli rice chicken",
    "A street sign on a pole in front of a building.": "street sign pole building",
    "A group of people standing around a kitchen preparing food.": "people kitchen food",
    "A baseball player swinging a bat at a ball.": "baseball player bat ball",
    "An old train sits on the tracks near a station.": "train track station",
    "A close up of a pizza on a plate.": "pizza plate",
    "a young boy flies a kite on the beach": "boy kite beach",
    "Zebras graze in a grassy field.": "zebra field",
    "red flowers in a blue vase on the windowsill": "flower vase windowsill",
}


@pytest.mark.usefixtures("_tagger")
def test_nouns_are_found() -> None:
    for caption, nouns in CAPTIONS.items():
        photo = captioning.Photo("", (caption,), Image.Image)
        found = captioning.nouns_shown(f" {caption}", photo)
        assert [lemma for _, lemma, _ in found] == nouns.split()
        assert all(f" {caption}"[start:].startswith(word) for word, _, start in found)
    assert captioning.nouns_shown("", photo) == captioning.nouns_shown(" ...", photo) == []


@pytest.mark.usefixtures("_own_cache", "_tagger")
def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    def error(data: Path | str) -> str:
        with pytest.raises(AttriboardError) as caught:
            draw("captioning_neurons", "noun", 4, write=names_all, data=str(data))
        assert "\n" not in str(caught.value)
        return f"{type(caught.value).__name__}: {caught.value}"

    def folder(name: str, file: str, text: str) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text, encoding="utf-8")
        return tmp_path / name

    assert "ConfigurationError: data is" in error(tmp_path / "nowhere")
    assert "a data set on the hub as owner/name" in error("nowhere")
    (tmp_path / "empty").mkdir()
    assert "cannot be read as pictures with captions (" in error(tmp_path / "empty")
    assert "metadata.jsonl cannot be read (" in error(folder("a", "metadata.jsonl", "{"))
    assert "entry 1 of" in error(folder("b", "metadata.jsonl", '{"text": "a dog"}'))
    assert "entry 1 of" in error(folder("c", "metadata.jsonl", "[1]"))
    assert "lacks file_name or text" in error(folder("d", "metadata.csv", "file_name,label\na.png,1\n"))
    assert "has no picture with a caption" in error(folder("e", "metadata.csv", "file_name,text\n"))
    assert "is no COCO captions file" in error(folder("f", "captions.json", '{"images": []}'))
    assert "is no COCO captions file" in error(folder("g", "captions.json", "[]"))
    assert "captions.json cannot be read (" in error(folder("h", "captions.json", "{"))
    assert "ExampleError: there is no image" in error(
        folder("i", "metadata.jsonl", '{"file_name": "gone.png", "text": "a dog"}')
    )
    two = folder("j", "captions_train.json", "{}")
    (two / "captions_val.json").write_text("{}", encoding="utf-8")
    assert "has several captions files (captions_train.json, captions_val.json)" in error(two)
    broken = as_jsonl(tmp_path / "k")
    for file in broken.glob("*.png"):
        file.write_bytes(file.read_bytes()[:60])
    assert error(broken).startswith("ExampleError: the image ")
    plain = tmp_path / "l"
    save_pictures(plain)
    assert "it needs 'image' and one of 'caption', 'captions', 'text'" in error(plain)


@pytest.mark.usefixtures("_own_cache", "_tagger")
def test_pictures_in_a_data_set_that_cannot_be_opened(tmp_path: Path) -> None:
    import datasets

    texts = datasets.Dataset.from_dict({"image": ["gone.png"], "text": ["a dog"]})
    with pytest.raises(ExampleError, match=r"there is no image gone\.png"):
        captioning.open_row(texts, 0, "it")
    with pytest.raises(ExampleError, match="the image in row 0 of 'it' is int, expected a picture"):
        captioning.open_row(datasets.Dataset.from_dict({"image": [3]}), 0, "it")
    cut = tmp_path / "cut.png"
    picture(0).save(cut)
    cut.write_bytes(cut.read_bytes()[:50])
    undecoded = datasets.Dataset.from_dict({"image": [str(cut)]}).cast_column("image", datasets.Image())
    with pytest.raises(ExampleError, match="the image in row 0 of 'it' cannot be read"):
        captioning.open_row(undecoded, 0, "it")


@pytest.mark.usefixtures("_tagger")
def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(name: str, config: None) -> None:
        assert name == "someone/captions"
        raise ConnectionError("no route\nat all")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    match = r"'someone/captions' cannot be reached \(ConnectionError: no route\): download it and give its folder"
    with pytest.raises(TaskError, match=match):
        draw("captioning_neurons", "noun", 4, write=names_all, data="someone/captions")


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    part = saved("caption", several=False)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: datasets.DatasetDict({"train": part}))
    photos = captioning.photos_of("someone/photos")
    assert [number(photo.open()) for photo in photos] == list(range(24))
    assert photos[3].captions == (" ".join(reference(3)),)


def test_without_the_tagger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captioning.tagger.cache_clear()
    monkeypatch.setitem(sys.modules, "HanTa.HanoverTagger", None)
    with pytest.raises(ConfigurationError, match=r"type: pip install 'attriboard\[captions\]'$"):
        draw("captioning_neurons", "noun", 4, write=names_all, data=str(as_jsonl(tmp_path)))
