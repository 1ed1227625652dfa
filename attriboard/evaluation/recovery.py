"""How a sliced model is trained a little; what that brought back stands in :mod:`attriboard.measurements.recovery`.

LoRA (Hu et al. 2021, arXiv 2106.09685) through peft, with a small fixed budget, trained on the answer token of the
train examples and merged into the weights. Yu and Ananiadou (2024, arXiv 2409.14144) find that such training enlarges
the coefficients (``mlp.hook_post`` at the last token) of the neurons that matter for the answer: those of the best
neurons kept are measured before and after, beside as many neurons of the same layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..components import get_level
from ..errors import ConfigurationError
from ..interventions import measure_all
from ..log_prob import FrozenUnembedding, last_token, level_candidates
from ..measurements.recovery import Coefficients, Recovery
from ..model import Model
from ..models.quiet import quiet

if TYPE_CHECKING:
    from ..measurements.capability import Capability
    from ..model import Batch, EncodedExample

RANK = 8
ALPHA = 16
LEARNING_RATE = 1e-3
BATCH_SIZE = 8


def recover(
    sliced: Model,
    train: Sequence[EncodedExample],
    test: Sequence[EncodedExample],
    steps: int,
    seed: int,
    neurons: Mapping[str, Mapping[str, int]],
    capability: Callable[[Model], Capability] | None = None,
) -> Recovery:
    """Trains a sliced model, whose weights are changed in place.

    Args:
        train: examples to train on, in an order drawn anew for every round.
        test: examples to measure before and after.
        steps: of :data:`BATCH_SIZE` examples each.
        seed: of LoRA's start and of the order of the examples.
        neurons: by group, the neurons to watch: by name, their index in the sliced model.
        capability: measures what the trained model can do.

    Raises:
        ConfigurationError: peft is not installed.
    """
    before = measure_all(sliced, test)
    watched_before = {group: _watch(sliced, train, list(named.values())) for group, named in neurons.items()}
    trained, losses = _train(sliced, train, steps, seed)
    watched_after = {group: _watch(sliced, train, list(named.values())) for group, named in neurons.items()}
    return Recovery(
        trained_parameters=trained,
        losses=losses,
        before=before.tolist(),
        after=measure_all(sliced, test).tolist(),
        coefficients={
            group: Coefficients(
                names=list(named),
                before=watched_before[group][0].tolist(),
                after=watched_after[group][0].tolist(),
                increase_before=watched_before[group][1].tolist(),
                increase_after=watched_after[group][1].tolist(),
            )
            for group, named in neurons.items()
        },
        capability=None if capability is None else capability(sliced),
    )


def _train(sliced: Model, train: Sequence[EncodedExample], steps: int, seed: int) -> tuple[int, list[float]]:
    """The number of trained parameters and the loss of every step."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ConfigurationError(
            f'recovery trains by peft, which cannot be imported ({error}): pip install "attriboard[recovery]".'
        ) from error
    a = sliced.architecture
    paths = {path for path in (a.query, a.value, *a.mlp_in, a.mlp_down) if path is not None}
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=[f"{a.layers}.{layer}.{path}" for layer in range(sliced.n_layers) for path in sorted(paths)],
        fan_in_fan_out=not isinstance(sliced.blocks[0].get_submodule(a.attn_out), nn.Linear),  # GPT-2's Conv1D
    )
    devices = [sliced.device] if sliced.device.type == "cuda" else []
    with quiet(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        adapted = get_peft_model(sliced.hf, config).eval()  # the blocks inside ``sliced.hf`` are wrapped in place
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    losses = []
    for _, batch in zip(range(steps), _rounds(sliced, train, seed)):
        loss = cross_entropy(sliced.run(batch, gradients=True).logits.float(), batch.answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    adapted.merge_and_unload()
    sliced.hf.requires_grad_(False)
    return sum(p.numel() for p in parameters), losses


def _rounds(model: Model, examples: Sequence[EncodedExample], seed: int) -> Iterator[Batch]:
    """Batches without end, each round in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(examples), generator=generator).tolist()
        yield from model.batches([examples[i] for i in order], BATCH_SIZE)


def _watch(model: Model, examples: Sequence[EncodedExample], neurons: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``[n]`` each: neurons' absolute coefficient and log-probability increase, both means over the examples."""
    index = torch.tensor(neurons, device=model.device)
    coefficients, increases = [], []
    for batch in model.batches(examples):
        activations, last = last_token(model, batch, ("resid_mid", "post"))
        coefficients.append(activations["post"].flatten(1)[:, index].abs().double())
        candidates = level_candidates(model, get_level("neurons"), activations["resid_mid"], activations["post"])
        increases.append(candidates.increases(FrozenUnembedding(model, last), batch.answer, index).double())
    return torch.cat(coefficients).mean(0), torch.cat(increases).mean(0)
