"""Pictures from files and vision-language models from folders, on the command line and below it."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open

from attriboard.errors import ExampleError
from attriboard.images import MAX_PIXELS, as_rgb, open_image
from attriboard.loading import load_model
from attriboard.task import Example
from tests.bench import models as m
from tests.bench.cli import call, process
from tests.bench.seeing import STRETCHED

METHODS = '''
"""Two methods for positions of the input, and one that goes wrong on them."""
from dataclasses import dataclass

import torch

from attriboard.method import Method


@dataclass
class Gradient(Method):
    name = "plain_gradient"
    paper = "none"
    description = "length of the metric's gradient at each embedding"
    levels = ("patches", "tokens")

    def score_batch(self, model, batch, level):
        run = model.run(batch, ["hook_embed"], gradients=True)
        return run.gradients(model.metric(run.logits, batch), ["hook_embed"])["hook_embed"].norm(dim=-1)


@dataclass
class Broken(Method):
    name = "broken_positions"
    paper = "none"
    description = "not a number at every position"
    levels = ("patches", "tokens")

    def score_batch(self, model, batch, level):
        return torch.full(batch.tokens.shape, float("nan"))
'''

TASK = '''
"""Which square?"""
from dataclasses import dataclass

import numpy as np
from PIL import Image

from attriboard.task import Example, Task


@dataclass
class Squares(Task):
    name = "squares"
    description = "Pictures of noise."
    all_subsets = ("all",)
    levels = ("heads", "patches", "tokens")
    modality = "vision"

    def candidates(self, subset, rng):
        while True:
            seed = rng.randrange(10**6)
            noise = np.random.default_rng(seed).integers(0, 256, (42, 56, 3), dtype=np.uint8)
            word = f"w{seed %% 90 + 1}"
            yield Example(f"{word} <image> w3", "%s", image=Image.fromarray(noise), item=str(seed))
'''

SAVED = tuple(family for family in m.SEEING if family not in STRETCHED)
"""Those whose processors can be saved without torchvision."""
PROMPT, ANSWER = "w5 <image> w17 w33", "w12"


def _saved(folder: Path, family: str) -> Path:
    hf, processor = m.fresh_seeing(family)
    hf.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders by family, a picture of 56 × 42 pixels, and a file of methods."""
    root = tmp_path_factory.mktemp("seeing")
    parts = {family: _saved(root / family, family) for family in SAVED}
    m.picture(0, (56, 42), (14, 0, 42, 14)).save(root / "picture.png")
    m.picture(1, (56, 42)).save(root / "other.png")
    (root / "methods.py").write_text(METHODS)
    return {**parts, "picture": root / "picture.png", "other": root / "other.png", "methods": root / "methods.py"}


def _arguments(folders: dict[str, Path], out: Path, *extra: object, level: str = "patches") -> list[object]:
    base = ["attribute", "--model", folders["llava"], "--method", "plain_gradient", "--level", level, "--out", out]
    return [*base, "--include", folders["methods"], "--prompt", PROMPT, "--answer", ANSWER, *extra]


def _stored(file: Path) -> tuple[torch.Tensor, dict[str, str]]:
    with safe_open(file, "pt") as stored:
        assert list(stored.keys()) == ["scores"]
        return stored.get_tensor("scores"), stored.metadata()


# --- picture files ----------------------------------------------------------------------------------------------------


