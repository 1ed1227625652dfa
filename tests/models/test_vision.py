"""Models that see: against plain Hugging Face calls with pixels, literal geometry, and finite differences."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from attriboard.errors import ExampleError, ModelError
from attriboard.interventions import replacement_values
from attriboard.loading import load_model
from attriboard.model import EncodedExample, Model, hook_name
from attriboard.models.architectures import architecture_of
from attriboard.models.vision import Vision
from attriboard.task import IMAGE, Example
from tests.bench import models as m
from tests.bench.seeing import SIDE, STRETCHED, TYPED

SITES = ("resid_pre", "z", "attn_out", "post", "mlp_out", "resid_post")


def _seeing(family: str, padding_side: str = "left") -> Model:
    model = copy.copy(m.seeing(family))
    model.padding_side = padding_side
    return model


def _encoded(model: Model) -> list[EncodedExample]:
    return [model.encode(e.example) for e in m.vision_examples()]


def _plain_logits(model: Model, prompt: str, image: Image.Image) -> Tensor:
    """``[V]`` at the last token: the whole model called with pixels, one row, nothing hooked."""
    if model.name in STRETCHED:
        image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    text = prompt.replace(IMAGE, TYPED.get(model.name, IMAGE))
    inputs = model.vision.processor(images=image, text=text, return_tensors="pt")  # type: ignore[union-attr]
    inputs = {k: v for k, v in inputs.items() if k not in ("rows", "cols")}
    with torch.no_grad():
        return model.hf(**inputs, use_cache=False).logits[0, -1]


# --- what the language model sees -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", m.SEEING)
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_padded_batch_gives_each_rows_plain_logits(family: str, padding_side: str) -> None:
    model = _seeing(family, padding_side)
    encoded = _encoded(model)
    batch = model.batch(encoded)
    assert len({len(e.tokens) for e in encoded}) > 1 and batch.counterfactual is not None
    expected = torch.stack([_plain_logits(model, e.example.prompt, e.example.image) for e in encoded])
    assert m.close(model.run(batch).logits, expected)
    others = [
        _plain_logits(
            model, e.example.counterfactual or e.example.prompt, e.example.counterfactual_image or e.example.image
        )
        for e in encoded
    ]
    assert m.close(model.run(batch.counterfactual).logits, torch.stack(others))
    assert not m.close(torch.stack(others), expected, 0.05)  # the counterfactuals do matter


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_activations_are_those_of_a_plain_model_called_with_pixels(padding_side: str) -> None:
    model = m.tiny_llava(padding_side=padding_side)
    plain = m.Plain("llava", model.hf)
    encoded = m.vision_examples()
    batch = model.batch(encoded)
    run = model.run(batch, ["hook_embed", *(hook_name(s, layer) for s in SITES for layer in range(model.n_layers))])
    first = model.first_position(batch).tolist()
    read = [(s, layer) for s in SITES for layer in range(model.n_layers)]
    for row, e in enumerate(encoded):
        _, seen = plain.run(e.tokens, read=read, pixel_values=m.pixels(e.example.image))
        at = slice(first[row], first[row] + len(e.tokens))
        for (site, layer), expected in seen.items():
            assert m.close(run[hook_name(site, layer)][row, at], expected, 2e-5), (site, layer)
        assert m.close(run["hook_embed"][row, at], seen["resid_pre", 0], 2e-5)


def test_image_features_stand_at_the_placeholders_in_row_major_order() -> None:
    model = m.tiny_llava()
    for e in m.vision_examples():
        tower = model.hf.model.vision_tower(m.pixels(e.example.image), output_hidden_states=True)
        expected = model.hf.model.multi_modal_projector(tower.hidden_states[-2][0, 1:])
        batch = model.batch([e])
        embeds = model.run(batch, ["hook_embed"])["hook_embed"][0]
        assert torch.equal(batch.image_mask[0], torch.tensor(e.tokens) == m.IMAGE_ID)
        assert m.close(embeds[batch.image_mask[0]], expected)
        words = ~batch.image_mask[0]
        assert torch.equal(embeds[words], model.hf.get_input_embeddings().weight[torch.tensor(e.tokens)[words]])


OUT = tuple(f".{name}.{part}" for name in ("out_proj", "o_proj", "attn.proj") for part in ("weight", "bias"))
"""How parameters of the output projections of attention end in vision towers."""


@pytest.mark.parametrize("family", m.SEEING)
def test_each_patch_of_the_picture_lies_where_its_feature_stands(family: str) -> None:
    """Without attention in the tower a feature depends on its own patch alone, so a change shows where it belongs."""
    hf, processor = m.fresh_seeing(family)
    for name, weight in hf.named_parameters():
        if "visi" in name.replace("visual", "vision") and name.endswith(OUT):
            weight.zero_()
    if family not in TYPED:
        processor.image_processor.do_resize = False  # the picture has the right size, and resizing would blur its edges
    model = Model(hf, processor.tokenizer, name=family, processor=processor)
    vision = model.vision
    assert vision is not None
    (rows, columns), (height, width) = vision.grid, vision.size
    before = m.picture(1, (width, height))
    features = vision.features(vision.inputs(IMAGE, before))
    for row in range(rows):
        for column in range(columns):
            pixels = np.asarray(before).copy()
            at = (
                slice(row * height // rows, (row + 1) * height // rows),
                slice(column * width // columns, (column + 1) * width // columns),
            )
            pixels[at] = 255 - pixels[at]
            after = Image.fromarray(pixels)
            changed = (vision.features(vision.inputs(IMAGE, after)) - features).abs().amax(-1) > 1e-4
            assert changed.nonzero().flatten().tolist() == [row * columns + column]
            assert torch.equal(
                vision.coverage((pixels != np.asarray(before)).any(-1)) > 0.5, changed.view(rows, columns)
            )


def test_llava_of_the_published_proportions_has_24_by_24_patches() -> None:
    hf, processor = m.fresh_llava(side=336, positions=640), m.tiny_processor(336)
    model = Model(hf, processor.tokenizer, processor=processor)
    assert model.vision is not None and model.vision.grid == (24, 24) and model.vision.size == (336, 336)
    encoded = model.encode(Example(f"w5 {IMAGE} w17 w3", " w12", image=m.picture(2, (640, 427))))
    assert encoded.tokens.count(m.IMAGE_ID) == 576 and encoded.image is not None and len(encoded.image) == 576
    got = model.run(model.batch([encoded])).logits[0]
    assert m.close(got, _plain_logits(model, encoded.example.prompt, encoded.example.image), 2e-5)


def test_a_large_picture_is_not_split_into_several() -> None:
    model = m.seeing("idefics3")
    assert model.vision is not None
    large = m.picture(4, (640, 427))
    inputs = model.vision.inputs(IMAGE, large)
    assert tuple(inputs["pixel_values"].shape) == (1, 1, 3, 32, 32)
    assert int((inputs["input_ids"] == model.vision.placeholder).sum()) == 4


# --- geometry ---------------------------------------------------------------------------------------------------------


def _resized_and_cropped(picture: Image.Image, side: int) -> np.ndarray:
    """``[side, side, 3]``: shortest edge to ``side`` with bicubic interpolation, then the centre."""
    width, height = picture.size
    scale = side / min(width, height)
    # the longer side is rounded down
    size = (side, int(height * scale + 1e-9)) if width < height else (int(width * scale + 1e-9), side)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    small = picture.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(small.crop((left, top, left + side, top + side)))


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (100, 100), (42, 300)])
def test_what_the_model_sees_is_the_resized_and_cropped_picture(size: tuple[int, int]) -> None:
    vision = m.tiny_llava().vision
    assert vision is not None
    image = m.picture(5, size, (size[0] // 3, size[1] // 3, size[0] // 2, size[1] // 2))
    seen = vision.see(image)
    assert seen.mode == "RGB" and seen.size == (42, 42)
    difference = np.asarray(seen).astype(int) - _resized_and_cropped(image, 42).astype(int)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("square", [(200, 50, 400, 300), (0, 0, 640, 427), (90, 400, 330, 427)])
def test_coverage_is_that_of_the_literally_resized_and_cropped_mask(square: tuple[int, int, int, int]) -> None:
    vision = m.tiny_llava().vision
    assert vision is not None
    mask = m.mask((640, 427), square)
    literal = _resized_and_cropped(Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB"), 42)[..., 0] / 255.0
    expected = torch.tensor(literal).view(3, 14, 3, 14).mean((1, 3)).float()
    torch.testing.assert_close(vision.coverage(mask), expected, atol=1e-3, rtol=0)
    assert float(vision.coverage(mask).max()) > 0.1


def test_a_mask_in_the_cropped_border_covers_nothing_and_one_inside_its_own_patches() -> None:
    vision = m.tiny_llava().vision
    assert vision is not None
    # 640 × 427 becomes 62 × 42, of which columns 10 to 51 are seen: 103 to 536 of the original
    assert not bool(vision.coverage(m.mask((640, 427), (0, 0, 95, 427))).any())
    assert not bool(vision.coverage(m.mask((640, 427), (550, 0, 640, 427))).any())
    third = 14 * 640 / 62
    left = 10 * 640 / 62 + third  # the middle column of patches
    middle = vision.coverage(m.mask((640, 427), (round(left), 285, round(left + third), 427)))
    expected = torch.zeros(3, 3)
    expected[2, 1] = 1
    torch.testing.assert_close(middle, expected, atol=0.05, rtol=0)
    ones = vision.coverage(np.ones((427, 640), dtype=bool))
    torch.testing.assert_close(ones, torch.ones(3, 3))


@pytest.mark.parametrize("family", ["idefics3", "smolvlm"])
def test_geometry_of_a_processor_that_stretches_the_picture(family: str) -> None:
    vision = m.seeing(family).vision
    assert vision is not None and vision.grid == (2, 2) and vision.size == (32, 32)
    for row in range(2):
        for column in range(2):
            square = (40 * column, 20 * row, 40 * column + 40, 20 * row + 20)
            expected = torch.zeros(2, 2)
            expected[row, column] = 1
            torch.testing.assert_close(vision.coverage(m.mask((80, 40), square)), expected, atol=0.06, rtol=0)
    image = Image.new("RGB", (80, 40), "blue")
    image.paste("red", (0, 0, 40, 20))
    seen = np.asarray(vision.see(image)).astype(int)
    assert seen.shape == (32, 32, 3)
    assert np.abs(seen[4:12, 4:12] - [255, 0, 0]).max() <= 3 and np.abs(seen[20:, 20:] - [0, 0, 255]).max() <= 3


# --- running ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_restart_is_bit_identical(padding_side: str) -> None:
    model = m.tiny_llava(padding_side=padding_side)
    batch = model.batch(m.vision_examples())
    run = model.run(batch, [hook_name("resid_pre", layer) for layer in range(model.n_layers)])
    for layer in range(model.n_layers):
        again = model.run(batch, start=(layer, run[hook_name("resid_pre", layer)]))
        assert torch.equal(again.logits, run.logits)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_gradients_at_image_and_text_positions_are_those_of_finite_differences(padding_side: str) -> None:
    processor = m.tiny_processor()
    model = Model(
        m.in_double(m.fresh_llava()), processor.tokenizer, padding_side=padding_side, prove=False, processor=processor
    )
    encoded = _encoded(model)
    batch = model.batch(encoded)
    run = model.run(batch, ["hook_embed"], gradients=True)
    found = run.gradients(model.metric(run.logits, batch), ["hook_embed"])["hook_embed"]
    generator = torch.Generator().manual_seed(3)
    for where in (batch.image_mask, batch.real & ~batch.image_mask):
        direction = torch.randn(found.shape, generator=generator, dtype=torch.float64) * where[..., None]

        def moved(h: float, direction: Tensor = direction) -> Tensor:
            logits = model.run(batch, edits={"hook_embed": lambda x: x + h * direction}).logits
            rows = torch.arange(len(batch))
            return logits[rows, batch.answer] - logits[rows, batch.foil]

        expected = m.slope(moved)
        assert float(expected.abs().min()) > 1e-3
        assert m.close((found * direction).sum((1, 2)), expected, 1e-6)


def test_an_edit_of_the_embeddings_replaces_image_features() -> None:
    model = m.tiny_llava()
    (e, *_) = m.vision_examples()
    batch = model.batch([e])
    assert batch.counterfactual is not None
    other = model.run(batch.counterfactual, ["hook_embed"])["hook_embed"]
    swapped = model.run(batch, edits={"hook_embed": lambda x: torch.where(batch.image_mask[..., None], other, x)})
    assert torch.equal(swapped.logits, model.run(batch.counterfactual).logits)  # only the picture differs


def _with_patches(e: EncodedExample, changed: list[int]) -> EncodedExample:
    """The example whose counterfactual differs in some image features alone."""
    assert e.image is not None
    features = e.image.clone()
    features[changed] += torch.randn(len(changed), features.shape[1], generator=torch.Generator().manual_seed(7))
    return replace(e, counterfactual=e.tokens, counterfactual_image=features)


_FIRST, _SECOND, _THIRD, _FOURTH = range(4)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize(
    ("make", "shared"),
    [
        (lambda e: [e[_FIRST]], lambda e, side: 1),  # another picture: up to the first patch
        (lambda e: [_with_patches(e[_FOURTH], [8])], lambda e, side: 3),  # the last patch: an image is never cut
        (lambda e: [_with_patches(e[_FOURTH], [0])], lambda e, side: 3),
        (lambda e: [e[_SECOND]], lambda e, side: 11),  # another word behind the same picture
        (list, lambda e, side: 1 if side == "right" else 0),  # columns that no row's picture touches
    ],
    ids=["picture", "late patch", "early patch", "text", "all"],
)
def test_sharing_a_prefix_changes_nothing(
    make: Callable[[tuple[EncodedExample, ...]], list[EncodedExample]],
    shared: Callable[[object, str], int],
    padding_side: str,
) -> None:
    model = m.tiny_llava(padding_side=padding_side)
    batch = model.batch(make(m.vision_examples()))
    tail = model.share_prefix(batch)
    assert tail.mask.shape == batch.mask.shape
    n = batch.tokens.shape[1] - tail.tokens.shape[1]
    if len(batch) == 1:
        assert n == shared(None, padding_side)
    assert batch.counterfactual is not None and tail.counterfactual is not None
    assert m.close(model.run(tail).logits, model.run(batch).logits, 2e-5)
    assert m.close(model.run(tail.counterfactual).logits, model.run(batch.counterfactual).logits, 2e-5)
    for layer in range(model.n_layers):
        z = hook_name("z", layer)
        heads = (torch.arange(model.n_heads) == 1)[:, None]

        def patched(b: object, name: str = z, heads: Tensor = heads) -> Tensor:
            values = replacement_values(model, b, [name], "counterfactual", None)[name]
            return model.run(b, edits={name: lambda x: torch.where(heads, values, x)}).logits

        assert m.close(patched(tail), patched(batch), 2e-5)


def test_bfloat16_gives_the_plain_models_logits() -> None:
    processor = m.tiny_processor()
    hf = m.fresh_llava().to(torch.bfloat16)
    model = Model(hf, processor.tokenizer, processor=processor)
    e = model.encode(m.vision_examples()[0].example)
    assert e.image is not None and e.image.dtype == torch.bfloat16
    with torch.no_grad():
        pixels = m.pixels(e.example.image).to(torch.bfloat16)
        plain = hf(input_ids=torch.tensor([e.tokens]), pixel_values=pixels, use_cache=False).logits[0, -1]
    assert m.close(model.run(model.batch([e])).logits[0].float(), plain.float(), 0.05)


@pytest.mark.parametrize("family", [f for f in m.SEEING if f != "paligemma"])  # reads a prompt otherwise than its text
def test_what_it_writes_is_greedy_over_plain_calls(family: str) -> None:
    model = m.seeing(family)
    for e in (v.example for v in m.vision_examples()[1::2]):
        ids: list[int] = []
        prompt = e.prompt
        for _ in range(5):
            ids.append(int(_plain_logits(model, prompt, e.image).argmax()))
            prompt = f"{e.prompt} {m.words(ids)}"
        assert all(3 <= i < 96 for i in ids)  # words, none of them the end of the text
        # what stands behind the prompt, its space included
        assert model.write(e, 5) == f" {m.words(ids)}"
        assert model.write(e, 2) == f" {m.words(ids[:2])}"


# --- FFN activations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3", "gpt2", "neox_parallel", "opt"])
def test_hook_act_is_the_activation_functions_output(family: str) -> None:
    model, plain = m.hooked(family), m.plain_run(family)
    e = m.EXAMPLES[0]
    names = [hook_name(site, layer) for site in ("act", "post") for layer in range(model.n_layers)]
    run = model.run(model.batch([e]), names)
    for layer, block in enumerate(plain.blocks):
        act, post = run[hook_name("act", layer)][0], run[hook_name("post", layer)][0]
        if family in ("gpt2", "neox_parallel", "opt"):
            assert torch.equal(act, post)
            continue
        seen: list[Tensor] = []
        handle = block.mlp.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0][0]))
        plain.run(e.tokens)
        handle.remove()
        gate = block.mlp.gate_proj.weight @ seen[0].T
        function = torch.nn.functional.gelu if family == "gemma2" else torch.nn.functional.silu
        expected = function(gate, approximate="tanh") if family == "gemma2" else function(gate)
        assert m.close(act, expected.T)
        assert m.close(post, expected.T * (seen[0] @ block.mlp.up_proj.weight.T))


def test_hook_act_of_a_model_that_sees() -> None:
    model = m.tiny_llava()
    plain = m.Plain("llava", model.hf)
    e = m.vision_examples()[1]
    run = model.run(model.batch([e]), [hook_name("act", layer) for layer in range(model.n_layers)])
    for layer, block in enumerate(plain.blocks):
        seen: list[Tensor] = []
        handle = block.mlp.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0][0]))
        plain.run(e.tokens, pixel_values=m.pixels(e.example.image))
        handle.remove()
        assert m.close(run[hook_name("act", layer)][0], torch.nn.functional.silu(block.mlp.gate_proj(seen[0])), 2e-5)


# --- marks and examples -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", m.SEEING)
def test_marks_stand_where_their_words_are(family: str) -> None:
    model = m.seeing(family)
    for e in _encoded(model):
        start = e.example.prompt.split()[0], e.example.prompt.split(IMAGE)[1].split()[0]
        at = model.mark_positions(e, "label")
        assert [model.tokenizer.decode([e.tokens[i]]) for i in at] == list(start)


def test_marks_where_the_processors_image_token_has_another_length() -> None:
    tokenizer = copy.deepcopy(m.tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<a_much_longer_image_token>"]})
    processor = m.tiny_processor(image_token="<a_much_longer_image_token>", tokenizer=tokenizer)
    model = Model(m.fresh_llava(), tokenizer, processor=processor, prove=False)
    for original in m.vision_examples():
        e = model.encode(original.example)
        assert e.tokens == original.tokens
        assert model.mark_positions(e, "label") == m.tiny_llava().mark_positions(original, "label")
    with pytest.raises(ExampleError, match="keeps for images"):
        model.encode(Example(f"w1 {IMAGE} <a_much_longer_image_token>", "w2", image=m.picture(0)))


def test_coverage_of_a_region_by_name() -> None:
    model = m.tiny_llava()
    e = m.vision_examples()[1]
    expected = torch.zeros(3, 3)
    expected[1, 1] = 1  # (21, 14) to (35, 28) of 56 × 42, of which columns 7 to 48 are seen
    assert torch.equal(model.patch_coverage(e, "object"), expected)
    assert torch.equal(model.patch_coverage(e, "background"), 1 - expected)
    with pytest.raises(ExampleError, match="no image region called 'hat'"):
        model.patch_coverage(e, "hat")


def test_pictures_of_other_examples_do_not_change_a_row() -> None:
    model = m.tiny_llava()
    alone = torch.cat([model.run(model.batch([e])).logits for e in m.vision_examples()])
    assert m.close(model.run(model.batch(m.vision_examples())).logits, alone, 1e-5)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Example("w1 w2", "w3", image=m.picture(0)), "has 0 <image> placeholders, expected exactly one"),
        (Example("<image> <image>", "w3", image=m.picture(0)), "has 2 <image> placeholders, expected exactly one"),
        (Example("w1 <image>", "w3"), "has a place for an image (<image>), but no image was given"),
        (Example("w1 <image>", "w3 w4", image=m.picture(0)), "the answer 'w3 w4' is 2 tokens"),
        (Example("w1 <image>", "w3", image=m.picture(0, (5, 5))), "is 5 × 5 pixels; at least 8 × 8 are needed"),
        (
            Example("w1 <image>", "w3", counterfactual="w1 w2 <image>", image=m.picture(0)),
            "the counterfactual is 11 tokens long and the prompt 10",
        ),
        (Example(f"{'w1 ' * 60}<image>", "w3", image=m.picture(0)), "the prompt is 69 tokens long"),
    ],
)
def test_examples_that_cannot_be_used_are_refused_with_one_sentence(example: Example, message: str) -> None:
    with pytest.raises(ExampleError) as caught:
        m.tiny_llava().encode(example)
    assert message in str(caught.value)


def test_a_text_only_model_refuses_an_image() -> None:
    with pytest.raises(ExampleError, match="llama reads text only and cannot look at an image"):
        m.hooked("llama").encode(Example("w1 <image>", "w3", image=m.picture(0)))


def test_a_batch_with_and_without_images_is_refused() -> None:
    model = m.tiny_llava()
    with pytest.raises(ExampleError, match="mixes examples with and without an image"):
        model.batch([m.vision_examples()[0], model.encode(Example("w1 w2", " w3"))])


# --- models that are not what they say --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil", [lambda x: x.flip(0), lambda x: 1.05 * x, lambda x: x + 0.1], ids=["order", "scale", "shift"]
)
def test_self_proof_finds_wrong_image_features(
    spoil: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Vision.features
    monkeypatch.setattr(Vision, "features", lambda self, inputs: spoil(right(self, inputs)))
    processor = m.tiny_processor()
    with pytest.raises(ModelError, match=r"self-proof of spoilt .* failed at the image features"):
        Model(m.fresh_llava(), processor.tokenizer, name="spoilt", processor=processor)


def test_a_processor_that_makes_another_number_of_tokens_is_refused() -> None:
    processor = m.tiny_processor(num_additional_image_tokens=0)
    with pytest.raises(
        ModelError, match=r"grid of odd cannot be established: .* 8 image tokens .* choose another model"
    ):
        Model(m.fresh_llava(), processor.tokenizer, name="odd", processor=processor)


def test_a_processor_that_does_not_fit_the_tower_is_refused() -> None:
    hf, processor = m.fresh_llava(), m.tiny_processor()
    hf.config.vision_feature_select_strategy = "full"  # ten features a picture, the class token among them
    with pytest.raises(ModelError, match="the processor and the vision tower of odd do not fit each other"):
        Model(hf, processor.tokenizer, name="odd", processor=processor)


@pytest.mark.parametrize("size", [(10_000, 8), (8, 10_000)])
def test_a_picture_that_would_grow_without_bounds_is_refused_before_it_does(size: tuple[int, int]) -> None:
    """80,000 pixels become 2 million where the shorter side is resized to 42, and 141 million where to LLaVA-1.5's."""
    model = m.Model(m.fresh_llava(), m.seeing_tokenizer(), name="llava", processor=m.tiny_processor())
    example = Example("w5 <image> w3", " w7", image=Image.new("RGB", size))
    assert len(model.encode(example).tokens) == 11
    model.vision.processor.image_processor.size = {"shortest_edge": 336}
    with pytest.raises(ExampleError, match=r"would make 141,120,000 pixels large for a shorter side of 336"):
        model.encode(example)
    assert model.encode(replace(example, image=m.picture(0))).tokens


