"""Which blocks of a U-Net can leave: its centre, cut so that every kept output block still has its skip.

Cho et al. 2024 (Hollowed Net, arXiv:2411.01179) leave out "blocks around the center" and give no list. Output block j
of n takes the skip of input block n - 1 - j, so a cut keeps the first k input blocks and the last k output blocks. It
is read off the structure of the module (input_blocks, middle_block, output_blocks of layers that know their channels),
so it holds for every Stable Diffusion U-Net, whatever its depth and whether or not its middle has attention.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import nn

from .lora import TARGETS
from .quantize import parameter_count

TABLE_HEAD = (
    "| blocks that leave | parameters that leave | blocks | parameters that stay | attention layers that stay "
    "| residual |\n|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Cut:
    """One choice of a centre: the first `kept` input blocks and the last `kept` output blocks stay."""

    kept: int
    leaving: tuple[str, ...]  # module names of the centre's blocks, in the order in which they run
    blocks: int  # of the whole U-Net
    leaving_parameters: int
    leaving_bytes: int
    parameters: int  # of the whole U-Net
    channels_in: int  # of what enters the centre, which is also the skip of the first kept output block
    channels_out: int  # of what the centre hands to the first kept output block
    lora_layers: int  # attention layers that stay, where a LoRA can sit

    @property
    def share(self) -> float:
        """Share of the U-Net's parameters that leaves, 0-1."""
        return self.leaving_parameters / self.parameters

    @property
    def has_residual(self) -> bool:
        """Whether the centre's output can be told as its input plus something: both have as many channels."""
        return self.channels_in == self.channels_out

    @property
    def name(self) -> str:
        """The blocks that leave, in words: input_blocks 9-11, middle_block, output_blocks 0-2."""
        return ", ".join(_span(kind, list(blocks)) for kind, blocks in groupby(self.leaving, _kind))


def cuts(unet: nn.Module) -> list[Cut]:
    """Every cut of the U-Net, the smallest centre first. Raises ValueError for a module that is not such a U-Net."""
    layers = [name for name, _ in unet.named_modules() if re.fullmatch(TARGETS["attention"], name)]
    _check(unet, layers)
    return [_cut(unet, kept, layers) for kept in range(len(unet.input_blocks), 0, -1) if centre(unet, kept)]


def centre(unet: nn.Module, kept: int) -> dict[str, nn.Module]:
    """The blocks that leave when `kept` input blocks stay, by module name, in the order in which they run."""
    count = len(unet.input_blocks)
    middle = {} if unet.middle_block is None else {"middle_block": unet.middle_block}
    return (
        {f"input_blocks.{i}": unet.input_blocks[i] for i in range(kept, count)}
        | middle
        | {f"output_blocks.{j}": unet.output_blocks[j] for j in range(count - kept)}
    )


def nearest_cut(choices: Sequence[Cut], hollow_fraction: float) -> Cut:
    """The cut whose share of parameters is nearest, among those that leave attention layers for a LoRA."""
    usable = [cut for cut in choices if cut.lora_layers]
    if not 0 < hollow_fraction < 1:
        possible = ", ".join(f"{cut.share:.3f}" for cut in usable)
        raise ValueError(
            f"hollow_fraction: got {hollow_fraction}, needs a number above 0 and below 1; this model's U-Net can be "
            f"hollowed by {possible}"
        )
    return min(usable, key=lambda cut: abs(cut.share - hollow_fraction))


def cuts_table(choices: Sequence[Cut]) -> str:
    """The cuts as a Markdown table, a line each."""
    return "\n".join([TABLE_HEAD, *(_row(cut) for cut in choices)])


def _row(cut: Cut) -> str:
    stay = (cut.parameters - cut.leaving_parameters) / 1e6
    residual = "yes" if cut.has_residual else f"no, {cut.channels_in} -> {cut.channels_out} channels"
    return (
        f"| {cut.name} | {cut.share:.1%} | {len(cut.leaving)} of {cut.blocks} | {stay:.1f} M | {cut.lora_layers} "
        f"| {residual} |"
    )


def _cut(unet: nn.Module, kept: int, layers: Sequence[str]) -> Cut:
    leaving = centre(unet, kept)
    prefixes = tuple(f"{name}." for name in leaving)
    entrance = next(iter(leaving.values()))[0].channels
    first_kept = unet.output_blocks[len(unet.output_blocks) - kept]
    return Cut(
        kept=kept,
        leaving=tuple(leaving),
        blocks=len(centre(unet, 0)),
        leaving_parameters=sum(parameter_count(block) for block in leaving.values()),
        leaving_bytes=sum(p.nbytes for block in leaving.values() for p in block.parameters()),
        parameters=parameter_count(unet),
        channels_in=entrance,
        channels_out=first_kept[0].channels - entrance,  # it takes the centre's output joined with the skip
        lora_layers=sum(not name.startswith(prefixes) for name in layers),
    )


def _check(unet: nn.Module, layers: Sequence[str]) -> None:
    inputs, outputs = (list(getattr(unet, name, [])) for name in ("input_blocks", "output_blocks"))
    middle = getattr(unet, "middle_block", None)  # None in U-Nets that have none
    inner = [*inputs[1:], *([] if middle is None else [middle]), *outputs]  # the first block is a bare convolution
    is_unet = len(inputs) == len(outputs) > 1 and hasattr(unet, "out")
    if not is_unet or not layers or not all(hasattr(block[0], "channels") for block in inner):
        raise ValueError(
            f"model: got {type(unet).__name__} with {len(inputs)} input blocks, {len(outputs)} output blocks and "
            f"{len(layers)} attention layers; needs the U-Net of a Stable Diffusion 1.x, 2.x or XL model, which has as "
            f"many input as output blocks around a middle, and attention"
        )


def _kind(block: str) -> str:
    return block.partition(".")[0]


def _span(kind: str, blocks: Sequence[str]) -> str:
    """Blocks of one kind, which are numbered in a row."""
    first, last = (block.partition(".")[2] for block in (blocks[0], blocks[-1]))
    return f"{kind} {first}-{last}" if first != last else f"{kind} {first}".rstrip()