def _png_header(width: int, height: int) -> bytes:
    """A PNG file that says how large it is and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def _cut(file: Path, form: str) -> None:
    m.picture(0, (200, 200)).save(file, form)
    file.write_bytes(file.read_bytes()[:-2000])


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda f: None, "there is no image {file}; check the path."),
    "folder": (lambda f: f.mkdir(), "the image {file} is a folder; name a picture file in it."),
    "empty": (lambda f: f.write_bytes(b""), "the image {file} is not a picture that can be read"),
    "text": (lambda f: f.write_text("hello"), "the image {file} is not a picture that can be read"),
    "cut JPEG": (lambda f: _cut(f, "JPEG"), "the image {file} cannot be read ("),
    "cut PNG": (lambda f: _cut(f, "PNG"), "it may be cut short: save it again."),
    "1 x 1": (lambda f: Image.new("RGB", (1, 1)).save(f, "PNG"), "is 1 × 1 pixels; at least 8 × 8 are needed"),
    "large": (lambda f: f.write_bytes(_png_header(8000, 8000)), "is 8000 × 8000 pixels; at most 50,000,000 are taken"),
    "larger": (lambda f: f.write_bytes(_png_header(10000, 10000)), "at most 50,000,000 are taken: make it smaller"),
    "huge": (lambda f: f.write_bytes(_png_header(50000, 50000)), "{file} is too large: at most 50,000,000 pixels"),
    "floats": (
        lambda f: Image.fromarray(np.ones((20, 20), dtype=np.float32)).save(f, "TIFF"),
        "an image of floating-point pixels has no known range; save it with 8 bits per channel.",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_files_that_are_no_usable_picture_exit_2_with_one_sentence(
    kind: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = BAD[kind]
    file = tmp_path / "file.png"
    make(file)
    message = message.format(file=file)
    with pytest.raises(ExampleError) as caught:
        open_image(file)
    assert message in str(caught.value)
    for option in (["--image", file], ["--image", folders["picture"], "--counterfactual-image", file]):
        code, _, err = call(capsys, *_arguments(folders, tmp_path / "s.safetensors", *option))
        assert code == 2 and message in err and "Traceback" not in err and "Warning" not in err
        assert len(err.strip().splitlines()) == 1


def test_the_largest_picture_is_a_matter_of_its_pixels() -> None:
    assert MAX_PIXELS == 50_000_000  # as the sentences above say


def _gradient() -> np.ndarray:
    return np.add.outer(np.arange(16) * 4, np.arange(24) * 3).astype(np.uint8)


def test_kinds_of_pictures_that_work(tmp_path: Path) -> None:
    gray = _gradient()
    expected = np.repeat(gray[..., None], 3, axis=2)
    file = tmp_path / "picture.png"

    Image.fromarray(gray).save(file)
    np.testing.assert_array_equal(np.asarray(open_image(file)), expected)

    # 16 bits of gray keep the upper 8
    Image.fromarray(gray.astype(np.uint16) * 256 + 77).save(file)
    np.testing.assert_array_equal(np.asarray(open_image(file)), expected)
    np.testing.assert_array_equal(np.asarray(as_rgb(Image.fromarray(gray.astype(np.int32) * 256 + 255))), expected)

    # alpha: half of red over white
    Image.new("RGBA", (20, 10), (200, 0, 0, 51)).save(file)
    seen = open_image(file)
    assert seen.mode == "RGB" and seen.size == (20, 10)
    np.testing.assert_allclose(np.asarray(seen)[0, 0], [244, 204, 204], atol=1)  # 0.2 × red + 0.8 × white

    # a palette, without and with a transparent color
    palette = Image.new("P", (20, 10), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30] + [0] * 750)
    palette.putpixel((0, 0), 0)
    palette.save(file)
    np.testing.assert_array_equal(np.asarray(open_image(file))[0, :2], [[0, 0, 0], [10, 200, 30]])
    palette.save(file, transparency=0)
    np.testing.assert_array_equal(np.asarray(open_image(file))[0, :2], [[255, 255, 255], [10, 200, 30]])

    # black and white, and four inks
    Image.new("1", (20, 10), 1).save(file)
    assert np.asarray(open_image(file)).min() == 255
    inks = tmp_path / "picture.jpg"
    Image.new("CMYK", (20, 10), (0, 0, 0, 255)).save(inks)
    assert open_image(inks).mode == "RGB" and np.asarray(open_image(inks)).max() < 10

    # several frames: the first
    frames = tmp_path / "picture.gif"
    Image.new("RGB", (20, 10), "red").save(frames, save_all=True, append_images=[Image.new("RGB", (20, 10), "blue")])
    np.testing.assert_array_equal(np.asarray(open_image(frames))[0, 0], [255, 0, 0])


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(1, lambda x: x), (3, lambda x: x[::-1, ::-1]), (6, lambda x: np.rot90(x, -1)), (8, lambda x: np.rot90(x, 1))],
)
def test_a_picture_is_turned_upright_as_its_exif_data_says(
    orientation: int, turn: Callable[[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(_gradient()).save(tmp_path / "p.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "p.png"))[..., 0], turn(_gradient()))


# --- model folders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SAVED)
def test_a_saved_model_loads_by_its_folder_and_scores_the_same(
    family: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded, made = load_model(str(folders[family])), m.seeing(family)
    assert loaded.vision is not None and made.vision is not None
    assert loaded.vision.grid == made.vision.grid and loaded.weights_sha256 == made.weights_sha256
    example = Example(PROMPT, ANSWER, image=open_image(folders["picture"]))
    batches = [model.batch([model.encode(example)]) for model in (loaded, made)]
    assert m.close(loaded.run(batches[0]).logits, made.run(batches[1]).logits)

    file = tmp_path / "s.safetensors"
    arguments = _arguments(folders, file, "--image", folders["picture"])
    arguments[2] = folders[family]
    code, out, err = call(capsys, *arguments)
    assert code == 0, err
    scores, metadata = _stored(file)
    run = made.run(batches[1], ["hook_embed"], gradients=True)
    gradient = run.gradients(made.metric(run.logits, batches[1]), ["hook_embed"])["hook_embed"][0].norm(dim=-1)
    expected = gradient[torch.tensor(batches[1].examples[0].tokens) == made.vision.placeholder]
    assert m.close(scores, expected.view(made.vision.grid))
    probability = float(made.run(batches[1]).logits[0].softmax(-1)[12])
    assert f"p('w12') = {probability:.4f}" in out
    assert metadata["answer"] == ANSWER and metadata["model"] == str(folders[family])


def test_models_whose_patches_form_no_single_grid_are_refused_before_their_weights_are_read(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for config, kind in ((transformers.LlavaNextConfig(), "llava_next"), (transformers.Idefics2Config(), "idefics2")):
        config.save_pretrained(tmp_path)  # no weights are there to be read
        arguments = _arguments(folders, tmp_path / "s.safetensors", "--image", folders["picture"])
        arguments[2] = tmp_path
        code, _, err = call(capsys, *arguments)
        assert code == 2 and f"vision-language models of type '{kind}' are not supported" in err
        assert "supported: llava, vipllava, idefics3, smolvlm" in err and "Traceback" not in err


def test_a_saved_processor_that_makes_no_grid_exits_2(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _saved(tmp_path, "llava")
    m.tiny_processor(num_additional_image_tokens=0).save_pretrained(tmp_path)
    arguments = _arguments(folders, tmp_path / "s.safetensors", "--image", folders["picture"])
    arguments[2] = tmp_path
    code, _, err = call(capsys, *arguments)
    assert code == 2 and "cannot be established: its processor makes 1 crops of 42 × 42 pixels and 8 image" in err
    assert "Traceback" not in err


def test_a_folder_without_a_processor_exits_2(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    m.fresh_llava().save_pretrained(tmp_path)
    arguments = _arguments(folders, tmp_path / "s.safetensors", "--image", folders["picture"])
    arguments[2] = tmp_path
    code, _, err = call(capsys, *arguments)
    assert code == 2 and "cannot be loaded" in err and "Traceback" not in err


# --- attribute --------------------------------------------------------------------------------------------------------


def test_patches_in_a_real_process_with_a_drawing(folders: dict[str, Path], tmp_path: Path) -> None:
    file, drawing = tmp_path / "s.safetensors", tmp_path / "deep" / "map.png"
    done = process(*_arguments(folders, file, "--image", folders["picture"], "--foil", "w30", "--overlay", drawing))
    assert done.returncode == 0, done.stderr
    scores, metadata = _stored(file)
    assert tuple(scores.shape) == (3, 3) and scores.dtype == torch.float32
    assert metadata["level"] == "patches" and metadata["method"] == "plain_gradient" and metadata["answer"] == ANSWER
    assert json.loads(metadata["names"]) == [f"p{row}.{column}" for row in range(3) for column in range(3)]
    best = int(scores.argmax())
    assert f"p{best // 3}.{best % 3}  {float(scores.max()):+.4f}" in done.stdout
    assert f"drew {drawing}" in done.stdout
    with Image.open(drawing) as drawn:
        assert drawn.format == "PNG" and min(drawn.size) > 200


def test_the_drawing_gets_what_the_model_saw_and_its_answer(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import attriboard.board.heatmaps

    seen: list[tuple[Image.Image, np.ndarray, str, Path]] = []
    monkeypatch.setattr(attriboard.board.heatmaps, "overlay", lambda *arguments: seen.append(arguments))
    extra = ["--image", folders["picture"], "--overlay", tmp_path / "map.png"]
    assert call(capsys, *_arguments(folders, tmp_path / "s.safetensors", *extra))[0] == 0
    ((picture, scores, title, out),) = seen
    model = m.seeing("llava")
    example = Example(PROMPT, ANSWER, image=open_image(folders["picture"]))
    probability = float(model.run(model.batch([model.encode(example)])).logits[0].softmax(-1)[12])
    assert model.vision is not None and example.image is not None
    assert picture.tobytes() == model.vision.see(example.image).tobytes() and picture.size == (42, 42)
    assert torch.equal(torch.from_numpy(scores), _stored(tmp_path / "s.safetensors")[0]) and out == tmp_path / "map.png"
    assert "'w12'" in title and f"p = {probability:.3f}" in title and "plain_gradient" in title


@pytest.mark.parametrize("with_image", [True, False])
def test_tokens_are_the_words_and_not_the_patches(
    with_image: bool, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "s.safetensors"
    extra = ["--image", folders["picture"]] if with_image else ["--prompt", "w5 w17 w33"]
    code, out, err = call(capsys, *_arguments(folders, file, *extra, level="tokens"))
    assert code == 0, err
    scores, metadata = _stored(file)
    assert tuple(scores.shape) == (3,) and json.loads(metadata["names"]) == ["t0", "t1", "t2"]
    assert json.loads(metadata["details"])["tokens"] == ["w5", "w17", "w33"]
    best = int(scores.argmax())
    assert f"t{best}  {float(scores.max()):+.4f}  '{['w5', 'w17', 'w33'][best]}'" in out


def test_tokens_of_a_text_only_model(
    toy: dict[str, Path], folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "s.safetensors"
    arguments = _arguments(folders, file, "--prompt", "w1 w2", "--answer", "w3", level="tokens")
    arguments[2] = toy["model"]
    code, _, err = call(capsys, *arguments)
    assert code == 0, err
    assert tuple(_stored(file)[0].shape) == (2,)


def test_components_are_scored_with_pictures_too(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Heads of a prompt whose counterfactual is another picture: replaced one at a time in a plain model."""
    file = tmp_path / "s.safetensors"
    arguments = _arguments(folders, file, "--image", folders["picture"], level="heads")
    arguments[4] = "activation_patching"
    code, _, err = call(capsys, *arguments, "--counterfactual-image", folders["other"], "--foil", "w30")
    assert code == 0, err
    plain = m.Plain("llava", m.fresh_llava())
    pixels = [m.pixels(open_image(folders[name])) for name in ("picture", "other")]
    tokens = (5, *[m.IMAGE_ID] * 9, 17, 33)
    sites = m.level_sites(plain, "heads")
    _, values = plain.run(tokens, read=sites, pixel_values=pixels[1])

    def value(edits: dict) -> torch.Tensor:
        logits, _ = plain.run(tokens, edits, pixel_values=pixels[0])
        return logits[12] - logits[30]

    expected = torch.zeros(plain.n_layers, plain.n_heads)
    for layer in range(plain.n_layers):
        for head in range(plain.n_heads):
            mask = torch.zeros_like(expected, dtype=torch.bool)
            mask[layer, head] = True
            expected[layer, head] = value({}) - value(m.component_edits("heads", mask, values))
    assert m.close(_stored(file)[0], expected, 1e-4)