def test_a_processor_that_does_not_say_its_patch_size_takes_that_of_the_vision_tower(tmp_path: Path) -> None:
    """As older LLaVA folders have it."""
    hf, processor = m.fresh_llava(), m.tiny_processor()
    example = Example("w5 <image> w3", " w7", image=m.picture(0))
    expected = m.Model(hf, processor.tokenizer, processor=processor).encode(example)
    hf.save_pretrained(tmp_path)
    processor.patch_size = processor.vision_feature_select_strategy = None
    processor.num_additional_image_tokens = 0
    processor.save_pretrained(tmp_path)
    found = load_model(str(tmp_path)).encode(example)
    assert found.tokens == expected.tokens
    assert torch.equal(found.image, expected.image)


def test_what_ends_every_text_is_left_out_behind_a_picture_too() -> None:
    ending = m.seeing_tokenizer()
    ending._tokenizer.post_processor = TemplateProcessing(single="w1 $A w2", special_tokens=[("w1", 1), ("w2", 2)])
    hf = m.fresh_llava()
    model = m.Model(hf, ending, processor=m.tiny_processor(tokenizer=ending))
    example = Example("w5 <image> w3", " w7", image=m.picture(0), marks={"word": ((11, 13),)})
    encoded = model.encode(example)
    assert encoded.tokens == (1, 5, *[m.IMAGE_ID] * 9, 3)
    assert model.mark_positions(encoded, "word") == [11]
    inputs = model.vision.inputs(example.prompt, example.image)
    assert inputs["input_ids"][0].tolist() == [*encoded.tokens, 2]
    with torch.no_grad():
        expected = hf(**{k: v[:, :-1] if v.dim() == 2 else v for k, v in inputs.items()}).logits[0, -1]
    assert m.close(model.run(model.batch([encoded])).logits[0], expected, 1e-4)


