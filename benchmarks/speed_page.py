"""``docs/speed.md`` from ``results/peers.json`` and ``results/speed.json``; ``peers.py --page`` prints it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

INTRO = """\
# What it costs, beside other people's code and beside what it replaces

*Written by `python benchmarks/peers.py --page` from `results/peers.json` (`make peers PEERS=DIR`, where `DIR` holds
clones of [EAP-IG](https://github.com/hannamw/EAP-IG) and [Wanda](https://github.com/locuslab/wanda)) and
`results/speed.json` (`make speed`).*
"""
COLUMNS = """\
- **differs by**: the largest difference as a share of our largest value. **correlation**: Spearman's.
- **ours**, **theirs**: seconds, medians of {pairs} runs each, in turn after a first run of both. **theirs / ours**: the
  median of the ratios of the pairs, with the smallest and the largest.
- **GFLOP**: matrix products that each side runs, backward passes included. **MiB**: most memory held above the start.
- **floor**: what our products take at least, each at the rate of a large product ({flops:.3g} GFLOP/s) or at that of
  reading its weights from memory ({bytes:.3g} GB/s), whichever is slower; both rates were measured when the run began.
"""
TIME = {
    "EAP-IG": (
        "its code also takes the gradients of all weights, as in its notebooks, gives every head its own copy of what "
        "it reads, and holds the difference of every node's output at every position. Ours takes gradients of "
        "activations alone, and runs what both prompts share once."
    ),
    "TransformerLens": (
        "one pass of the whole model for each patched head, where ours starts at the head's layer, behind what both "
        "prompts share, with many heads in a batch; and for direct logit attribution, a cache of every activation."
    ),
    "captum": (
        "the same passes of the same Hugging Face model as ours; `shap` is captum's own sampler of orders around our "
        "passes."
    ),
    "wanda": "the same single pass.",
}
"""What each peer's code does that ours need not."""
SHORTCUTS = """\
Each pair computes the same numbers in two ways. In the first row the fast side is the plain Hugging Face pass, and the
ratio is what capturing every head, neuron and residual costs; in the others the slow side is the procedure that the
shortcut replaces. The floor is that of the fast side, as above.
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> list[str]:
    """The lines of a Markdown table whose first ``left`` columns are text."""
    align = ["---"] * left + ["---:"] * (len(head) - left)
    return [f"| {' | '.join(row)} |" for row in (head, align, *rows)]


def ratio(values: Mapping[str, float]) -> str:
    return f"{values['median']:.3g} ({values['smallest']:.3g} to {values['largest']:.3g})"


def parts(agreement: Mapping[str, Mapping[str, float]], key: str, form: str) -> str:
    """One number of every part; without the part's name where there is only one."""
    named = len(agreement) > 1
    return ", ".join(
        f"{part} {found[key]:{form}}" if named else f"{found[key]:{form}}" for part, found in agreement.items()
    )


def row(found: Mapping[str, Any]) -> list[str]:
    """One comparison in the table of peers."""
    agreement = found["agreement"]
    cells = [
        found["compared"],
        found["peer"],
        str(found["prompts"]),
        parts(agreement, "largest_difference", ".1e"),
        parts(agreement, "rank_correlation", ".4f").replace("-", "−"),
    ]
    if "seconds" not in found:
        return [*cells, *[""] * 6]
    seconds, floor, memory = found["median_seconds"], found["floor"], found["peak_mib"]
    gflop = (f"{floor[side]['flops'] / 1e9:.3g}" for side in ("ours", "theirs"))
    return [
        *cells,
        f"{seconds['ours']:.3g}",
        f"{seconds['theirs']:.3g}",
        ratio(found["times_faster"]),
        " / ".join(gflop),
        f"{memory['ours']:.0f} / {memory['theirs']:.0f}",
        f"{floor['ours']['seconds']:.3g}",
    ]


def sources(peers: Mapping[str, str | None]) -> str:
    """Versions and commits."""
    return ", ".join(f"{name} {'(commit not known)' if at is None else at[:12]}" for name, at in peers.items())


def circumstances(stored: Mapping[str, Any]) -> str:
    """On what, where and beside what the peers were timed."""
    made, timed = stored["provenance"], [found for found in stored["comparisons"] if "seconds" in found]
    loads = [load[0] for found in timed for load in found["load_average"]]
    text = (
        f"`{stored['model']}`, float32, {made['device']}, {made['threads']} thread, torch {made['torch']}, "
        f"transformers {made['transformers']}; {sources(stored['peers'])}. Prompts of {stored['prompt_tokens']} tokens "
        f"({stored['sentence_tokens']} for Shapley values), at most {made['batch_size']} rows in a pass of ours."
    )
    if stored["earlier"]:
        text += f" The run was made in {len(stored['earlier']) + 1} sittings."
    if loads:
        text += (
            f" The load average was {min(loads):.1f} to {max(loads):.1f}, so read the ratios, which are taken in turn, "
            "rather than the seconds."
        )
    return text


def page(peers: Mapping[str, Any], speed: Mapping[str, Any]) -> str:
    """The whole page."""
    compared = peers["comparisons"]
    rates = {name: peers["rates"][f"{name}_per_second"] / 1e9 for name in ("flops", "bytes")}
    head = [
        "what is computed (by our method)",
        "peer",
        "prompts",
        "differs by",
        "correlation",
        "ours (s)",
        "theirs (s)",
    ]
    head += ["theirs / ours", "GFLOP, ours / theirs", "MiB, ours / theirs", "floor (s)"]
    lines = [
        INTRO,
        "## Beside the peers' own code\n",
        circumstances(peers) + "\n",
        *table(head, map(row, compared), left=2),
        "",
        COLUMNS.format(pairs=peers["pairs"], **rates),
    ]
    lines += ["### Where the time goes\n"]
    lines += [f"- {peer}: {text}" for peer, text in TIME.items() if any(found["peer"] == peer for found in compared)]
    lines += [""]
    unequal = [found for found in compared if not found["should_be_equal"]]
    if unequal:
        lines += ["### What is not equal, and why\n", *map(bullet, unequal), ""]
    equal = [found for found in compared if found["should_be_equal"]]
    if equal:
        lines += ["### How the others were made comparable\n", *map(bullet, equal), ""]
    if peers["skipped"]:
        lines += ["### Left out\n", *(f"- {sentence}" for sentence in peers["skipped"]), ""]
    made = speed["provenance"]
    lines += [
        "## What the shortcuts are worth\n",
        f"`{speed['model']}`, {speed['dtype']}, {speed['prompt_tokens']} tokens, {made['device']}, {made['threads']} "
        f"thread{'' if made['threads'] == 1 else 's'}, torch {made['torch']}.\n",
        SHORTCUTS,
        *shortcuts(speed),
    ]
    return "\n".join(lines) + "\n"


def bullet(found: Mapping[str, Any]) -> str:
    """How a comparison's values should differ; where float32 hides it, what was found in float64."""
    text = f"- {found['compared']}: {found['difference'][0].lower()}{found['difference'][1:]}"
    if "agreement_float64" in found:
        text += f" In float64 the values differ by {parts(found['agreement_float64'], 'largest_difference', '.1e')}."
    return text


def shortcuts(speed: Mapping[str, Any]) -> list[str]:
    """The table of the pairs of ``speed.py``, and what of them was measured on a part alone."""
    rows, notes = [], []
    for pair in speed["pairs"]:
        ratios = [repeat["slow"] / repeat["fast"] for repeat in pair["repeats"]]
        found = {"median": statistics.median(ratios), "smallest": min(ratios), "largest": max(ratios)}
        median, floor = pair["median"], pair["floor"]
        rows.append(
            [
                pair["name"],
                f"{median['fast']:.3g}",
                f"{median['slow']:.3g}",
                ratio(found),
                f"{floor['flops'] / 1e9:.3g}",
                f"{floor['weight_bytes'] / 1e9:.3g}",
                f"{floor['seconds']:.3g}",
                f"{median['fast'] / floor['seconds']:.3g}",
            ]
        )
        if (scale := pair["slow_side_scaled_by"]) != 1:
            notes.append(
                f"Of *{pair['name']}*, the slow side was measured on {pair['copies_measured']} of {pair['heads']}, and "
                f"multiplied by {scale:g}."
            )
    head = ["pair", "fast (s)", "slow (s)", "slow / fast", "GFLOP", "GB of weights", "floor (s)", "fast / floor"]
    rates = speed["rates"]
    notes.append(
        f"Rates of this run: {rates['flops_per_second'] / 1e9:.3g} GFLOP/s, {rates['bytes_per_second'] / 1e9:.3g} GB/s."
    )
    return [*table(head, rows, left=1), "", " ".join(notes)]
