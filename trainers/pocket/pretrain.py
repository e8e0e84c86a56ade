"""Trains the pocket model from nothing but this folder, and writes its weights.

    python -m trainers.pocket.pretrain FOLDER

First the autoencoder without the blocks of its decoder that cost most, then text encoder and U-Net on its latents, then
the whole decoder, whose encoder stays as it is. All of it is seeded, and a run that was stopped goes on where it was.
"""

import argparse
import functools
import logging
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import autoencoder as ae
from . import diffusion
from .captions import caption, full_caption
from .fit import fit
from .modules import Modules, load_modules, sampled
from .render import rendered, rendered_bytes
from .sheets import save_sheet
from .subjects import is_held_out
from .text import LearntRows, embeddings, learnt_ids, new_text_encoder, tokens
from .weights import save_weights
from .world import Scene, random_scene

log = logging.getLogger(__name__)

Pictures = Callable[[], Tensor]  # renders them when they are needed first; bytes (N, 3, 128, 128)


def scenes(count: int, seed: int) -> list[Scene]:
    """Scenes without the subjects in them."""
    rng = random.Random(seed)
    return [random_scene(rng, is_held_out) for _ in range(count)]


def new_modules(seed: int) -> Modules:
    return Modules(diffusion.new_unet(seed), new_text_encoder(seed), ae.new_autoencoder(seed))


def trained_modules(weights: Path) -> Modules:
    """What was trained before, ready to be trained further."""
    unet, encoder, autoencoder = load_modules(weights)
    rows = LearntRows(learnt_ids())
    rows.rows.data.copy_(embeddings(encoder).token_embedding.weight[learnt_ids()])
    embeddings(encoder).token_embedding = rows
    for module in (unet, encoder, autoencoder):
        module.train().requires_grad_(True)
    return Modules(unet, encoder, autoencoder)


def pretrain_autoencoder(
    folder: Path, autoencoder: AutoencoderTiny, steps: int, pictures: Pictures, seed: int, device: str
) -> None:
    """Train the autoencoder without its late blocks."""
    loss_of = _on_crops(ae.reconstruction_loss, autoencoder, pictures, device)
    with ae.lean(autoencoder):
        fit(nn.ModuleDict({"a": autoencoder}), loss_of, steps, ae.LEARNING_RATE, folder / "autoencoder.state", seed)


def finish_decoder(
    folder: Path, autoencoder: AutoencoderTiny, steps: int, pictures: Pictures, seed: int, device: str
) -> None:
    """Train the whole decoder; the encoder, and with it what the U-Net learnt, does not change."""
    loss_of = _on_crops(ae.decoder_loss, autoencoder, pictures, device)
    modules = nn.ModuleDict({"decoder": autoencoder.decoder})
    fit(modules, loss_of, steps, ae.DECODER_LEARNING_RATE, folder / "decoder.state", seed + 1, warm_up=50)


def _on_crops(loss, autoencoder: AutoencoderTiny, pictures: Pictures, device: str):
    """The loss as fit wants it: of random crops of the pictures."""

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        batch = ae.crops(pictures(), generator).to(device, memory_format=torch.channels_last)
        return loss(autoencoder, batch, generator)

    return loss_of


@torch.no_grad()
def latents_of(folder: Path, autoencoder: AutoencoderTiny, drawn: list[Scene], device: str) -> Tensor:
    """Latents (N, 4, 16, 16) of renders of the scenes, kept in the folder."""
    file = folder / "latents.safetensors"
    if file.is_file():
        return load_file(file)["latents"]
    made = []
    with ae.lean(autoencoder):
        for pictures in rendered(drawn):
            batch = pictures.to(device, memory_format=torch.channels_last)
            made.append(ae.encode(autoencoder, batch).cpu().contiguous())
    latents = torch.cat(made)
    save_file({"latents": latents}, file)
    log.info("%d latents, mean %.3f, deviation %.3f", len(latents), latents.mean(), latents.std())
    return latents


def pretrain_unet(
    folder: Path, modules: Modules, steps: int, count: int, seed: int, device: str, bfloat16: bool
) -> None:
    """Train U-Net and text encoder together, on latents of the autoencoder; bfloat16 is for the arithmetic only."""
    drawn = scenes(count, seed + 2)
    latents = latents_of(folder, modules.autoencoder, drawn, device)
    unet, text = modules.unet, modules.text_encoder

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(drawn), (diffusion.BATCH,), generator=generator)
        rng = random.Random(f"{seed} {step}")
        captions = diffusion.dropped([caption(drawn[i], rng) for i in chosen.tolist()], generator)
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            hidden = text(tokens(captions, generator).to(device)).last_hidden_state
            return diffusion.noise_loss(unet, hidden, latents[chosen].to(device), generator)

    def show(step: int) -> None:
        pictures = sampled(modules, sheet_captions(), seed)
        save_sheet(pictures, 8, folder / f"samples_{step:06d}.png")

    trained = nn.ModuleDict({"unet": unet, "text": text})
    fit(trained, loss_of, steps, diffusion.LEARNING_RATE, folder / "unet.state", seed, on_save=show)
    show(steps)


def sheet_captions() -> list[str]:
    """Sixteen captions, the same for every sheet: single shapes, and toys."""
    drawn = [scene for scene in scenes(60, 4) if not scene.is_toy][:12]
    full = [full_caption(scene.parts[0], scene.view.ground) for scene in drawn]
    return [*full, "a photo of a toy on green grass", "a toy on sand", "a blue cube with a red ball on top", "a toy"]


def main() -> None:
    arguments = _arguments()
    folder, seed, device = arguments.folder, arguments.seed, arguments.device
    folder.mkdir(parents=True, exist_ok=True)
    handlers = [logging.StreamHandler(), logging.FileHandler(folder / "pretrain.log")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
    began = time.monotonic()
    pictures = functools.cache(lambda: rendered_bytes(scenes(arguments.pictures, seed)))
    modules = trained_modules(arguments.start) if arguments.start else new_modules(seed)
    for module in modules:
        module.to(device)
    modules.autoencoder.to(memory_format=torch.channels_last)
    pretrain_autoencoder(folder, modules.autoencoder, arguments.autoencoder_steps, pictures, seed, device)
    pretrain_unet(folder, modules, arguments.unet_steps, arguments.latents, seed, device, arguments.bfloat16)
    finish_decoder(folder, modules.autoencoder, arguments.decoder_steps, pictures, seed, device)
    save_weights(folder / "pocket.safetensors", *modules)
    log.info("done after %.0f s", time.monotonic() - began)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where states and sample sheets go, and at the end the weights")
    parser.add_argument("--start", type=Path, metavar="FILE", help="weights to go on from, instead of new ones")
    parser.add_argument("--autoencoder-steps", type=int, default=2040)
    parser.add_argument("--decoder-steps", type=int, default=400)
    parser.add_argument("--unet-steps", type=int, default=2500)
    parser.add_argument("--pictures", type=int, default=6144, help="that the autoencoder sees")
    parser.add_argument("--latents", type=int, default=16384, help="that the U-Net sees")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bfloat16", action="store_true", help="let U-Net and text encoder compute in bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
