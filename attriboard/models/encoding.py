"""From an example's strings, pictures, marks and regions to one model's tokens and positions."""

from __future__ import annotations

from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from ..errors import ExampleError
from ..task import IMAGE, Example, image_hash
from .batch import EncodedExample
from .vision import Vision

REMEMBERED = 512
"""The most pictures whose features are kept."""


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
        """The token id of padding; 0 where the tokenizer has none."""
        return getattr(self.tokenizer, "pad_token_id", None) or 0

    def pieces(self, text: str) -> list[str]:
        """The tokens of a text, each decoded by itself."""
        return [self.tokenizer.decode([i]) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def encode(self, example: Example) -> EncodedExample:
        """An example in the model's tokens.

        Raises:
            ExampleError: an empty or too long prompt, an answer or foil that is not one token, a counterfactual of
                another length, an image for a model that reads text only or none for a prompt with a place for one.
        """
        prompt = self._prompt(example.prompt, example.image)
        prompt_ids: list[int] = self.tokenizer(prompt)["input_ids"]
        if not self.tokenizer(prompt, add_special_tokens=False)["input_ids"]:
            raise ExampleError("the prompt is empty.")
        answer = self._one_token(prompt, prompt_ids, example.answer, "answer")
        foil = None if example.foil is None else self._one_token(prompt, prompt_ids, example.foil, "foil")
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
        return EncodedExample(example, ids, answer, foil, other, features, other_features)

    def why_not(self, example: Example) -> str | None:
        """None when :meth:`encode` accepts the example, else the reason."""
        try:
            self.encode(example)
        except ExampleError as error:
            return str(error)
        return None

    def _one_token(self, prompt: str, prompt_ids: list[int], text: str, role: str) -> int:
        """The token id of what follows a prompt: as it is split there, or else by itself."""
        joint = self.tokenizer(prompt + text)["input_ids"]
        if joint[: len(prompt_ids)] == prompt_ids and len(joint) == len(prompt_ids) + 1:
            return joint[-1]
        by_itself = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(by_itself) == 1:
            return by_itself[0]
        raise ExampleError(
            f"the {role} {text!r} is {len(by_itself)} tokens for {self.name} "
            f"({' | '.join(self.pieces(text)) or 'none'}); "
            f"choose one that is a single token (a leading space often decides)."
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
        prompt = self._prompt(text, image)
        if image is None or self.vision is None:
            return tuple(self.tokenizer(prompt)["input_ids"]), None
        inputs = self.vision.inputs(text, image)
        key = image_hash(image)
        if key not in self._features:
            with torch.no_grad():
                features = self.vision.features(inputs).cpu()
            while len(self._features) >= REMEMBERED:
                self._features.pop(next(iter(self._features)))
            self._features[key] = features
        return tuple(inputs["input_ids"][0].tolist()), self._features[key]

    def write(self, example: Example, n: int) -> str:
        """What the model writes after an example's prompt: at most ``n`` tokens, greedily, up to the end of a line."""
        if example.image is not None and self.vision is not None:
            inputs: dict[str, Any] = self.vision.inputs(example.prompt, example.image)
        else:
            inputs = dict(self.tokenizer(self._prompt(example.prompt, example.image), return_tensors="pt"))
            inputs = {k: v.to(self.hf.device) for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
        with torch.no_grad():
            ids = self.hf.generate(**inputs, max_new_tokens=n, do_sample=False, pad_token_id=self.pad)
        # some tokenizers drop a space before the first token they decode, so the prompt is decoded with what follows
        before, whole = (
            str(self.tokenizer.decode(row, skip_special_tokens=True)) for row in (inputs["input_ids"][0], ids[0])
        )
        return whole[len(before) :].split("\n", 1)[0]

    def mark_positions(self, encoded: EncodedExample, mark: str) -> list[int]:
        """Token positions (counted from the first real token) that a named mark of the example covers."""
        text = self._prompt(encoded.example.prompt, encoded.example.image)
        tokenized = self.tokenizer(text, return_offsets_mapping=True)
        offsets = tokenized["offset_mapping"]
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
        ids, tokens = tokenized["input_ids"], list(encoded.tokens)
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
