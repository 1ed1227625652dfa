"""Strings to tokens, and marks to positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from attriboard.errors import ExampleError
from attriboard.model import Model
from attriboard.task import Example
from tests.bench.models import EXAMPLES, hooked, tiny, tokenizer, words


def characters() -> Any:
    """A tokenizer that splits everything into characters, a space being one of them."""
    vocab = {c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}
    fast = Tokenizer(BPE(vocab, []))
    fast.pre_tokenizer = ByteLevel(add_prefix_space=False)
    from tokenizers.decoders import ByteLevel as Decoder

    fast.decoder = Decoder()
    return PreTrainedTokenizerFast(tokenizer_object=fast)


@pytest.mark.parametrize("bos", [False, True])
def test_encode_gives_the_tokens_the_tokenizer_gives(bos: bool) -> None:
    model = Model(tiny("gpt2"), tokenizer(bos))
    for e in EXAMPLES:
        found = model.encode(e.example)
        start = (1,) if bos else ()
        assert found.counterfactual is not None
        assert e.counterfactual is not None
        assert found.tokens == (*start, *e.tokens)
        assert found.counterfactual == (*start, *e.counterfactual)
        assert (found.answer, found.foil) == (e.answer, e.foil)
        assert model.why_not(e.example) is None


def test_an_answer_of_several_tokens_is_refused_with_its_pieces() -> None:
    model = Model(tiny("gpt2"), characters(), name="tiny")
    with pytest.raises(ExampleError, match=r"the answer ' cat' is 4 tokens for tiny \(  \| c \| a \| t\)"):
        model.encode(Example("the", " cat"))
    with pytest.raises(ExampleError, match="the foil 'ok' is 2 tokens"):
        model.encode(Example("the", "a", foil="ok"))
    assert model.encode(Example("the", "a", foil="b")).foil == sorted(ByteLevel.alphabet()).index("b")
    assert "4 tokens" in (model.why_not(Example("the", " cat")) or "")


def test_a_counterfactual_of_another_length_is_refused_with_both_lengths() -> None:
    model = hooked("gpt2")
    with pytest.raises(ExampleError, match="counterfactual is 2 tokens long and the prompt 3"):
        model.encode(Example(words([4, 5, 6]), " w7", counterfactual=words([4, 5])))


def test_a_prompt_longer_than_the_model_takes_is_refused_with_both_lengths() -> None:
    model = hooked("gpt2")
    longest = model.encode(Example(words([4] * 64), " w7"))
    assert torch.isfinite(model.run(model.batch([longest])).logits).all()
    with pytest.raises(ExampleError, match=r"65 tokens long.* at most 64"):
        model.encode(Example(words([4] * 65), " w7"))


@pytest.mark.parametrize("bos", [False, True])
def test_an_empty_prompt_is_refused(bos: bool) -> None:
    with pytest.raises(ExampleError, match="empty"):
        Model(tiny("gpt2"), tokenizer(bos)).encode(Example("", " w7"))


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_marked_positions_point_at_the_marked_tokens_in_a_padded_batch(padding_side: str, bos: bool) -> None:
    model = Model(tiny("gpt2"), tokenizer(bos), padding_side=padding_side)
    encoded = [model.encode(e.example) for e in EXAMPLES]
    batch = model.batch(encoded)
    for b, (e, marked) in enumerate(zip(encoded, ([1, 3], [0, 2], [5], [1, 2, 4]))):
        positions = model.mark_positions(e, "label")
        assert positions == [p + bos for p in marked]
        columns = torch.tensor(positions) + model.first_position(batch)[b]
        assert batch.tokens[b, columns].tolist() == [EXAMPLES[b].tokens[p] for p in marked]
        assert model.mark_positions(e, "something else") == []


def test_a_mark_covers_every_token_it_touches_but_not_one_it_touches_only_with_a_space() -> None:
    model = Model(tiny("gpt2"), characters())
    text = "ab cd e"
    encoded = model.encode(Example(text, "x", marks={"m": ((1, 5),), "space": ((2, 3),), "two": ((0, 1), (6, 7))}))
    assert model.mark_positions(encoded, "m") == [1, 3, 4]
    assert model.mark_positions(encoded, "space") == []
    assert model.mark_positions(encoded, "two") == [0, 6]