def _usual_answer(n: int = 30) -> str:
    """The word that the model gives most often to such prompts as those of the task."""
    model = m.seeing("llava")
    prompts = [Example(f"w{i % 90 + 1} <image> w3", "w1", image=m.picture(i)) for i in range(n)]
    found = model.run(model.batch([model.encode(e) for e in prompts])).logits.argmax(-1).tolist()
    return f"w{max(set(found), key=found.count)}"


def test_a_task_is_averaged_over_its_examples_for_patches_and_refused_for_tokens(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "squares.py").write_text(TASK % _usual_answer())
    file = tmp_path / "s.safetensors"
    base = ["attribute", "--model", folders["llava"], "--method", "plain_gradient", "--out", file, "--task", "squares"]
    base += ["--include", folders["methods"], "--include", tmp_path / "squares.py", "--limit", "40"]
    code, out, err = call(capsys, *base, "--level", "patches")
    assert code == 0, err
    scores, metadata = _stored(file)
    n = json.loads(metadata["details"])["averaged_over_examples"]
    assert tuple(scores.shape) == (3, 3) and f"{n} of 40 examples of squares answered correctly" in out and n >= 2
    assert metadata["answer"] == "task:squares"

    from attriboard.evaluation.drawing import answered, draw
    from attriboard.task import tasks

    model = m.seeing("llava")
    drawn = draw(model, tasks.make("squares"), "train", 40, 0)
    right = [e for e, ok in zip(drawn, answered(model, drawn)) if ok]
    total = torch.zeros(9, dtype=torch.float64)
    for e in right:
        batch = model.batch([e])
        run = model.run(batch, ["hook_embed"], gradients=True)
        gradient = run.gradients(model.metric(run.logits, batch), ["hook_embed"])["hook_embed"][0]
        total += gradient[torch.tensor(e.tokens) == m.IMAGE_ID].norm(dim=-1).double()
    assert m.close(scores.flatten().double(), total / len(right))

    code, _, err = call(capsys, *base, "--level", "tokens")
    assert code == 2 and "cannot be averaged over a task; give one --prompt." in err
    code, _, err = call(capsys, *base, "--level", "patches", "--overlay", tmp_path / "o.png")
    assert code == 2 and "--overlay draws on one image; give --prompt with --image." in err


