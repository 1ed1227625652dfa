"""A Hugging Face causal language model, hooked: the only module that touches its internals.

Activations carry TransformerLens' names (``blocks.3.attn.hook_z``). They are read and replaced by PyTorch's own
forward hooks on plain Hugging Face modules, found through :mod:`attriboard.models.architectures` and proven at load.

Shapes: ``B`` rows, ``T`` positions, ``H`` query heads, ``H_kv`` key/value heads, ``d_head``, ``d_model``,
``d_mlp`` FFN hidden units, ``V`` vocabulary.

| name                            | shape                 | what                                                   |
|---------------------------------|-----------------------|--------------------------------------------------------|
| ``hook_embed``                  | ``[B, T, d_model]``   | token embeddings, before any position embedding, with  |
|                                 |                       | image features in place of the placeholders            |
| ``blocks.l.hook_resid_pre``     | ``[B, T, d_model]``   | residual stream entering block ``l``                   |
| ``blocks.l.attn.hook_pattern``  | ``[B, H, T, T_keys]`` | attention weights after the softmax                    |
| ``blocks.l.attn.hook_v``        | ``[B, H, T_keys, d_head]`` | values, expanded to query heads (read only)       |
| ``blocks.l.attn.hook_z``        | ``[B, T, H, d_head]`` | head outputs before the output projection              |
| ``blocks.l.hook_attn_out``      | ``[B, T, d_model]``   | what attention adds to the residual stream             |
| ``blocks.l.hook_resid_mid``     | ``[B, T, d_model]``   | ``resid_pre + attn_out``                               |
| ``blocks.l.mlp.hook_act``       | ``[B, T, d_mlp]``     | output of the activation function, before a gated FFN  |
|                                 |                       | multiplies it (without a gate: ``hook_post``)          |
| ``blocks.l.mlp.hook_post``      | ``[B, T, d_mlp]``     | FFN coefficients, the input of the down-projection     |
| ``blocks.l.hook_mlp_out``       | ``[B, T, d_model]``   | what the FFN adds to the residual stream               |
| ``blocks.l.hook_resid_post``    | ``[B, T, d_model]``   | residual stream leaving block ``l``                    |

In blocks that run attention and FFN in parallel (GPT-J, GPT-NeoX), ``hook_resid_mid`` is a sum that the model itself
never forms.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import einops
import torch
from PIL.Image import Image, fromarray
from torch import Tensor, nn
from transformers import DynamicCache

from ..errors import ExampleError, ModelError
from ..task import IMAGE, Example, image_hash
from .architectures import VISION, Architecture, architecture_of
from .attention import Between, pattern_attention, put_between, write_out
from .vision import Vision

if TYPE_CHECKING:
    from ..truth import Truth

Edit = Callable[[Tensor], Tensor]


def hook_name(site: str, layer: int) -> str:
    """The full activation name of a site: ``hook_name("z", 3) == "blocks.3.attn.hook_z"``."""
    return f"blocks.{layer}.{_SITES[site]}"


_SITES = {
    "resid_pre": "hook_resid_pre",
    "pattern": "attn.hook_pattern",
    "v": "attn.hook_v",
    "z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "act": "mlp.hook_act",
    "post": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
_SITE_OF = {full: short for short, full in _SITES.items()}


def _parse(name: str) -> tuple[str, int]:
    if name == "hook_embed":
        return "embed", 0
    prefix, _, rest = name.partition(".")
    layer, _, site = rest.partition(".")
    if prefix != "blocks" or not layer.isdigit() or site not in _SITE_OF:
        raise KeyError(f"no activation is called {name!r}; names look like 'blocks.0.attn.hook_z'.")
    return _SITE_OF[site], int(layer)


@dataclass(frozen=True, eq=False)
class EncodedExample:
    """An example in one model's tokens; ``counterfactual`` has the length of ``tokens``.

    For an example with an image, ``tokens`` hold the placeholder once per patch, and ``image`` and
    ``counterfactual_image`` ``[n_patches, d_model]`` are what the language model sees there.
    """

    example: Example
    tokens: tuple[int, ...]
    answer: int
    foil: int | None
    counterfactual: tuple[int, ...] | None
    image: Tensor | None = None
    counterfactual_image: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of tokens ready to run.

    Attributes:
        tokens: ``[B, T]``.
        mask: ``[B, P + T]``, 0 at padding; ``P`` positions of a shared prefix may precede the tokens.
        positions: ``[B, T]`` position ids.
        image_mask: ``[B, T]`` bool, True where an image feature stands.
        last: ``[B]`` index into ``T`` of the last real token, the one that predicts the answer.
        answer, foil: ``[B]`` token ids; ``foil`` is -1 where there is none.
        examples: the encoded examples behind the rows.
        counterfactual: the paired prompts as a batch of the same shape, if every row has one.
        past: per layer the keys and values ``[B, H_kv, P, d_head]`` of the shared prefix.
        images: ``[B, n_patches, d_model]`` the image features; None where no image stands in ``tokens``.
    """

    tokens: Tensor
    mask: Tensor
    positions: Tensor
    image_mask: Tensor
    last: Tensor
    answer: Tensor
    foil: Tensor
    examples: tuple[EncodedExample, ...]
    counterfactual: Batch | None = None
    past: tuple[tuple[Tensor, Tensor], ...] = ()
    images: Tensor | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def real(self) -> Tensor:
        """``[B, T]``: True at real tokens, False at padding."""
        return self.mask[:, -self.tokens.shape[1] :].bool()

    def rows(self, index: Tensor) -> Batch:
        """The batch made of the given rows, which may repeat."""
        return Batch(
            tokens=self.tokens[index],
            mask=self.mask[index],
            positions=self.positions[index],
            image_mask=self.image_mask[index],
            last=self.last[index],
            answer=self.answer[index],
            foil=self.foil[index],
            examples=tuple(self.examples[i] for i in index.tolist()),
            counterfactual=None if self.counterfactual is None else self.counterfactual.rows(index),
            past=tuple((k[index], v[index]) for k, v in self.past),
            images=None if self.images is None else self.images[index],
        )


