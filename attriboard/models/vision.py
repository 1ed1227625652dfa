"""What a vision-language model sees: from a picture to what the language model sees in its place.

Nothing about geometry is typed by hand. The processor expands the placeholder and resizes and crops the picture; what
the language model sees is read at the entrance of the language model; where a pixel of the original ends up is found
by sending masks the same way as pictures.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import ExampleError, ModelError
from ..images import MAX_PIXELS, as_rgb, check_size
from ..task import IMAGE
from .attention import Between, put_between, write_out

SIDE = 448
"""Pixels along a picture for a processor that keeps pictures' shapes: all are stretched to what it makes of this."""


class _Seen(Exception):
    """Stops a forward pass at the entrance of the language model."""


class Vision:
    """A vision-language model's processor and vision tower.

    Args:
        hf: the whole Hugging Face model.
        text_model: its language model without head, the module that receives ``inputs_embeds``.
        processor: its processor; it expands the image token in the text and makes ``pixel_values``.
        name: of the model, for messages.

    Attributes:
        placeholder: the token id that stands where image features go.
        grid: (rows, columns) of patches, in row-major order.
        size: (height, width) of what the model sees, in pixels.
        turned: the grid, if the language model turns positions by rows and columns (M-RoPE); else None.

    Pictures are resized and cropped as the processor does it. One that keeps the shape of a picture, so that its
    patches would form another grid each time (Qwen-VL, Mistral 3), is given all pictures stretched to one square.

    Raises:
        ModelError: the patches of one picture do not form one grid.
    """

    def __init__(self, hf: Any, text_model: nn.Module, processor: Any, name: str) -> None:
        self.hf, self.text_model, self.processor, self.name = hf, text_model, processor, name
        self.placeholder: int = hf.config.image_token_id
        if getattr(processor.image_processor, "do_image_splitting", False):
            processor.image_processor.do_image_splitting = False  # one picture, one grid
        self._canvas: tuple[int, int] | None = None
        wide, tall = (self.inputs(IMAGE, Image.new("RGB", size)) for size in ((64, 48), (48, 96)))
        if any(wide[key].shape != tall[key].shape for key in ("pixel_values", "input_ids")):
            self._canvas = self._made_of(Image.new("RGB", (SIDE, SIDE)))
            if self._made_of(Image.new("RGB", self._canvas)) != self._canvas:
                raise ModelError(f"the processor of {name} resizes pictures in a way that has no fixed point.")
        probe = self.inputs(IMAGE, Image.new("RGB", (64, 48)))
        pixels = probe["pixel_values"]
        count = int((probe["input_ids"] == self.placeholder).sum())
        self.size: tuple[int, int] = (
            (int(pixels.shape[-2]), int(pixels.shape[-1])) if self._canvas is None else self._canvas[::-1]
        )
        crops = 1 if pixels.dim() == 2 else int(torch.tensor(pixels.shape[:-3]).prod())
        self.grid: tuple[int, int] = self._grid(crops, count)
        self.turned: tuple[int, int] | None = self.grid if self._entrance(probe)["position_ids"].dim() == 3 else None

    def _made_of(self, image: Image.Image) -> tuple[int, int]:
        """(width, height) in pixels of what a processor that keeps pictures' shapes makes of one."""
        made = self.inputs(IMAGE, image)
        if "image_grid_thw" in made:
            _, height, width = (made["image_grid_thw"][0] * self.hf.config.vision_config.patch_size).tolist()
        else:
            height, width = made["pixel_values"].shape[-2:]
        return int(width), int(height)

    def _grid(self, crops: int, count: int) -> tuple[int, int]:
        patch = getattr(self.hf.config.vision_config, "patch_size", None)
        height, width = self.size
        if isinstance(patch, int) and crops == 1:
            rows, columns = height // patch, width // patch
            for merged in range(1, 9):  # connectors may merge squares of patches into one token
                if rows % merged == 0 and columns % merged == 0 and (rows // merged) * (columns // merged) == count:
                    return rows // merged, columns // merged
        raise ModelError(
            f"the patch grid of {self.name} cannot be established: its processor makes {crops} crops of "
            f"{height} × {width} pixels and {count} image tokens of one picture, with patches of {patch} "
            f"pixels; set up the processor so that one crop gives one token per patch, or choose another model."
        )

    def prove(self) -> None:
        """Shows that every feature stands where its patch lies in the picture.

        Without attention between them, a feature depends on its own patch alone. The patches, numbered from 1 in
        row-major order, are changed in as many pictures as the numbers have binary digits: in each, those whose number
        has that digit. If exactly their features change every time, feature and patch have the same number.

        Raises:
            ModelError: another feature changes, or the tower's attention cannot be switched off.
        """
        rows, columns = self.grid
        numbers = torch.arange(1, rows * columns + 1)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randint(0, 256, (2, *self.size, 3), generator=generator, dtype=torch.uint8)

        def alone(pattern: Tensor, value: Tensor) -> Tensor:
            return torch.eye(
                pattern.shape[-2], pattern.shape[-1], dtype=pattern.dtype, device=pattern.device
            ).expand_as(pattern)

        def features(changed: Tensor) -> Tensor:
            large = changed.view(1, 1, rows, columns).float()
            mask = nn.functional.interpolate(large, self.size, mode="nearest")[0, 0].bool()
            return self.features(self._exactly(torch.where(mask[..., None], noise[1], noise[0])))

        with torch.no_grad(), self._between(alone):
            before = features(torch.zeros_like(numbers, dtype=torch.bool))
            for digit in range(len(numbers).bit_length()):
                changed = (numbers >> digit & 1).bool()
                moved = (features(changed) - before).float().abs().amax(-1).cpu()
                if not torch.equal(moved > 1e-3 * moved.max(), changed):
                    raise ModelError(
                        f"the patches of {self.name} do not stand in one row-major grid of {rows} × {columns}: a "
                        f"change in one place of the picture is seen in another; choose another model."
                    )

    def _exactly(self, pixels: Tensor) -> dict[str, Tensor]:
        """The model's inputs for a picture that is seen pixel by pixel, ``[height, width, 3]`` of bytes."""
        picture = Image.fromarray(pixels.numpy())
        inputs = self.inputs(IMAGE, picture)
        if self._canvas is None:  # the processor may resize twice, and blur where patches meet
            values = inputs["pixel_values"]
            exact = (pixels.permute(2, 0, 1) / 127.5 - 1).to(values)
            inputs["pixel_values"] = exact.expand_as(values.view(-1, *values.shape[-3:])).reshape(values.shape)
        return inputs

    # --- what goes in -----------------------------------------------------------------------------------------------

    def prompt(self, text: str) -> str:
        """The prompt with the processor's own image token for :data:`~attriboard.task.IMAGE`.

        Raises:
            ExampleError: the image's place is not given exactly once.
        """
        token = self._token
        if (count := text.count(IMAGE)) != 1:
            raise ExampleError(
                f"the prompt has {count} {IMAGE} placeholders, expected exactly one where the image stands: {text!r}."
            )
        if token != IMAGE and token in text:
            raise ExampleError(f"the prompt contains {token!r}, which {self.name} keeps for images: {text!r}.")
        return text.replace(IMAGE, self._around.format(token))

    @property
    def _token(self) -> str:
        """What stands for a picture in a text that the processor takes."""
        return str(getattr(self.processor, "boi_token", None) or getattr(self.processor, "image_token", IMAGE))

    @functools.cached_property
    def typed(self) -> int:
        """The token id of what stands for a picture in a text, before the processor puts placeholders there."""
        return int(self.processor.tokenizer.convert_tokens_to_ids(self._token))

    @functools.cached_property
    def _around(self) -> str:
        """What chat templates put around a picture, with {} in its place."""
        ids = [getattr(self.hf.config, f"vision_{end}_token_id", None) for end in ("start", "end")]
        if None in ids:
            return "{}"
        start, end = self.processor.tokenizer.convert_ids_to_tokens(ids)
        return f"{start}{{}}{end}"

    def inputs(self, text: str, image: Image.Image) -> dict[str, Tensor]:
        """The model's inputs for one prompt about one picture: ``input_ids [1, T]``, ``pixel_values`` and the like.

        Floats have the model's dtype.
        """
        check_size(image.size, "given")
        self._check_resized(image.size)
        inputs = self.processor(images=self._stretched(as_rgb(image)), text=self.prompt(text), return_tensors="pt")
        tensors = {k: v.to(self.hf.device) for k, v in inputs.items() if isinstance(v, Tensor)}
        return {k: v.to(self.hf.dtype) if v.is_floating_point() else v for k, v in tensors.items()}

    def _stretched(self, image: Image.Image) -> Image.Image:
        """The picture at the one size that all are seen at, for a processor that would keep its shape."""
        return image if self._canvas is None else image.resize(self._canvas, Image.Resampling.BICUBIC)

    def _check_resized(self, size: tuple[int, int]) -> None:
        """Refuses a picture so long and thin that it grows beyond all bounds when its shorter side is resized."""
        target = getattr(self.processor.image_processor, "size", None) or {}
        shorter, longer = (getattr(target, "get", lambda key: None)(key) for key in ("shortest_edge", "longest_edge"))
        width, height = size
        if not shorter or longer or (pixels := width * height * (shorter / min(size)) ** 2) <= MAX_PIXELS:
            return
        raise ExampleError(
            f"the image given is {width} × {height} pixels, which {self.name} would make {pixels:,.0f} pixels large "
            f"for a shorter side of {shorter}; at most {MAX_PIXELS:,} are taken: cut it to a squarer shape."
        )

    # --- what is seen -----------------------------------------------------------------------------------------------

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        """``[n_patches, d_model]``: what the language model sees at the placeholders, in row-major order.

        Raises:
            ModelError: the processor makes another number of image tokens than the vision tower makes features.
        """
        return self._entrance(inputs)["inputs_embeds"][0, inputs["input_ids"][0] == self.placeholder]

    def _entrance(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """``inputs_embeds`` and ``position_ids`` as the language model is given them."""
        seen: dict[str, Tensor] = {}

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen["inputs_embeds"] = kwargs["inputs_embeds"]
            positions = kwargs.get("position_ids")
            seen["position_ids"] = torch.zeros(1, 1) if positions is None else positions
            raise _Seen

        handle = self.text_model.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.hf(**inputs, use_cache=False)
        except _Seen:
            pass
        except ValueError as error:
            raise ModelError(
                f"the processor and the vision tower of {self.name} do not fit each other ({error}); load it with the "
                f"processor it was made with."
            ) from error
        finally:
            handle.remove()
        return seen

    @functools.cached_property
    def layers(self) -> list[Any]:
        """The vision tower's attention modules, first to last.

        Raises:
            ModelError: they cannot be found.
        """
        if not (modules := [m for m in self._attention() if hasattr(m, "config")]):
            raise ModelError(f"the attention layers of the vision tower of {self.name} cannot be found.")
        return modules

    def _attention(self) -> list[nn.Module]:
        language = set(self.text_model.modules())
        return [m for m in self.hf.modules() if m not in language and type(m).__name__.endswith("Attention")]

    @functools.cached_property
    def flops(self) -> int:
        """Floating-point operations from pixels to :meth:`features`: equal for all pictures, as all have one size."""
        counter = FlopCounterMode(display=False)
        inputs = self.inputs(IMAGE, Image.new("RGB", (64, 48)))
        # attention is written out, since there is no formula for PyTorch's fused kernel on a CPU
        with torch.no_grad(), self._between(lambda pattern, value: pattern), counter:
            self.features(inputs)
        return counter.get_total_flops()

    @contextmanager
    def _between(self, between: Between) -> Iterator[None]:
        """While open, every attention pattern of the tower passes through ``between``.

        Raises:
            ModelError: the tower's attention layers cannot be found.
        """
        with ExitStack() as stack:
            for layer in self.layers:
                put_between(stack, layer, between)
            for config in {id(layer.config): layer.config for layer in self.layers}.values():
                write_out(stack, config)
            yield

    @contextmanager
    def patterns(self) -> Iterator[list[Tensor]]:
        """While open, every pass through the tower puts its attention patterns ``[1, heads, n, n]`` into the list.

        One pattern per layer, first to last, as the pass uses them: with gradients enabled they are part of the graph
        from the first one on, so that gradients of :meth:`features` can be taken there.

        Raises:
            ModelError: the tower's attention layers cannot be found.
        """
        patterns: list[Tensor] = []

        def keep(pattern: Tensor, value: Tensor) -> Tensor:
            if torch.is_grad_enabled() and not pattern.requires_grad:  # before it only weights, which need no gradient
                pattern.requires_grad_()
            patterns.append(pattern)
            return pattern

        with self._between(keep):
            yield patterns

    def _pixels(self, image: Image.Image) -> Tensor:
        """``[3, height, width]``: a picture after the processor, still in the processor's units."""
        pixels = self.processor.image_processor(images=image, return_tensors="pt")["pixel_values"]
        return pixels.reshape(3, *self.size).float()

    @functools.lru_cache(maxsize=64)  # noqa: B019 - one Vision lives as long as its model
    def _range(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        return tuple(self._pixels(Image.new("RGB", size, color)) for color in ("black", "white"))  # type: ignore[return-value]

    def _unit(self, image: Image.Image) -> Tensor:
        """``[3, height, width]`` in 0..1: a picture as the model sees it; 0 where the processor pads."""
        if self._canvas is not None:
            return torch.from_numpy(np.array(self._stretched(image))).permute(2, 0, 1) / 255
        black, white = self._range(image.size)
        span = white - black
        return torch.where(span.abs() > 1e-6, (self._pixels(image) - black) / span, 0.0).clamp(0, 1)

    def see(self, image: Image.Image) -> Image.Image:
        """The picture the model really saw: after resize, crop and padding, as RGB."""
        unit = self._unit(as_rgb(image))
        return Image.fromarray((unit * 255).round().byte().permute(1, 2, 0).numpy())

    def coverage(self, mask: np.ndarray) -> Tensor:
        """``[rows, columns]`` in 0..1: the share of every patch that a pixel mask of the original picture covers.

        Args:
            mask: ``[height, width]`` bool over the original picture.
        """
        picture = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).convert("RGB")
        unit = self._unit(picture).mean(0)
        return nn.functional.adaptive_avg_pool2d(unit[None], self.grid)[0]
