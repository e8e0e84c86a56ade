"""A U-Net without its centre, run by its own forward, and what the centre would have added.

Cho et al. 2024 (Hollowed Net, arXiv:2411.01179): stage 1 runs the original network and stores one tensor per sample,
stage 2 trains the rest with the stored tensor in the centre's place. No forward is written again here: the lists of
blocks are exchanged for shorter ones, and ComfyUI's UNetModel.forward, which walks whatever is in them and takes as
many skips as it made, does the rest. Block numbers in transformer_options then count the blocks that are there.

Two modes:
- absolute, the paper's: the stored tensor is the centre's output, and what the last kept input block hands to the
  centre is dropped. Kept input blocks learn through their skips alone.
- residual: the stored tensor is the centre's output less its input, and is added to the live input. Kept input blocks
  also learn through that sum, as if the centre's derivative were the identity, which in a U-Net it is not: a stand-in
  that keeps a path for the gradient, after DiT-BlockSkip (arXiv:2603.20755), which does so in transformers. Height and
  width of the two always agree, since the centre's input is the skip that its output is joined with. Where channels
  differ, no input is there to add to, and the cut is refused.

Shapes: B images, C_in and C_out channels before and after the centre (Cut), H and W height and width of that level.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import torch
from torch import Tensor, nn

from .hollow_cuts import Cut, centre
from .offload import offloaded

MODES = ("absolute", "residual")
LISTS = ("input_blocks", "middle_block", "output_blocks")  # of ComfyUI's U-Nets


class Hollow(nn.Module):
    """What stands where the centre was.

    Set `activation`, (B, C_out, H, W) on any device and in any dtype, to what centre_activation() gave for the same
    latents, timesteps and prompts, before every forward; it has to stay until after the backward pass.
    """

    def __init__(self, cut: Cut, mode: str, blocks: Iterable[nn.Module]):
        super().__init__()
        self.cut, self.mode = cut, mode
        self.centre = tuple(blocks)  # not registered: the U-Net must not list them, nor its own lists of blocks
        self.lists: Mapping[str, nn.Module] = MappingProxyType({})
        self.activation: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H, W)."""
        needed = (x.shape[0], self.cut.channels_out, *x.shape[2:])
        got = None if self.activation is None else tuple(self.activation.shape)
        if got != needed:  # broadcasting would take some wrong ones
            raise ValueError(f"activation of the hollowed U-Net: got {got}, needs {needed}")
        activation = self.activation.to(x)
        return x + activation if self.mode == "residual" else activation


@contextmanager
def hollowed(unet: nn.Module, cut: Cut, mode: str) -> Iterator[Hollow]:
    """Take the centre out of the U-Net inside the block; afterwards all modules are where they were, whatever happens.

    Inside, the U-Net lists and runs the kept blocks alone, under their own names, so a LoRA injected inside sits on
    them alone. The centre's blocks are in Hollow.centre; whoever moves them off the device moves them back.
    Raises ValueError for a mode that the cut cannot have.
    """
    check_mode(cut, mode)
    count = len(unet.input_blocks)
    hollow = Hollow(cut, mode, centre(unet, cut.kept).values())
    hollow.lists = MappingProxyType({name: getattr(unet, name) for name in LISTS})
    with _replaced(
        unet,
        input_blocks=_numbered(unet.input_blocks, range(cut.kept)),
        middle_block=nn.Sequential(hollow),
        output_blocks=_numbered(unet.output_blocks, range(count - cut.kept, count)),
    ):
        yield hollow


@contextmanager
def whole(unet: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside hollowed(): the U-Net with its centre, on this device, and with the LoRA that sits on the kept blocks."""
    (hollow,) = unet.middle_block
    with offloaded(hollow.centre, device), _replaced(unet, **hollow.lists):
        yield


def centre_activation(unet: nn.Module, cut: Cut, mode: str, forward: Callable[[], Tensor]) -> Tensor:
    """The tensor to store for the batch that forward() runs the U-Net on, (B, C_out, H, W).

    forward returns what the U-Net returned. Without gradients. Raises ValueError as hollowed() does.
    """
    check_mode(cut, mode)
    with torch.no_grad(), ending_at_the_centre(unet, cut):
        output, skip = forward().split([cut.channels_out, cut.channels_in], dim=1)
        return output - skip if mode == "residual" else output.clone()  # a view would keep the skip alive


@contextmanager
def ending_at_the_centre(unet: nn.Module, cut: Cut) -> Iterator[None]:
    """The U-Net without its kept output blocks inside the block, for when nobody needs what they make.

    It returns what the first of them takes: the centre's output joined with the skip, (B, C_out + C_in, H, W).
    """
    first_kept = len(unet.output_blocks) - cut.kept
    blocks = _numbered(unet.output_blocks, range(first_kept))
    blocks.add_module(str(first_kept), nn.Sequential())
    with _replaced(unet, output_blocks=blocks, out=nn.Sequential()):
        yield


def check_mode(cut: Cut, mode: str) -> None:
    """Raise ValueError when there is no such mode, or the cut cannot have it."""
    if mode not in MODES:
        raise ValueError(f"mode: got {mode!r}, needs to be one of {', '.join(MODES)}")
    if mode == "residual" and not cut.has_residual:
        raise ValueError(
            f"mode: residual cannot be had without {cut.name} ({cut.share:.1%} of the parameters): they turn "
            f"{cut.channels_in} channels into {cut.channels_out}. Choose absolute, or another hollow_fraction"
        )


def _numbered(blocks: nn.ModuleList, numbers: Iterable[int]) -> nn.ModuleList:
    """These blocks alone, under the numbers they have: a LoRA's keys are made of them."""
    chosen = nn.ModuleList()
    for number in numbers:
        chosen.add_module(str(number), blocks[number])
    return chosen


@contextmanager
def _replaced(unet: nn.Module, **parts: nn.Module) -> Iterator[None]:
    """These attributes of the U-Net inside the block, its own afterwards. No module is changed."""
    own = {name: getattr(unet, name) for name in parts}
    try:
        for name, part in parts.items():
            setattr(unet, name, part)
        yield
    finally:
        for name, part in own.items():
            if part is None:  # a U-Net without a middle: set to None, the name would stay among its modules
                delattr(unet, name)
            setattr(unet, name, part)