# --- every family that sees -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", m.SEEING)
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_behind_a_shared_prefix_every_family_sees_what_it_sees_in_the_full_run(family: str, padding_side: str) -> None:
    """Rows alone and together; some share text and picture with their counterfactual, some text alone."""
    model = _seeing(family, padding_side)
    encoded = _encoded(model)
    for rows in (encoded, encoded[1:2], encoded[:1]):
        batch = model.batch(rows)
        shared = model.share_prefix(batch)
        # PaliGemma's prompts are read in both directions, and Gemma 3's pictures are run with all before them
        whole = family == "paligemma" or (family == "gemma3" and rows[0] is encoded[0])
        assert (shared.tokens.shape == batch.tokens.shape) == whole
        assert batch.counterfactual is not None and shared.counterfactual is not None
        for full, part in ((batch, shared), (batch.counterfactual, shared.counterfactual)):
            assert m.close(model.run(part).logits, model.run(full).logits)


@pytest.mark.parametrize("family", m.SEEING)
def test_what_follows_a_prompt_is_seen_as_in_one_call(family: str) -> None:
    model = _seeing(family)
    e = m.vision_examples()[0].example
    continued = model.continued(model.batch([model.encode(e)]), [(), (41,), (41, 9)])[0]
    if family == "paligemma":  # what it writes is read in one direction, so it is no longer prompt
        inputs = model.vision.processor(images=e.image, text=e.prompt, return_tensors="pt")  # type: ignore[union-attr]
        width = inputs["input_ids"].shape[1]
        more = torch.tensor([[41, 9]])
        plain = model.hf(
            input_ids=torch.cat([inputs["input_ids"], more], 1),
            attention_mask=torch.ones(1, width + 2, dtype=torch.long),
            token_type_ids=torch.tensor([[0] * width + [1, 1]]),
            pixel_values=inputs["pixel_values"],
            use_cache=False,
        ).logits[0, -3:]
    else:
        texts = (e.prompt, f"{e.prompt} w41", f"{e.prompt} w41 w9")
        plain = torch.stack([_plain_logits(model, text, e.image) for text in texts])
    assert m.close(continued, plain)


