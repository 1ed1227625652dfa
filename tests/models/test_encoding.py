"""Strings to tokens, and marks to positions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import BPE, Unigram
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from tokenizers.processors import TemplateProcessing
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from attriboard.errors import ExampleError
from attriboard.interventions import measure_all
from attriboard.model import EncodedExample, Model
from attriboard.task import Example
from tests.bench.models import EXAMPLES, fresh, hooked, tiny, tokenizer, words


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
    hf = fresh("gpt2")
    hf.resize_token_embeddings(256)
    model = Model(hf, characters())
    text = "ab cd e"
    encoded = model.encode(Example(text, "x", marks={"m": ((1, 5),), "space": ((2, 3),), "two": ((0, 1), (6, 7))}))
    assert model.mark_positions(encoded, "m") == [1, 3, 4]
    assert model.mark_positions(encoded, "space") == []
    assert model.mark_positions(encoded, "two") == [0, 6]


SPACE = "▁"


def sentencepiece(bos: bool = True, eos: bool = False) -> Any:
    """As Llama-2's: a ``▁`` before every text and for every space; 0, 1 and 2 are unknown, BOS and EOS."""
    pieces = [f"{SPACE}{w}" for w in ["The", "capital", "of", "France", "is", "sky", "blue", "Paris", "London"]]
    pieces += [":", "Pa", "ris", "Lon", "don", ".", SPACE]
    inner = Tokenizer(Unigram([("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((p, -1.0) for p in pieces)], 0))
    inner.pre_tokenizer = Metaspace(prepend_scheme="always")
    inner.decoder = MetaspaceDecoder(prepend_scheme="always")
    single = " ".join(["<s>"] * bos + ["$A"] + ["</s>"] * eos)
    inner.post_processor = TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def chinese(folder: Path) -> Any:
    """BERT's tokenizer, which writes ``[CLS] text [SEP]``, as many Chinese GPT-2 models have it."""
    letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set("法国的首都是巴黎日本东京"))]
    (folder / "vocab.txt").write_text("\n".join(letters) + "\n", encoding="utf-8")
    return BertTokenizerFast(vocab=str(folder / "vocab.txt"))


def plain_difference(model: Model, tokens: Sequence[int], encoded: EncodedExample) -> float:
    with torch.no_grad():
        logits = model.hf(torch.tensor([list(tokens)])).logits[0, -1]
    return float(logits[encoded.answer] - logits[encoded.foil])


def test_the_last_token_of_a_prompt_is_the_last_of_its_text(tmp_path: Path) -> None:
    reader = chinese(tmp_path)
    model = Model(fresh("gpt2"), reader)
    text = "日本的首都是"
    encoded = model.encode(Example(text, "东", "巴", "法国的首都是", marks={"country": ((0, 2),)}))
    assert reader.convert_ids_to_tokens(list(encoded.tokens)) == ["[CLS]", *text]
    assert reader.convert_ids_to_tokens([encoded.answer, encoded.foil]) == ["东", "巴"]
    assert model.mark_positions(encoded, "country") == [1, 2]
    ids = reader(text)["input_ids"]
    assert reader.convert_ids_to_tokens(ids[-1]) == "[SEP]"
    found = float(measure_all(model, [encoded])[0, 0])
    assert found == pytest.approx(plain_difference(model, ids[:-1], encoded), rel=1e-4)
    assert found != pytest.approx(plain_difference(model, ids, encoded), rel=1e-2)


@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("typed", [False, True])
def test_bos_stands_once_and_eos_never_in_a_prompt(eos: bool, typed: bool) -> None:
    reader = sentencepiece(eos=eos)
    model = Model(fresh("llama"), reader)
    prompt = ("<s>" if typed else "") + "The capital of France is"
    encoded = model.encode(Example(prompt, " Paris", " London"))
    expected = ["<s>", *(f"{SPACE}{w}" for w in ["The", "capital", "of", "France", "is"])]
    assert reader.convert_ids_to_tokens(list(encoded.tokens)) == expected
    assert reader.convert_ids_to_tokens([encoded.answer, encoded.foil]) == [f"{SPACE}Paris", f"{SPACE}London"]


def test_the_model_writes_behind_the_text_and_not_behind_what_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(fresh("llama"), sentencepiece(eos=True))
    given: list[list[int]] = []
    true = model.hf.generate
    monkeypatch.setattr(model.hf, "generate", lambda **kw: given.append(kw["input_ids"][0].tolist()) or true(**kw))
    model.write(Example("The sky is", " blue"), 2)
    assert given == [list(model.tokens("The sky is"))]
    assert given[0][-1] != 2


@pytest.mark.parametrize("prompt", ["The capital of France is:", "The capital of France is: "])
def test_an_answer_is_the_exact_text_behind_the_prompt_or_refused(prompt: str) -> None:
    """'▁Paris' behind ':' would be another text, and one that was not asked for."""
    model = Model(fresh("llama"), sentencepiece(), name="spm")
    with pytest.raises(ExampleError, match=r"the answer 'Paris' is 2 tokens for spm \(Pa \| ris\)|directly behind"):
        model.encode(Example(prompt, "Paris", "London"))
    encoded = model.encode(Example("The capital of France is", " Paris", " London"))
    whole = model.tokenizer.decode([*encoded.tokens, encoded.answer])
    assert whole == model.tokenizer.decode(list(encoded.tokens)) + " Paris"


def test_a_space_that_belongs_to_the_answer_is_asked_for_there() -> None:
    model = Model(fresh("llama"), sentencepiece(), name="spm")
    with pytest.raises(ExampleError, match=r"'blue' directly behind .* move a space from the end of the prompt"):
        model.encode(Example("The sky is ", "blue"))


def test_what_decides_nothing_is_refused() -> None:
    """Questions to which every score would be zero."""
    model = Model(fresh("llama"), sentencepiece(), name="spm")
    prompt = "The capital of France is"
    with pytest.raises(ExampleError, match="the answer '🎊' is not in the vocabulary of spm"):
        model.encode(Example("The sky is ", "🎊", "🤖"))
    with pytest.raises(ExampleError, match="the foil '🤖' is not in the vocabulary"):
        model.encode(Example("The sky is ", ".", "🤖"))
    with pytest.raises(ExampleError, match="the answer ' Paris' and the foil ' Paris' are one token"):
        model.encode(Example(prompt, " Paris", " Paris"))
    with pytest.raises(ExampleError, match="the counterfactual has the same tokens as the prompt"):
        model.encode(Example(prompt, " Paris", " London", prompt))
    unknown = "The capital of {} is"
    with pytest.raises(ExampleError, match="the counterfactual has the same tokens as the prompt"):
        model.encode(Example(unknown.format("🎊"), " Paris", " London", unknown.format("🤖")))


@pytest.mark.parametrize("where", ["prompt", "answer", "foil", "counterfactual"])
def test_bytes_in_another_encoding_are_refused_in_one_sentence(where: str) -> None:
    """As the command line hands them over: ``\\xff`` becomes a lone surrogate."""
    strings = {"prompt": "w1 w2", "answer": " w3", "foil": " w4", "counterfactual": "w1 w5"}
    with pytest.raises(ExampleError, match="is not valid Unicode at character 1"):
        hooked("gpt2").encode(Example(**{**strings, where: "w\udcff"}))


@pytest.mark.parametrize("pad", ["[PAD]", None])
def test_padding_is_a_valid_token_whatever_the_tokenizer_says(pad: str | None) -> None:
    """An added ``[PAD]`` without a row in the embedding is masked like any other."""
    reader = sentencepiece()
    hf = fresh("llama")
    hf.resize_token_embeddings(len(reader))
    if pad:
        reader.add_special_tokens({"pad_token": pad})
        assert reader.pad_token_id == len(reader) - 1 == hf.get_input_embeddings().weight.shape[0]
    model = Model(hf, reader)
    encoded = [model.encode(Example(t, " Paris", " London")) for t in ("The sky is", "The capital of France is")]
    alone = torch.cat([measure_all(model, [e]) for e in encoded])
    torch.testing.assert_close(measure_all(model, encoded), alone, rtol=1e-4, atol=1e-4)


def test_a_token_without_an_embedding_is_refused_by_name() -> None:
    reader = sentencepiece()
    hf = fresh("llama")
    hf.resize_token_embeddings(len(reader))
    reader.add_tokens(["<tool>"])
    model = Model(hf, reader, name="tiny")
    with pytest.raises(ExampleError, match=rf"the tokenizer of tiny gives '<tool>' the id {len(reader) - 1}, but"):
        model.encode(Example("The <tool> is", " Paris"))


def test_writing_is_greedy_whatever_the_checkpoint_prefers() -> None:
    model = Model(fresh("llama"), tokenizer(True))
    free = model.write(Example("w5 w17", " w3"), 6)
    ids = list(model.tokens("w5 w17"))
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(model.hf(torch.tensor([ids])).logits[0, -1].argmax()))
    assert free == model.tokenizer.decode(ids)[len("w1 w5 w17") :]
    settings = model.hf.generation_config
    settings.suppress_tokens = ids[3:5]
    settings.no_repeat_ngram_size, settings.repetition_penalty, settings.min_new_tokens = 1, 5.0, 3
    assert model.write(Example("w5 w17", " w3"), 6) == free
    assert model.hf.generation_config is settings