class Run:
    """One forward pass: the logits at each row's last token, and the captured activations by name."""

    def __init__(self, model: Model, batch: Batch, share: float) -> None:
        self._model, self._batch, self._share = model, batch, share
        self._raw: dict[str, Tensor] = {}
        self.logits: Tensor = torch.empty(0)

    def __getitem__(self, name: str) -> Tensor:
        return self._model._shaped(name, self._raw[name], self._batch)

    def stack(self, site: str, layers: Iterable[int] | None = None) -> Tensor:
        """One site at several layers, stacked on a new second axis: ``[B, L, ...]``."""
        layers = range(self._model.n_layers) if layers is None else layers
        return torch.stack([self[hook_name(site, layer)] for layer in layers], dim=1)

    def gradients(self, value: Tensor, names: Sequence[str], keep_graph: bool = False) -> dict[str, Tensor]:
        """Gradients of ``value.sum()`` at captured activations, shaped like them.

        Rows do not interact, so the gradient of the sum is each row's own gradient.
        """
        raw = [self._raw[name] for name in names]
        # an activation that cannot reach the value (at a last layer's early positions, say) has gradient zero
        grads = torch.autograd.grad(value.sum(), raw, retain_graph=keep_graph, allow_unused=True)
        self._model.cost.backward += 2 * self._share
        return {
            name: self._model._shaped(name, torch.zeros_like(x) if g is None else g, self._batch)
            for name, x, g in zip(names, raw, grads)
        }


@dataclass
class Cost:
    """Work done, in forward passes of one example: a backward pass counts as two forward passes.

    A pass that restarts at a layer or behind a shared prefix counts the fraction of positions and layers it ran.
    """

    forward: float = 0.0
    backward: float = 0.0

    @property
    def total(self) -> float:
        return self.forward + self.backward


def _get(root: nn.Module, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), root)


