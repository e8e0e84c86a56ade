"""Pictures of a run on its node while it trains: the prompt as the model draws it by then.

Decoded by what is cheap: the connected VAE where it is a tiny one, else what ComfyUI's own previews use. Tried against
ComfyUI 0.30.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import latent_preview
import numpy as np
import torch
from comfy import model_management
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy.taesd.taesd import TAESD
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ..trainers.memory import PhaseMeter
from ..trainers.objective import Condition, Network
from ..trainers.preview import draw_latent
from ..trainers.run import StepReport
from .host import _encode_prompt, _kept, _size_vector

KEPT = 32  # pictures of a run; the last ones

logger = logging.getLogger(__name__)


def inputs(what: str, when: str = "") -> list[io.Input]:
    """The inputs of a trainer that shows pictures; what it draws when no prompt is given, and when it cannot."""
    return [
        io.Int.Input(
            "preview_every",
            default=0,
            min=0,
            max=100_000,
            optional=True,
            advanced=True,
            tooltip="Steps between two small pictures of preview_prompt, shown on the node while it trains. Each "
            f"costs 30 forward passes. 0: none. The result is the same with and without.{when}",
        ),
        io.String.Input(
            "preview_prompt",
            default="",
            optional=True,
            advanced=True,
            tooltip=f"What to draw. Empty: {what}. Always from the same noise.",
        ),
    ]


class Previews:
    """Draws a picture every so many steps. One that fails is the last that is tried: training goes on."""

    def __init__(self, every: int, draw: Callable[[], Image.Image]):
        self.every, self.draw = every, draw
        self.pictures: list[Image.Image] = []

    def __call__(self, step: StepReport) -> Image.Image | None:
        """The picture after this step, if it is time for one."""
        if not self.every or step.step % self.every:
            return None
        try:
            picture = self.draw()
        except Exception:  # noqa: BLE001, whatever it is, it is not worth the run
            logger.warning("preview_every: no more pictures in this run", exc_info=True)
            self.every = 0
            return None
        self.pictures = [*self.pictures, picture][-KEPT:]
        return picture

    def batch(self) -> Tensor | None:
        """All pictures, (N, H, W, 3) float32, 0-1; None where there are none."""
        if not self.pictures:
            return None
        return torch.from_numpy(np.stack([np.asarray(picture, np.float32) / 255 for picture in self.pictures]))


def encoded(
    model: ModelPatcher, clip: CLIP, prompts: Sequence[str], latent: Tensor, meter: PhaseMeter
) -> list[Condition]:
    """Each prompt as the U-Net takes it, for pictures of the size of this latent, (C, H, W); on the CPU."""
    if not prompts:
        return []
    size = (8 * latent.shape[-1], 8 * latent.shape[-2])
    with meter.phase("encode", clip.cond_stage_model.parameters()):
        texts = [_encode_prompt(model, clip, prompt) for prompt in prompts]
        vectors = [_size_vector(model, latent[None], text, size, target=size) for text in texts]
    model_management.unload_model_and_clones(clip.patcher)
    return [
        Condition(_kept(context)[None], None if vector is None else _kept(vector)[None])
        for (context, _), vector in zip(texts, vectors, strict=True)
    ]


def of_lora(
    every: int, prompt: str, model: ModelPatcher, clip: CLIP, vae: VAE, latent: Tensor, meter: PhaseMeter
) -> Callable[..., Previews]:
    """Encodes the prompt, if there are to be pictures. Returns what makes the Previews once the network is trainable.

    That takes the network, and the context it is to draw inside. latent is one of the photos', (C, H, W).
    """
    drawn = encoded(model, clip, [prompt, ""] if every else [], latent, meter)

    def on(network: Network, inside: Callable[[], AbstractContextManager[None]] = nullcontext) -> Previews:
        return Previews(every, Drawer(model, vae, network, latent.shape, meter, lambda: drawn, inside))

    return on


class Drawer:
    """Draws the prompt at this latent shape, (C, H, W); phase "preview" of the meter.

    conditions gives the prompt and "" as the U-Net takes them by then; it is run inside `inside`. Decoding is not in
    the phase: it is on the CPU, or a product of 3 by 4 numbers a pixel.
    """

    def __init__(
        self,
        model: ModelPatcher,
        vae: VAE,
        network: Network,
        shape: Sequence[int],
        meter: PhaseMeter,
        conditions: Callable[[], Sequence[Condition]],
        inside: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        self.model, self.vae, self.network, self.inside = model, vae, network, inside
        self.shape, self.meter, self.conditions = tuple(shape), meter, conditions

    @torch.inference_mode()
    def __call__(self) -> Image.Image:
        with self.inside(), self.meter.phase("preview", self.network.unet.parameters()):
            prompt, empty = (_on(self.network.device, condition) for condition in self.conditions())
            latent = draw_latent(self.network, prompt, empty, self.shape)
        return self._decode(latent)

    @cached_property
    def _decode(self) -> Callable[[Tensor], Image.Image]:
        return _decoder(self.model, self.vae)


def _on(device: torch.device, condition: Condition) -> Condition:
    return Condition(*(None if tensor is None else tensor.to(device) for tensor in condition))


def _decoder(model: ModelPatcher, vae: VAE) -> Callable[[Tensor], Image.Image]:
    tiny = vae.first_stage_model
    if isinstance(tiny, TAESD):  # a few MB, and on the CPU by now

        def decode(latent: Tensor) -> Image.Image:
            weight = next(tiny.parameters())
            latent = model.model.process_latent_out(latent).to(weight)
            return latent_preview.preview_to_image(tiny.decode(latent)[0].movedim(0, 2).float())

        return decode
    latent_format = model.model.latent_format
    stock = latent_preview.get_previewer(model.load_device, latent_format) or latent_preview.Latent2RGBPreviewer(
        latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias
    )
    return stock.decode_latent_to_preview