@pytest.mark.parametrize("family", m.SEEING)
def test_zeroing_a_head_is_exact_in_every_family_that_sees(family: str) -> None:
    model, (head, layer) = _seeing(family), (2, 1)
    encoded = _encoded(model)
    edits = {hook_name("z", layer): lambda z: z * (torch.arange(z.shape[-2]) != head)[:, None]}
    found = model.run(model.batch(encoded), edits=edits).logits
    text_model = model.hf.model.text_model if hasattr(model.hf.model, "text_model") else model.hf.model.language_model
    width = model.d_head

    def zeroed(module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = args[0].clone()
        z[..., head * width : (head + 1) * width] = 0
        return (z,)

    handle = text_model.layers[layer].self_attn.o_proj.register_forward_pre_hook(zeroed)
    try:
        expected = [_plain_logits(model, e.example.prompt, e.example.image) for e in encoded]
    finally:
        handle.remove()
    assert m.close(found, torch.stack(expected))
    assert not m.close(found, model.run(model.batch(encoded)).logits, 1e-3)


@pytest.mark.parametrize("family", ["gemma3", "qwen2_vl", "mistral3"])
def test_a_model_that_sees_reads_text_as_it_does_without_attriboard(family: str) -> None:
    hf, processor = m.fresh_seeing(family)
    model = Model(hf, processor.tokenizer, name=family)
    for batch in (model.batch(m.EXAMPLES), model.share_prefix(model.batch(m.EXAMPLES))):
        expected = torch.stack([hf(torch.tensor([list(e.tokens)])).logits[0, -1] for e in m.EXAMPLES])
        assert m.close(model.run(batch).logits, expected)


@pytest.mark.parametrize("family", ["gemma3", "qwen2_vl", "mistral3", "llava"])
def test_patches_in_another_order_than_row_by_row_are_refused(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transposed grid has the right number of patches and the right logits; only its maps would be wrong."""
    right = Vision._entrance

    def transposed(self: Vision, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        seen = right(self, inputs)
        at = inputs["input_ids"][0] == self.placeholder
        order = torch.arange(9).view(3, 3).T.flatten()
        embeds = seen["inputs_embeds"].clone()
        embeds[0, at] = embeds[0, at][order]
        return {**seen, "inputs_embeds": embeds}

    vision = _seeing(family).vision
    assert vision is not None
    vision.prove()
    monkeypatch.setattr(Vision, "_entrance", transposed)
    with pytest.raises(ModelError, match="do not stand in one row-major grid of 3 × 3"):
        vision.prove()


def test_families_whose_pictures_form_no_grid_are_refused_with_the_reason() -> None:
    for config, why in (
        (transformers.MllamaConfig(), "cross-attention"),
        (transformers.LlavaNextConfig(), "more than one place"),
        (transformers.Idefics2Config(), "fixed number of queries"),
        (transformers.LlavaOnevisionConfig(), "not known to form one grid"),
        (transformers.Qwen3VLConfig(), "deepstack_visual_indexes"),
    ):
        with pytest.raises(ModelError, match=why):
            architecture_of(config)