def test_a_task_with_pictures_needs_a_model_that_sees(
    toy: dict[str, Path], folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "squares.py").write_text(TASK % "w3")
    arguments = ["--model", toy["model"], "--method", "head_ablation", "--level", "heads", "--task", "squares"]
    arguments += ["--include", tmp_path / "squares.py", "--out", tmp_path / "s.safetensors"]
    code, _, err = call(capsys, "attribute", *arguments)
    assert code == 2 and "task 'squares' asks about images, and" in err and "choose a vision-language model" in err


IMAGE_FILE = "PICTURE"  # stands for the fixture's file


@pytest.mark.parametrize(
    ("level", "extra", "message"),
    [
        ("patches", ["--prompt", "w5 w17", "--image", IMAGE_FILE], "has 0 <image> placeholders, expected exactly one"),
        ("patches", ["--prompt", "<image> <image>", "--image", IMAGE_FILE], "has 2 <image> placeholders"),
        ("patches", [], "has a place for an image (<image>), but no image was given"),
        ("patches", ["--prompt", "w5 w17"], "patches can be scored only where an example has an image"),
        ("patches", ["--image", IMAGE_FILE, "--answer", "w3 w4"], "the answer 'w3 w4' is 2 tokens for"),
        ("heads", ["--image", IMAGE_FILE], "plain_gradient scores patches, tokens, not heads."),
        ("patches", ["--counterfactual-image", IMAGE_FILE], "give --image too"),
        ("patches", ["--image", IMAGE_FILE, "--overlay", "o.jpg"], "--overlay o.jpg does not end in .png"),
        ("patches", ["--overlay", "o.png"], "--overlay draws on one image; give --prompt with --image."),
        (
            "heads",
            ["--image", IMAGE_FILE, "--overlay", "o.png", "--method", "head_ablation"],
            "--overlay draws scores of patches; give --level patches instead of heads.",
        ),
        ("patches", ["--image", IMAGE_FILE, "--overlay", "/dev/null/o.png"], "cannot draw /dev/null/o.png"),
        ("patches", ["--image", IMAGE_FILE, "--method", "broken_positions"], "NaN or infinite for example 0"),
        (
            "patches",
            ["--image", IMAGE_FILE, "--counterfactual", "w5 <image> w17"],
            "the counterfactual is 11 tokens long and the prompt 12",
        ),
        (
            "patches",
            ["--image", IMAGE_FILE, "--counterfactual", "w5 w17 w33"],
            "the prompt has 0 <image> placeholders, expected exactly one",
        ),
    ],
)
def test_what_cannot_be_scored_exits_2_with_one_sentence(
    level: str,
    extra: list[str],
    message: str,
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "s.safetensors"
    given = [folders["picture"] if x == IMAGE_FILE else x for x in extra]
    code, _, err = call(capsys, *_arguments(folders, file, *given, level=level))
    assert code == 2 and message in err and "Traceback" not in err
    assert not file.exists()


def test_an_image_for_a_text_only_model_exits_2(
    toy: dict[str, Path], folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = _arguments(folders, tmp_path / "s.safetensors", "--image", folders["picture"], "--answer", "w3")
    arguments[2] = toy["model"]
    code, _, err = call(capsys, *arguments)
    assert code == 2 and "reads text only and cannot look at an image; choose a vision-language model." in err