def _in_out(module: nn.Module) -> Tensor:
    """A projection's weight as ``[in, out]``, whether a Linear or GPT-2's Conv1D holds it."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.T if isinstance(module, nn.Linear) else weight


class Model:
    """A causal language model whose heads, neurons and residual stream can be read, replaced and restarted.

    Args:
        hf: a Hugging Face causal language model, or vision-language model, of a family in
            :mod:`attriboard.models.architectures`.
        tokenizer: its tokenizer; None when only token ids are used.
        processor: of a vision-language model; without it the model takes text only.
        name: as it stands in records.
        source: where the weights came from (a path, a hub id with its commit), for the record.
        batch_size: most rows in one forward pass.
        padding_side: "left" or "right"; results do not depend on it.
        truth: the mechanism, of a model that was built with a known one.

    Raises:
        ModelError: the family is unknown, a part found by the table does not behave as that part, or the truth names a
            component that the model does not have.
    """

    def __init__(
        self,
        hf: nn.Module,
        tokenizer: Any = None,
        name: str = "model",
        source: str = "in memory",
        batch_size: int = 16,
        padding_side: str = "left",
        prove: bool = True,
        processor: Any = None,
        truth: Truth | None = None,
    ) -> None:
        self.hf: Any = hf.eval().requires_grad_(False)
        self.tokenizer, self.name, self.source = tokenizer, name, source
        self.batch_size, self.padding_side = batch_size, padding_side
        self._seen: dict[str, Tensor] = {}
        whole: Any = self.hf.config
        self.config: Any = whole.get_text_config()
        self.architecture: Architecture = architecture_of(whole)
        self.cost = Cost()
        self._find_parts()
        self.vision: Vision | None = None
        if processor is not None:
            self.vision = Vision(self.hf, _get(self.hf, VISION[whole.model_type]), processor, name)
        self._forward_names = set(inspect.signature(type(self.hf).forward).parameters)
        if prove:
            self.prove()
        self.truth = truth
        if truth is not None:
            truth.check(self)

    # --- parts, by role -------------------------------------------------------------------------------------------

    def _find_parts(self) -> None:
        a = self.architecture
        try:
            self.blocks: list[Any] = list(_get(self.hf, a.layers))
            self._embed: Any = _get(self.hf, a.embed)
            self._final_norm: Any = _get(self.hf, a.final_norm)
            self._attention = [_get(b, a.attention) for b in self.blocks]
            self._attn_out = [_get(b, a.attn_out) for b in self.blocks]
            self._mlp_down = [_get(b, a.mlp_down) for b in self.blocks]
            self._mlp_act = [_get(b, a.mlp_act) if a.mlp_act else None for b in self.blocks]
            self._value = [_get(b, a.value) for b in self.blocks]
            self._ln1 = [_get(b, a.ln1) for b in self.blocks]
            self._attn_post = [_get(b, a.attn_post_norm) if a.attn_post_norm else None for b in self.blocks]
            self._mlp_post = [_get(b, a.mlp_post_norm) if a.mlp_post_norm else None for b in self.blocks]
        except AttributeError as error:
            raise ModelError(f"{self.name} says it is a {a.family} model, but {error}.") from error
        self.n_layers = len(self.blocks)
        self.n_heads: int = self.config.num_attention_heads
        self.n_kv_heads: int = getattr(self.config, "num_key_value_heads", None) or self.n_heads
        self.d_model: int = self._embed.weight.shape[1]
        self.d_head: int = _in_out(self._attn_out[0]).shape[0] // self.n_heads
        self.d_mlp: int = _in_out(self._mlp_down[0]).shape[0]
        self.d_vocab: int = self.hf.get_output_embeddings().weight.shape[0]

    @property
    def device(self) -> torch.device:
        return self._embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self._embed.weight.dtype

    @property
    def tolerance(self) -> float:
        """Two ways to compute one thing may differ by this share of its largest value; more is a mistake."""
        return 1e-3 if self.dtype in (torch.float32, torch.float64) else 0.1

    @property
    def max_length(self) -> int:
        """The longest prompt the model takes, in tokens."""
        return int(getattr(self.config, "max_position_embeddings", 0) or 10**9)

    @functools.cached_property
    def weights_sha256(self) -> str:
        """SHA-256 over every parameter's name, type, shape and bytes, as loaded (so it differs between precisions)."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.hf.state_dict().items()):
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    # --- weights, under TransformerLens' names --------------------------------------------------------------------

    def W_O(self, layer: int) -> Tensor:
        """``[H, d_head, d_model]``: each head's block of the output projection."""
        return einops.rearrange(
            _in_out(self._attn_out[layer]), "(head d_head) d_model -> head d_head d_model", head=self.n_heads
        )

    def b_O(self, layer: int) -> Tensor | None:
        return self._attn_out[layer].bias

    def W_out(self, layer: int) -> Tensor:
        """``[d_mlp, d_model]``: each neuron's output vector."""
        return _in_out(self._mlp_down[layer])

    def b_out(self, layer: int) -> Tensor | None:
        return self._mlp_down[layer].bias

    def W_V(self, layer: int) -> Tensor:
        """``[H, d_model, d_head]``: value projections, expanded so that every query head has its own."""
        weight = _in_out(self._value[layer])
        if self.architecture.fused == "thirds":
            weight = weight[:, 2 * self.d_model :]
        if self.architecture.fused == "per_head":
            weight = einops.rearrange(
                weight, "d_model (head qkv d_head) -> qkv d_model (head d_head)", qkv=3, head=self.n_heads
            )[2]
        heads = einops.rearrange(weight, "d_model (head d_head) -> head d_model d_head", d_head=self.d_head)
        return heads.repeat_interleave(self.n_heads // heads.shape[0], dim=0)

    def ln1_weight(self, layer: int) -> Tensor:
        """``[d_model]``: what the norm before attention multiplies by."""
        return self._norm_weight(self._ln1[layer])

    @property
    def W_U(self) -> Tensor:
        """``[V, d_model]``: the unembedding."""
        return self.hf.get_output_embeddings().weight

    @property
    def b_U(self) -> Tensor | None:
        return self.hf.get_output_embeddings().bias

    @property
    def final_norm_weight(self) -> Tensor:
        return self._norm_weight(self._final_norm)

    @property
    def final_norm_bias(self) -> Tensor | None:
        return getattr(self._final_norm, "bias", None)

    def final_norm_scale(self, resid: Tensor) -> Tensor:
        """``[..., 1]``: the final norm's divisor at ``resid`` ``[..., d_model]``, with the checkpoint's own epsilon."""
        return self._norm_scale(self._final_norm, resid)

    def _norm_weight(self, norm: Any) -> Tensor:
        weight: Tensor = norm.weight.float()
        return 1.0 + weight if self.architecture.unit_offset else weight

    def _norm_scale(self, norm: Any, x: Tensor) -> Tensor:
        x = x.float()
        epsilon: float = getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", None) or 0.0
        if not self.architecture.rms:
            x = x - x.mean(-1, keepdim=True)
        return (x.square().mean(-1, keepdim=True) + epsilon).sqrt()

    def attn_gain(self, layer: int, z: Tensor) -> Tensor | None:
        """``[..., d_model]``: the factor by which attention's output reaches the residual stream.

        None but for models with a norm after the sub-layer (Gemma 2 and 3): there the norm's scale is computed from
        the head outputs ``z`` ``[..., H, d_head]`` and held fixed, which makes the norm linear.
        """
        if self._attn_post[layer] is None:
            return None
        raw = einops.einsum(z, self.W_O(layer), "... head d_head, head d_head d_model -> ... d_model")
        return self._gain(self._attn_post[layer], raw, self.b_O(layer))

    def mlp_gain(self, layer: int, post: Tensor) -> Tensor | None:
        """``[..., d_model]``: as :meth:`attn_gain`, for the FFN with coefficients ``post`` ``[..., d_mlp]``."""
        if self._mlp_post[layer] is None:
            return None
        return self._gain(self._mlp_post[layer], post @ self.W_out(layer), self.b_out(layer))

    def _gain(self, norm: Any, raw: Tensor, bias: Tensor | None) -> Tensor:
        raw = raw if bias is None else raw + bias
        return self._norm_weight(norm) / self._norm_scale(norm, raw)

    def head_outputs(self, layer: int, z: Tensor) -> Tensor:
        """``[..., H, d_model]``: what each head adds to the residual stream, from ``z`` ``[..., H, d_head]``.

        The output projection's bias belongs to no head.
        """
        out = einops.einsum(z, self.W_O(layer), "... head d_head, head d_head d_model -> ... head d_model")
        gain = self.attn_gain(layer, z)
        return out if gain is None else out * gain.unsqueeze(-2).to(out.dtype)

    # --- tokens -----------------------------------------------------------------------------------------------------

    def pieces(self, text: str) -> list[str]:
        """The tokens of a text, each decoded by itself."""
        return [self.tokenizer.decode([i]) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def _one_token(self, prompt: str, prompt_ids: list[int], text: str, role: str) -> int:
        joint = self.tokenizer(prompt + text)["input_ids"]
        if joint[: len(prompt_ids)] == prompt_ids and len(joint) == len(prompt_ids) + 1:
            return joint[-1]
        alone = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(alone) == 1:
            return alone[0]
        raise ExampleError(
            f"the {role} {text!r} is {len(alone)} tokens for {self.name} ({' | '.join(self.pieces(text)) or 'none'}); "
            f"choose one that is a single token (a leading space often decides)."
        )

    def encode(self, example: Example) -> EncodedExample:
        """An example in this model's tokens.

        Raises:
            ExampleError: an empty or too long prompt, an answer or foil that is not one token, a counterfactual of
                another length, an image for a model without eyes or none for a prompt that has a place for one.
        """
        prompt = self._prompt(example.prompt, example.image)
        short: list[int] = self.tokenizer(prompt)["input_ids"]
        if not self.tokenizer(prompt, add_special_tokens=False)["input_ids"]:
            raise ExampleError("the prompt is empty.")
        answer = self._one_token(prompt, short, example.answer, "answer")
        foil = None if example.foil is None else self._one_token(prompt, short, example.foil, "foil")
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
        if key not in self._seen:
            with torch.no_grad():
                found = self.vision.features(inputs).cpu()
            while len(self._seen) >= 512:
                self._seen.pop(next(iter(self._seen)))
            self._seen[key] = found
        return tuple(inputs["input_ids"][0].tolist()), self._seen[key]

    def write(self, example: Example, n: int) -> str:
        """What the model writes after an example's prompt: at most ``n`` tokens, greedily, up to the end of a line."""
        if example.image is not None and self.vision is not None:
            inputs: dict[str, Any] = self.vision.inputs(example.prompt, example.image)
        else:
            inputs = dict(self.tokenizer(self._prompt(example.prompt, example.image), return_tensors="pt"))
            inputs = {k: v.to(self.device) for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
        pad = getattr(self.tokenizer, "pad_token_id", None) or 0
        with torch.no_grad():
            ids = self.hf.generate(**inputs, max_new_tokens=n, do_sample=False, pad_token_id=pad)
        # some tokenizers drop a space before the first token they decode, so the prompt is decoded with what follows
        before, whole = (
            str(self.tokenizer.decode(row, skip_special_tokens=True)) for row in (inputs["input_ids"][0], ids[0])
        )
        return whole[len(before) :].split("\n", 1)[0]

    def why_not(self, example: Example) -> str | None:
        """None when :meth:`encode` accepts the example, else the reason."""
        try:
            self.encode(example)
        except ExampleError as error:
            return str(error)
        return None

    def mark_positions(self, encoded: EncodedExample, mark: str) -> list[int]:
        """Token positions (counted from the first real token) that a named mark of the example covers."""
        text = self._prompt(encoded.example.prompt, encoded.example.image)
        found = self.tokenizer(text, return_offsets_mapping=True)
        offsets = found["offset_mapping"]
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
        at = found["input_ids"].index(self.vision.placeholder)  # one token here, one per patch for the model
        more = len(encoded.tokens) - len(offsets)
        return [i + more if i > at else i for i in marked if i != at]

    def patch_coverage(self, encoded: EncodedExample, region: str) -> Tensor:
        """``[rows, columns]`` in 0..1: the share of every patch that a named region of the example's image covers."""
        mask = encoded.example.regions.get(region)
        if self.vision is None or mask is None:
            raise ExampleError(f"the example has no image region called {region!r}.")
        return self.vision.coverage(mask)

    def batches(self, examples: Sequence[EncodedExample], batch_size: int | None = None) -> Iterator[Batch]:
        """The examples in order, padded to the longest of each batch."""
        size = batch_size or self.batch_size
        for start in range(0, len(examples), size):
            yield self.batch(examples[start : start + size])

    def batch(self, examples: Sequence[EncodedExample]) -> Batch:
        """One batch; its counterfactual is set if every example has one."""
        clean = self._rows([e.tokens for e in examples], examples, [e.image for e in examples])
        if any(e.counterfactual is None for e in examples):
            return clean
        others = self._rows(
            [e.counterfactual or () for e in examples], examples, [e.counterfactual_image for e in examples]
        )
        return replace(clean, counterfactual=others)

    def _rows(
        self,
        rows: Sequence[Sequence[int]],
        examples: Sequence[EncodedExample],
        images: Sequence[Tensor | None] = (),
    ) -> Batch:
        width = max(len(r) for r in rows)
        pad = getattr(self.tokenizer, "pad_token_id", None) or 0
        left = self.padding_side == "left"
        tokens = torch.full((len(rows), width), pad)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            at = slice(width - len(row), width) if left else slice(0, len(row))
            tokens[i, at] = torch.tensor(row)
            mask[i, at] = 1
        last = torch.tensor([width - 1 if left else len(r) - 1 for r in rows])
        foil = torch.tensor([-1 if e.foil is None else e.foil for e in examples])
        seen = [image for image in images if image is not None]
        if seen and len(seen) < len(rows):
            raise ExampleError("a batch mixes examples with and without an image; put them into batches of their own.")
        placeholder = -1 if self.vision is None or not seen else self.vision.placeholder
        batch = Batch(
            tokens=tokens,
            mask=mask,
            positions=(mask.cumsum(1) - 1).clamp(min=0),
            image_mask=(tokens == placeholder) & mask.bool(),
            last=last,
            answer=torch.tensor([e.answer for e in examples]),
            foil=foil,
            examples=tuple(examples),
            images=torch.stack(seen) if seen else None,
        )
        names = ("tokens", "mask", "positions", "image_mask", "last", "answer", "foil", "images")
        moved = {k: v.to(self.device) for k in names if (v := getattr(batch, k)) is not None}
        return replace(batch, **moved)

    def first_position(self, batch: Batch) -> Tensor:
        """``[B]``: the column of each row's first real token."""
        return batch.real.int().argmax(1)

    def share_prefix(self, batch: Batch) -> Batch:
        """The batch and its counterfactual behind the leading columns that they have in common.

        Attention is causal, so activations there are the same in both prompts and replacing the one by the other
        does nothing: keys and values of the prefix are computed once and only what follows is run. Exact, for
        interventions that exchange activations between the two prompts; not for zero or mean replacement.
        Returns the batch unchanged when nothing is shared.
        """
        other = batch.counterfactual
        if other is None or batch.past:
            return batch
        differs = (batch.tokens != other.tokens).any(0)
        if batch.images is not None and other.images is not None:
            changed = torch.zeros_like(batch.image_mask)
            changed[batch.image_mask] = (batch.images != other.images).any(-1).flatten()
            differs |= changed.any(0)
        n = int(differs.int().argmax()) if bool(differs.any()) else batch.tokens.shape[1] - 1
        n = min(n, int(batch.last.min()))
        if batch.images is not None and bool(batch.image_mask[:, n:].any()):
            n = min(n, int(batch.image_mask.any(0).int().argmax()))  # never cut through an image
        if n < 1:
            return batch
        head = replace(
            batch,
            tokens=batch.tokens[:, :n],
            mask=batch.mask[:, :n],
            positions=batch.positions[:, :n],
            image_mask=batch.image_mask[:, :n],
            images=batch.images if bool(batch.image_mask[:, :n].any()) else None,
        )
        past, _ = self._keys_and_values(head)
        self.cost.forward += len(batch) * n / batch.tokens.shape[1]

        def tail(b: Batch) -> Batch:
            placed = b.image_mask[:, n:]
            return replace(
                b,
                tokens=b.tokens[:, n:],
                positions=b.positions[:, n:],
                image_mask=placed,
                images=b.images if bool(placed.any()) else None,
                last=b.last - n,
                past=past,
            )

        return replace(tail(batch), counterfactual=tail(other))

    def _keys_and_values(self, batch: Batch) -> tuple[tuple[tuple[Tensor, Tensor], ...], Tensor]:
        """Per layer what later positions attend to, and the logits ``[B, V]`` at the last column."""
        cache = DynamicCache()
        with torch.no_grad(), self._images_in(batch):
            output = self.hf(**self._inputs(batch), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return tuple((layer.keys, layer.values) for layer in cache.layers), output.logits[:, -1]

    def continued(self, batch: Batch, paths: Sequence[Sequence[int]]) -> Tensor:
        """``[B, n, V]``: the logits after every row and each of ``n`` paths of tokens behind it; the rows run once.

        Args:
            batch: rows of one length, so that no padding stands between them and what follows.
            paths: token ids; the empty path gives the logits at the row's own last token.
        """
        if not bool(batch.real.all()):
            raise ValueError("the rows have different lengths; continue rows of one length at a time.")
        past, at_end = self._keys_and_values(batch)
        self.cost.forward += len(batch)
        found = []
        for path in paths:
            if not path:
                found.append(at_end)
                continue
            tokens = torch.tensor([list(path)] * len(batch), device=batch.tokens.device)
            mask = torch.cat([batch.mask, torch.ones_like(tokens)], 1)
            tail = replace(
                batch,
                tokens=tokens,
                mask=mask,
                positions=mask.cumsum(1)[:, -len(path) :] - 1,
                image_mask=torch.zeros_like(tokens, dtype=torch.bool),
                last=torch.full_like(batch.last, len(path) - 1),
                counterfactual=None,
                past=past,
                images=None,
            )
            found.append(self.run(tail).logits)
        return torch.stack(found, 1)

    # --- running ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _images_in(self, batch: Batch, gradients: bool = False) -> Iterator[None]:
        """While open, image features stand in place of the placeholders' embeddings.

        With gradients, the embeddings become leaves that need them, so that every later activation is in the graph.
        """
        if not gradients and batch.images is None:
            yield
            return

        def put(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            output = output.detach().requires_grad_() if gradients else output
            if batch.images is None:
                return output
            return output.masked_scatter(batch.image_mask[..., None], batch.images.to(output.dtype))

        handle = self._embed.register_forward_hook(put)
        try:
            yield
        finally:
            handle.remove()

    def embeddings(self, batch: Batch) -> Tensor:
        """``[B, T, d_model]``: ``hook_embed`` of a batch, without running the model."""
        with torch.no_grad(), self._images_in(batch):
            found: Tensor = self._embed(batch.tokens)
        return found

    def _inputs(self, batch: Batch) -> dict[str, Tensor]:
        inputs = {"input_ids": batch.tokens, "attention_mask": batch.mask}
        if "position_ids" in self._forward_names:
            inputs["position_ids"] = batch.positions
        return inputs

    def _shaped(self, name: str, raw: Tensor, batch: Batch) -> Tensor:
        site, _ = _parse(name)
        if site in ("pattern", "v"):
            return raw
        shape = batch.tokens.shape
        return raw.view(*shape, self.n_heads, self.d_head) if site == "z" else raw.view(*shape, -1)

    def run(
        self,
        batch: Batch,
        capture: Iterable[str] = (),
        edits: Mapping[str, Edit] | None = None,
        start: tuple[int, Tensor] | None = None,
        gradients: bool = False,
    ) -> Run:
        """One forward pass.

        Args:
            batch: the rows.
            capture: names of activations to keep, as they stand after any edit.
            edits: by activation name, a function from the activation to its replacement (same shape).
            start: ``(layer, resid)``: begin at that block with ``resid`` ``[B, T, d_model]`` as its input, bit for bit
                what the full pass would have computed if ``resid`` is the residual it had there.
            gradients: build the graph, so that :meth:`Run.gradients` works (parameters get none).

        Returns:
            logits ``[B, V]`` at each row's last token, and the captured activations.

        Raises:
            KeyError: an activation name that does not exist.
        """
        edits = dict(edits or {})
        capture = list(capture)
        layers_run = self.n_layers - (start[0] if start else 0)
        share = len(batch) * layers_run / self.n_layers * batch.tokens.shape[1] / batch.mask.shape[1]
        run = Run(self, batch, share)
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad() if gradients else torch.no_grad())
            stack.enter_context(self._images_in(batch, gradients))
            self._install(stack, run, batch, capture, edits)
            if start is not None:
                stack.enter_context(self._restart(*start, gradients))
            kwargs: dict[str, Any] = dict(self._inputs(batch), use_cache=False)
            if batch.past:
                cache = DynamicCache()
                for layer, (key, value) in enumerate(batch.past):
                    cache.update(key, value, layer)
                kwargs["past_key_values"] = cache
            ends, at = batch.last.unique(return_inverse=True)
            logits = self.hf(**kwargs, logits_to_keep=ends).logits
            run.logits = logits[torch.arange(len(batch), device=logits.device), at]
        self.cost.forward += share
        return run

    def _install(self, stack: ExitStack, run: Run, batch: Batch, capture: list[str], edits: dict[str, Edit]) -> None:
        """Registers the hooks that a run needs, to be removed when ``stack`` closes."""
        wanted = {*capture, *edits}
        by_layer: dict[int, set[str]] = {}
        for name in wanted:
            site, layer = _parse(name)
            if layer >= self.n_layers:
                raise KeyError(f"{name!r}: {self.name} has layers 0 to {self.n_layers - 1}.")
            by_layer.setdefault(layer, set()).add(site)

        def pass_through(name: str, x: Tensor) -> Tensor:
            if name in edits:
                x = edits[name](self._shaped(name, x, batch)).to(x.dtype).reshape(x.shape)
            if name in capture:
                run._raw[name] = x
            return x

        def hook(module: nn.Module, function: Callable[..., Any], pre: bool = False) -> None:
            handle = (
                module.register_forward_pre_hook(function, with_kwargs=True)
                if pre
                else module.register_forward_hook(function)
            )
            stack.callback(handle.remove)

        def on_input(name: str) -> Callable[..., Any]:
            def pre_hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                if args:
                    return (pass_through(name, args[0]), *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": pass_through(name, kwargs["hidden_states"])}

            return pre_hook

        def on_output(name: str) -> Callable[..., Any]:
            def post_hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
                if isinstance(output, tuple):
                    return (pass_through(name, output[0]), *output[1:])
                return pass_through(name, output)

            return post_hook

        if "hook_embed" in wanted:
            hook(self._embed, on_output("hook_embed"))
        for layer, sites in by_layer.items():
            names = {site: hook_name(site, layer) for site in _SITES}
            if "resid_pre" in sites:
                hook(self.blocks[layer], on_input(names["resid_pre"]), pre=True)
            if "z" in sites:
                hook(self._attn_out[layer], on_input(names["z"]), pre=True)
            if "act" in sites:
                if names["act"] in edits:
                    raise KeyError(f"{names['act']!r} can be read and not replaced.")
                act = self._mlp_act[layer]
                if act is None:
                    hook(self._mlp_down[layer], on_input(names["act"]), pre=True)
                else:
                    hook(act, on_output(names["act"]))
            if "post" in sites:
                hook(self._mlp_down[layer], on_input(names["post"]), pre=True)
            attn_end = self._attn_post[layer] or self._attn_out[layer]
            if "attn_out" in sites:
                hook(attn_end, on_output(names["attn_out"]))
            if "resid_mid" in sites:
                self._hook_resid_mid(hook, layer, attn_end, names["resid_mid"], pass_through, batch)
            if "mlp_out" in sites:
                hook(self._mlp_post[layer] or self._mlp_down[layer], on_output(names["mlp_out"]))
            if "resid_post" in sites:
                hook(self.blocks[layer], on_output(names["resid_post"]))
        self._install_pattern(stack, by_layer, pass_through)

    def _hook_resid_mid(
        self,
        hook: Callable[..., None],
        layer: int,
        attn_end: nn.Module,
        name: str,
        pass_through: Callable[[str, Tensor], Tensor],
        batch: Batch,
    ) -> None:
        seen: dict[str, Tensor] = {}

        def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen["pre"] = args[0] if args else kwargs["hidden_states"]

        def replace_sum(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            pre = seen.pop("pre")
            before = pre + output
            after = pass_through(name, before)
            # with gradients on, the captured sum itself must lie on the way to the output
            return after - pre if after is not before or after.requires_grad else None

        hook(self.blocks[layer], remember, pre=True)
        hook(attn_end, replace_sum)

    def _install_pattern(
        self, stack: ExitStack, by_layer: dict[int, set[str]], pass_through: Callable[[str, Tensor], Tensor]
    ) -> None:
        """Switches attention to the written-out form when a pattern or value is wanted, and back afterwards."""
        layers = {layer: sites & {"pattern", "v"} for layer, sites in by_layer.items() if sites & {"pattern", "v"}}
        if not layers:
            return

        def between(layer: int) -> Between:
            def inner(pattern: Tensor, value: Tensor) -> Tensor:
                sites = layers.get(layer, set())
                if "v" in sites:
                    pass_through(hook_name("v", layer), value)
                return pass_through(hook_name("pattern", layer), pattern) if "pattern" in sites else pattern

            return inner

        for layer, attention in enumerate(self._attention):
            put_between(stack, attention, between(layer))
            if hasattr(attention, "_attn"):  # GPT-J calls its own method instead of the attention interface

                def written_out(
                    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, module: Any = attention
                ) -> tuple[Tensor, Tensor]:
                    out, pattern = pattern_attention(module, query.float(), key.float(), value, mask)
                    return out.transpose(1, 2), pattern

                attention._attn = written_out
                stack.callback(delattr, attention, "_attn")
        if not hasattr(self._attention[0], "_attn"):
            write_out(stack, self.config)

    @contextmanager
    def _restart(self, layer: int, resid: Tensor, gradients: bool) -> Iterator[None]:
        """Blocks before ``layer`` do nothing and the last of them returns ``resid``."""
        resid = resid.detach().requires_grad_() if gradients else resid

        def output(x: Tensor) -> Any:
            return (x, None) if self.architecture.tuple_blocks else x

        def skip(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return output(hidden_states)

        def resume(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return output(resid)

        with ExitStack() as stack:
            if layer == 0:
                handle = self.blocks[0].register_forward_pre_hook(
                    lambda module, args, kwargs: (
                        ((resid, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": resid})
                    ),
                    with_kwargs=True,
                )
                stack.callback(handle.remove)
            for i in range(layer):
                self.blocks[i].forward = resume if i == layer - 1 else skip
                stack.callback(delattr, self.blocks[i], "forward")
            yield

    # --- what a score explains ------------------------------------------------------------------------------------

    def metric(self, logits: Tensor, batch: Batch) -> Tensor:
        """``[B]``: logit(answer) - logit(foil), or log p(answer) for rows without a foil."""
        logits = logits.float()
        rows = torch.arange(len(batch), device=logits.device)
        answer = logits[rows, batch.answer]
        if bool((batch.foil >= 0).all()):
            return answer - logits[rows, batch.foil]
        difference = answer - logits[rows, batch.foil.clamp(min=0)]
        return torch.where(batch.foil >= 0, difference, answer - logits.logsumexp(-1))

    def correct(self, logits: Tensor, batch: Batch) -> Tensor:
        """``[B]`` bool: the answer is the top token of logits ``[B, V]``; of a choice, likelier than the foil."""
        rows = torch.arange(len(batch), device=logits.device)
        wins = logits[rows, batch.answer] > logits[rows, batch.foil.clamp(min=0)]
        choice = torch.tensor([e.example.choice for e in batch.examples], device=logits.device)
        return torch.where(choice, wins, logits.argmax(-1) == batch.answer)

    # --- self-proof -----------------------------------------------------------------------------------------------

    def prove(self) -> None:
        """Shows on one batch that the parts are what the table says.

        Values come from the norm before attention, head outputs sum to the attention output, neuron outputs to the
        FFN output, the residual stream adds up, the hooked logits equal the plain model's, the final norm and
        unembedding reproduce them from the last residual, a restart from the middle is bit-identical, and zeroing a
        head changes the last residual (of a model that was built, not every head need change the logits).

        Raises:
            ModelError: names the first part that fails.
        """
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, self.d_vocab, (2, min(6, self.max_length)), generator=generator).tolist()
        batch = self._rows(tokens, [EncodedExample(Example("", ""), tuple(t), 0, None, None) for t in tokens])
        with torch.no_grad():
            plain = self.hf(**self._inputs(batch), use_cache=False)
        sites = ("resid_pre", "z", "attn_out", "resid_mid", "post", "mlp_out", "resid_post")
        run = self.run(batch, [hook_name(s, layer) for s in sites for layer in range(self.n_layers)])
        values = self.run(batch, [hook_name("v", layer) for layer in range(self.n_layers)])

        def same(part: str, a: Tensor, b: Tensor, exact: bool = False, rounding: float = 0.0) -> None:
            a, b = a.float(), b.float()
            scale = float(b.abs().max()) + 1e-9
            worst = max(0.0, float((a - b).abs().max()) - rounding) / scale
            if not worst <= (0.0 if exact else self.tolerance):
                raise ModelError(
                    f"self-proof of {self.name} ({self.architecture.family}) failed at {part}: off by {worst:.2g} of "
                    f"its largest value; its modules do not do what the architecture table says."
                )

        rows = torch.arange(len(batch), device=self.device)
        same("the hooked logits", run.logits, plain.logits[rows, batch.last])
        resid = run[hook_name("resid_post", self.n_layers - 1)][rows, batch.last]
        expected = self._before_softcap(plain.logits[rows, batch.last])
        # a model that was built may have nothing but rounding in its logits after tokens that no task has
        largest = self.W_U.float().abs().max() * (self.final_norm_weight.abs() / self.final_norm_scale(resid)).max()
        rounding = torch.finfo(torch.float32).eps * float(resid.float().abs().sum(-1).max() * largest)
        same("the final norm and unembedding", self._unembed(resid), expected, rounding=rounding)
        for layer in range(self.n_layers):
            at = {site: run[hook_name(site, layer)] for site in sites}
            normed = at["resid_pre"].float()
            normed = normed if self.architecture.rms else normed - normed.mean(-1, keepdim=True)
            normed = normed / self._norm_scale(self._ln1[layer], at["resid_pre"]) * self.ln1_weight(layer)
            made = einops.einsum(normed, self.W_V(layer).float(), "b t d_model, h d_model d_head -> b h t d_head")
            value = values[hook_name("v", layer)].float()
            shift = (value - made).mean((0, 2), keepdim=True)  # the biases of the norm and of the projection
            same(f"the norm before attention and the values of layer {layer}", made + shift, value)
            heads = self.head_outputs(layer, at["z"]).sum(-2)
            gain = self.attn_gain(layer, at["z"])
            bias = self.b_O(layer)
            if bias is not None:
                heads = heads + (bias if gain is None else bias * gain)
            same(f"the head outputs of layer {layer}", heads, at["attn_out"])
            neurons = at["post"] @ self.W_out(layer)
            bias, gain = self.b_out(layer), self.mlp_gain(layer, at["post"])
            neurons = neurons if bias is None else neurons + bias
            same(f"the neuron outputs of layer {layer}", neurons if gain is None else neurons * gain, at["mlp_out"])
            same(
                f"the residual stream of layer {layer}",
                at["resid_pre"] + at["attn_out"] + at["mlp_out"],
                at["resid_post"],
            )
            same(f"the mid residual of layer {layer}", at["resid_mid"], at["resid_pre"] + at["attn_out"])
        middle = self.n_layers // 2
        again = self.run(batch, start=(middle, run[hook_name("resid_pre", middle)]))
        same(f"the restart from layer {middle}", again.logits, run.logits, exact=True)
        z = hook_name("z", 0)
        last = hook_name("resid_post", self.n_layers - 1)
        without = {z: lambda x: x * (torch.arange(self.n_heads, device=x.device) > 0)[:, None]}
        if torch.equal(self.run(batch, [last], without)[last], run[last]):
            raise ModelError(
                f"self-proof of {self.name} failed: zeroing head 0 of layer 0 does not change its last residual."
            )
        if self.vision is not None:
            self._prove_vision(self.vision, same)
        self.cost = Cost()

    def _prove_vision(self, vision: Vision, same: Callable[[str, Tensor, Tensor], None]) -> None:
        """Shows that features in place of placeholders are what the whole model does with a picture."""
        noise = torch.randint(0, 256, (40, 56, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
        picture = fromarray(noise.numpy())
        inputs = vision.inputs(f"{IMAGE}\na", picture)
        with torch.no_grad():
            features = vision.features(inputs)
            plain = self.hf(**inputs, use_cache=False).logits[:, -1]
        ids = tuple(inputs["input_ids"][0].tolist())
        batch = self.batch([EncodedExample(Example("", "", image=picture), ids, 0, None, None, features)])
        same("the image features", self.run(batch).logits, plain)

    def _unembed(self, resid: Tensor) -> Tensor:
        x = resid.float()
        if not self.architecture.rms:
            x = x - x.mean(-1, keepdim=True)
        x = x / self.final_norm_scale(resid) * self.final_norm_weight
        x = x if self.final_norm_bias is None else x + self.final_norm_bias.float()
        logits = x @ self.W_U.float().T
        return logits if self.b_U is None else logits + self.b_U.float()

    def _before_softcap(self, logits: Tensor) -> Tensor:
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits.float() if not cap else cap * torch.atanh(logits.float() / cap)
