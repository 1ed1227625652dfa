"""From an example's strings, pictures, marks and regions to one model's tokens and positions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import GenerationConfig

from ..errors import ExampleError
from ..task import IMAGE, Example, image_hash
from .attention import put
from .batch import EncodedExample
from .vision import Vision

REMEMBERED = 512
"""The most pictures whose features are kept."""
_AS_IT_IS: dict[str, bool] = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
"""Decoding that changes nothing."""


def _check_unicode(text: str) -> None:
    """Raises ExampleError for a text that no tokenizer can read, such as bytes typed in another encoding."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ExampleError(
            f"the text {text[:60]!r} is not valid Unicode at character {error.start}; type it in UTF-8."
        ) from error


class Encoder:
    """A model's tokenizer and processor at work.

    Args:
        hf: the Hugging Face model, which only writes.
        tokenizer: its tokenizer; None where no text is ever given.
        vision: of a vision-language model.
        name: of the model, for messages.
        max_length: the longest prompt it takes, in tokens.
    """

    def __init__(self, hf: Any, tokenizer: Any, vision: Vision | None, name: str, max_length: int) -> None:
        self.hf, self.tokenizer, self.vision, self.name, self.max_length = hf, tokenizer, vision, name, max_length
        self._features: dict[str, Tensor] = {}

    @property
    def pad(self) -> int:
        """The token id of padding, which is masked; 0 where the tokenizer has none that the model can embed."""
        pad = getattr(self.tokenizer, "pad_token_id", None)
        return pad if pad is not None and 0 <= pad < self._embedded else 0

    @functools.cached_property
    def _embedded(self) -> int:
        """How many token ids have an embedding; a tokenizer may have more."""
        return int(self.hf.get_input_embeddings().weight.shape[0])

    def pieces(self, text: str) -> list[str]:
        """The tokens of a text, each decoded by itself."""
        return self._decoded(self._own_tokens(text))

    def tokens(self, text: str) -> tuple[int, ...]:
        """The token ids of a text, begun as the tokenizer begins every text, and ended with the text's own last token.

        Where the tokenizer puts a token before every text (BOS, ``[CLS]``), it stands there once, also if it is typed.
        What the tokenizer puts behind every text (EOS, ``[SEP]``) is left out: a continuation follows the text.

        Raises:
            ExampleError: the text is no Unicode, or is split in another way without special tokens than with them.
        """
        ids, front, back = self._bounds(text)
        return tuple(ids[front : len(ids) - back])

    def continuation(self, prompt: str, text: str) -> tuple[int, ...]:
        """The token ids of ``text`` where it stands directly behind ``prompt``, whose tokens stay as they are.

        Decoding the prompt's tokens and these gives the prompt and the text, and no other text.

        Raises:
            ExampleError: the tokenizer has no such tokens, since it would merge the two or put a space between them.
        """
        ids = self.tokens(prompt)
        joint = self.tokens(prompt + text)
        if len(joint) > len(ids) and joint[: len(ids)] == ids:
            return joint[len(ids) :]
        alone = self._own_tokens(text)
        before, both = (self.tokenizer.decode(list(x), **_AS_IT_IS) for x in (ids, (*ids, *alone)))
        if alone and both == before + text:
            return alone
        raise ExampleError(
            f"{text!r} directly behind a prompt that ends in {prompt[-20:]!r} has no tokens of its own for {self.name} "
            f"(the two together are ... {' | '.join(self._decoded(joint[-4:]))}); move a space from the end of the "
            f"prompt to the beginning of what follows, or add one there."
        )

    def _own_tokens(self, text: str) -> tuple[int, ...]:
        _check_unicode(text)
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _bounds(self, text: str) -> tuple[list[int], int, int]:
        """A text's ids with all special tokens, and how many of them to leave out in front and at the back."""
        own = list(self._own_tokens(text))
        ids: list[int] = list(self.tokenizer(text)["input_ids"])
        start = next((k for k in range(len(ids) - len(own) + 1) if ids[k : k + len(own)] == own), None)
        if start is None:
            raise ExampleError(
                f"the tokenizer of {self.name} splits {text[:60]!r} in another way without special tokens than with "
                f"them, so its last token is not known; choose another tokenizer."
            )
        typed = own[:start] == ids[:start]
        return ids, start if typed else 0, len(ids) - start - len(own)

    def _decoded(self, ids: Sequence[int]) -> list[str]:
        return [self.tokenizer.decode([i]) for i in ids]

    def encode(self, example: Example) -> EncodedExample:
        """An example in the model's tokens.

        Raises:
            ExampleError: an empty or too long prompt, an answer or foil that is not one token, a counterfactual of
                another length, an image for a model that reads text only or none for a prompt with a place for one.
        """
        prompt = self._prompt(example.prompt, example.image)
        if not self._own_tokens(prompt):
            raise ExampleError("the prompt is empty.")
        answer = self._one_token(prompt, example.answer, "answer")
        foil = None if example.foil is None else self._one_token(prompt, example.foil, "foil")
        if answer == foil:
            raise ExampleError(
                f"the answer {example.answer!r} and the foil {example.foil!r} are one token for {self.name}, so that "
                f"their difference is always 0; choose another foil."
            )
        ids, features = self._look(example.prompt, example.image)
        if len(ids) > self.max_length:
            raise ExampleError(
                f"the prompt is {len(ids)} tokens long, {self.name} takes at most {self.max_length}; shorten it."
            )
        if not example.has_counterfactual:
            return EncodedExample(example, ids, answer, foil, None, features)
        other, other_features = self._look(
            example.prompt if example.counterfactual is None else example.counterfactual,
            example.image if example.counterfactual_image is None else example.counterfactual_image,
        )
        if len(other) != len(ids):
            raise ExampleError(
                f"the counterfactual is {len(other)} tokens long and the prompt {len(ids)} for {self.name}; "
                f"they must be equally long, since activations are exchanged position by position."
            )
        if other == ids and (features is None or other_features is None or torch.equal(features, other_features)):
            raise ExampleError(
                f"the counterfactual has the same tokens as the prompt for {self.name}, so that exchanging activations "
                f"changes nothing; change the word that decides the answer."
            )
        return EncodedExample(example, ids, answer, foil, other, features, other_features)

    def why_not(self, example: Example) -> str | None:
        """None when :meth:`encode` accepts the example, else the reason."""
        try:
            self.encode(example)
        except ExampleError as error:
            return str(error)
        return None

    def _one_token(self, prompt: str, text: str, role: str) -> int:
        """The token id of what follows a prompt."""
        try:
            ids = self.continuation(prompt, text)
        except ExampleError:
            ids = self._own_tokens(text)
            if len(ids) == 1:
                raise
        if len(ids) != 1:
            pieces = " | ".join(self._decoded(ids)) or "none"
            raise ExampleError(
                f"the {role} {text!r} is {len(ids)} tokens for {self.name} ({pieces}); "
                f"choose one that is a single token (a leading space often decides)."
            )
        if ids[0] == getattr(self.tokenizer, "unk_token_id", None):
            raise ExampleError(f"the {role} {text!r} is not in the vocabulary of {self.name}; choose another.")
        self._check_embedded(ids)
        return ids[0]

    def _check_embedded(self, ids: Sequence[int]) -> None:
        placeholder = None if self.vision is None else self.vision.placeholder
        for i in ids:
            if i >= self._embedded and i != placeholder:
                raise ExampleError(
                    f"the tokenizer of {self.name} gives {self.tokenizer.decode([i])!r} the id {i}, but the model has "
                    f"{self._embedded} embeddings; load the tokenizer that belongs to the model."
                )

    def _prompt(self, text: str, image: Image | None) -> str:
        """The prompt as the tokenizer takes it, with one image token."""
        if image is None:
            if self.vision is not None and IMAGE in text:
                raise ExampleError(f"the prompt has a place for an image ({IMAGE}), but no image was given.")
            return text
        if self.vision is None:
            raise ExampleError(
                f"{self.name} reads text only and cannot look at an image; choose a vision-language model."
            )
        return self.vision.prompt(text)

    def _look(self, text: str, image: Image | None) -> tuple[tuple[int, ...], Tensor | None]:
        """The token ids of a prompt and, with an image, what the language model sees in its place."""
        if image is None or self.vision is None:
            ids = self.tokens(self._prompt(text, image))
            self._check_embedded(ids)
            return ids, None
        inputs = self._inputs(text, image)
        key = image_hash(image)
        if key not in self._features:
            with torch.no_grad():
                features = self.vision.features(inputs).cpu()
            while len(self._features) >= REMEMBERED:
                self._features.pop(next(iter(self._features)))
            self._features[key] = features
        return tuple(inputs["input_ids"][0].tolist()), self._features[key]

    def _inputs(self, text: str, image: Image | None) -> dict[str, Tensor]:
        """What the whole Hugging Face model takes for one prompt, its tokens those of :meth:`tokens`."""
        prompt = self._prompt(text, image)
        if image is None or self.vision is None:
            ids = torch.tensor([self.tokens(prompt)], device=self.hf.device)
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        inputs = self.vision.inputs(text, image)
        _, front, back = self._bounds(prompt)
        shape = inputs["input_ids"].shape
        return {k: v[:, front : shape[1] - back] if v.shape == shape else v for k, v in inputs.items()}

    def write(self, example: Example, n: int) -> str:
        """What the model writes after an example's prompt: at most ``n`` tokens, greedily, up to the end of a line."""
        inputs = self._inputs(example.prompt, example.image)
        # the checkpoint's own settings may forbid, repeat or prefer tokens; only its end of a text is taken from them
        greedy = GenerationConfig(
            max_new_tokens=n,
            do_sample=False,
            pad_token_id=self.pad,
            eos_token_id=self.hf.generation_config.eos_token_id,
        )
        with ExitStack() as stack, torch.no_grad():
            put(stack, self.hf, "generation_config", greedy)
            ids = self.hf.generate(**inputs)
        # some tokenizers drop a space before the first token they decode, so the prompt is decoded with what follows
        before, whole = (
            str(self.tokenizer.decode(row, skip_special_tokens=True)) for row in (inputs["input_ids"][0], ids[0])
        )
        return whole[len(before) :].split("\n", 1)[0]

    def mark_positions(self, encoded: EncodedExample, mark: str) -> list[int]:
        """Token positions (counted from the first real token) that a named mark of the example covers."""
        text = self._prompt(encoded.example.prompt, encoded.example.image)
        ids, front, back = self._bounds(text)
        kept = slice(front, len(ids) - back)
        offsets = self.tokenizer(text, return_offsets_mapping=True)["offset_mapping"][kept]
        place, longer = encoded.example.prompt.find(IMAGE), len(text) - len(encoded.example.prompt)
        spans = [
            (a + longer, b + longer) if encoded.image is not None and a > place else (a, b)
            for a, b in encoded.example.marks.get(mark, ())
        ]

        def touches(token: tuple[int, int], span: tuple[int, int]) -> bool:
            start, end = max(token[0], span[0]), min(token[1], span[1])
            return start < end and bool(text[start:end].strip())

        marked = [i for i, token in enumerate(offsets) if any(touches(token, span) for span in spans)]
        if encoded.image is None or self.vision is None:
            return marked
        ids, tokens = ids[kept], list(encoded.tokens)
        at = ids.index(self.vision.typed)  # one token here, one per patch and what stands around them for the model
        last = len(tokens) - 1 - tokens[::-1].index(self.vision.placeholder)
        behind = len(ids) - at - 1
        starts = [i for i in range(last + 1, len(tokens) - behind + 1) if tokens[i : i + behind] == ids[at + 1 :]]
        if tokens[:at] != ids[:at] or not starts:
            raise ExampleError(
                f"{self.name} splits the text around the image in another way than by itself, so marks cannot be "
                f"placed; put other text beside {IMAGE}: {encoded.example.prompt!r}."
            )
        return [i - at - 1 + starts[0] if i > at else i for i in marked if i != at]

    def patch_coverage(self, encoded: EncodedExample, region: str) -> Tensor:
        """``[rows, columns]`` in 0..1: the share of every patch that a named region of the example's image covers.

        Raises:
            ExampleError: the example has no such region, or the model reads text only.
        """
        mask = encoded.example.regions.get(region)
        if self.vision is None or mask is None:
            raise ExampleError(f"the example has no image region called {region!r}.")
        return self.vision.coverage(mask)
