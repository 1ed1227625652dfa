"""Control: what stands out in the picture, whatever is asked and whoever looks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from attriboard.components import InputLevel, Level
from attriboard.errors import SkipCell
from attriboard.method import Method
from attriboard.model import Batch, Model


@dataclass
class ColorContrast(Method):
    """Distance in RGB (0 to 1 each) of a patch's mean color from the picture's median color.

    The picture is the one the model sees, after resize and crop; the median, of each channel over all pixels, is the
    background's color where that fills most of the picture. Neither the model's weights nor the question play a part.
    """

    name = "color_contrast"
    paper = "control"
    description = "distance of the patch's mean color from the picture's median color"
    levels = ("patches",)
    needs = frozenset()
    modality = "vision"
    control = True
    properties = ("ignores_weights", "ignores_answer")

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        assert isinstance(level, InputLevel)
        scores = []
        for encoded in batch.examples:
            if model.vision is None or encoded.example.image is None:
                raise SkipCell(f"{self.name} needs examples with an image.")
            seen = np.asarray(model.vision.see(encoded.example.image))
            picture = torch.from_numpy(seen.copy()).float().permute(2, 0, 1) / 255
            median = picture.flatten(1).median(1).values
            mean = adaptive_avg_pool2d(picture[None], model.vision.grid)[0]
            scores.append((mean - median[:, None, None]).norm(dim=0))
        return level.place(model, batch, scores)
