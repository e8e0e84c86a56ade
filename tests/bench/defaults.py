"""Where the trainer's defaults come from: learning rates, epsilon and N, which the paper does not give.

    python tests/bench/defaults.py [--minutes 8]

Trains a U-Net of SD 1.5's block structure (tests/tiny.py, 3.2M parameters) from scratch on photos of 13 subjects for
some minutes, then personalises it on a 14th by LoRA and measures, at full size and under fixed noise, how much of the
loss goes. "Latents" are the photos' colours and luminance averaged over 8x8 pixels, so no autoencoder is needed.
What carries over to a large model is the shape of the answers; the ZO learning rate is also predicted from the trace of
the Hessian, N / tr(H), which can be measured on any model.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import conftest  # noqa: E402, F401, the package `pack` and ComfyUI
import tiny  # noqa: E402
from pack.nodes import host  # noqa: E402
from pack.trainers.lora import injected  # noqa: E402
from pack.trainers.objective import Condition, Network, denoising_loss  # noqa: E402
from pack.trainers.photos import SubjectSettings, downscaled, load_subject  # noqa: E402
from pack.trainers.zero_order import add_perturbation, central_difference, zero_order_step  # noqa: E402
from pictures import DREAMBOOTH  # noqa: E402

SUBJECT, PROMPT = "dog6", "a photo of a sks dog"
RESOLUTION = 256  # 32 x 32 latents
TIMESTEPS = torch.arange(25, 1000, 50)


def latent(image: Tensor) -> Tensor:
    """Colours and luminance averaged over 8 x 8 pixels, about zero mean and unit variance, (4, H / 8, W / 8)."""
    small = torch.nn.functional.avg_pool2d(image.permute(2, 0, 1), 8)  # (H, W, 3) -> (3, H/8, W/8)
    return (torch.cat([small, small.mean(0, keepdim=True)]) - 0.5) * 4


def photos(subject: str) -> list[Tensor]:
    settings = SubjectSettings(PROMPT, RESOLUTION)
    return [photo.image for photo in load_subject(DREAMBOOTH / subject, settings, DREAMBOOTH).subject.photos]


def pretrain(network: Network, context_of, minutes: float, batch: int = 16) -> float:
    """Train all weights on the other subjects; returns the mean loss of the last 100 steps."""
    data = [
        (latent(image), context_of(f"a photo of a {folder.name.rstrip('0123456789').replace('_', ' ')}"))
        for folder in sorted(DREAMBOOTH.iterdir())
        if folder.is_dir() and folder.name != SUBJECT
        for image in photos(folder.name)
    ]
    params = list(network.unet.parameters())
    for p in params:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(params, lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    losses, start = [], time.perf_counter()
    while time.perf_counter() - start < 60 * minutes:
        picks = torch.randint(len(data), (batch,), generator=generator).tolist()
        shifts = torch.randint(-6, 7, (batch, 2), generator=generator).tolist()
        x0 = torch.stack([data[i][0].roll(shift, (1, 2)) for i, shift in zip(picks, shifts, strict=True)])
        x0 = torch.where(torch.rand(batch, 1, 1, 1, generator=generator) < 0.5, x0, x0.flip(-1))
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.randint(1000, (batch,), generator=generator)
        condition = Condition(torch.stack([data[i][1] for i in picks]))
        loss = denoising_loss(network, x0, noise, t, condition).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for p in params:
        p.requires_grad_(False)
    print(f"pretrained {len(losses)} steps, loss {sum(losses[-100:]) / 100:.4f}\n")
    return sum(losses[-100:]) / 100


class Task:
    """The held-out subject on a network: losses for training steps, and the fixed-noise loss that is the score."""

    def __init__(self, network: Network, context: Tensor):
        self.network, self.context = network, context
        images = photos(SUBJECT)
        self.high = torch.stack([latent(image) for image in images])
        self.low = torch.stack([latent(downscaled(image, 0.5)) for image in images])
        generator = torch.Generator().manual_seed(1)
        self.noise = torch.randn((len(TIMESTEPS), *self.high.shape[1:]), generator=generator)

    def loss(self, generator: torch.Generator, images: Tensor):
        """The loss of one random photo, timestep and noise, as a function of the weights."""
        x0 = images[torch.randint(len(images), (1,), generator=generator)]
        t = torch.randint(1000, (1,), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        return lambda: denoising_loss(self.network, x0, noise, t, Condition(self.context[None])).mean()

    @torch.inference_mode()
    def score(self) -> float:
        """Mean loss over all photos and TIMESTEPS at full size."""
        condition = Condition(self.context.expand(len(TIMESTEPS), -1, -1))
        losses = [
            denoising_loss(self.network, image.expand(len(TIMESTEPS), -1, -1, -1), self.noise, TIMESTEPS, condition)
            for image in self.high
        ]
        return torch.stack(losses).mean().item()


def backprop(task: Task, params: list[Tensor], learning_rate: float, steps: int, images: Tensor) -> None:
    optimizer = torch.optim.AdamW(params, lr=learning_rate)
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(generator, images)().backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()


def zero_order(task: Task, params: list[Tensor], learning_rate: float, epsilon: float, n: int, passes: int) -> None:
    generator = torch.Generator().manual_seed(3)
    for step in range(passes // (2 * n)):
        loss = task.loss(generator, task.high)
        with torch.inference_mode():
            zero_order_step(lambda: loss().item(), params, [step * n + i for i in range(n)], epsilon, learning_rate)  # noqa: B023


def slope_error(task: Task, params: list[Tensor], epsilon: float, draws: int = 24) -> float:
    """Relative error of central differences against autograd, root mean square over random photos and directions."""
    generator = torch.Generator().manual_seed(4)
    errors, exacts = [], []
    for seed in range(draws):
        loss = task.loss(generator, task.high)
        gradients = torch.autograd.grad(loss(), params)
        z = [torch.zeros_like(p) for p in params]
        add_perturbation(z, seed, 1.0)
        exact = sum((g * d).double().sum().item() for g, d in zip(gradients, z, strict=True))
        with torch.inference_mode():
            slope, _ = central_difference(lambda: loss().item(), params, seed, epsilon)  # noqa: B023
        errors.append(slope - exact)
        exacts.append(exact)
    return (torch.tensor(errors).norm() / torch.tensor(exacts).norm()).item()


def hessian_trace(task: Task, params: list[Tensor], epsilon: float = 3e-3, draws: int = 48) -> float:
    """tr(H) of the loss with respect to the factors: mean over z of (L(+) + L(-) - 2 L) / eps^2."""
    generator = torch.Generator().manual_seed(5)
    total = 0.0
    for seed in range(draws):
        loss = task.loss(generator, task.high)
        with torch.inference_mode():
            middle = loss().item()
            _, mean = central_difference(lambda: loss().item(), params, seed, epsilon)  # noqa: B023
        total += 2 * (mean - middle) / epsilon**2
    return total / draws


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    minutes = parser.parse_args().minutes
    model, clip = tiny.tiny_model("sd1"), tiny.tiny_clip("sd1")

    def context_of(prompt: str) -> Tensor:
        return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0][0].clone()

    with host.trainable(model) as network:
        pretrain(network, context_of, minutes)
        task = Task(network, context_of(PROMPT))
        before = task.score()
        print(f"score before: {before:.4f}\n\nBP at full size, 300 steps of AdamW, rank 4")
        for learning_rate in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3):
            with injected(network.unet, 4, 4.0, "attention", 0) as lora:
                backprop(task, lora.parameters(), learning_rate, 300, task.high)
                print(f"  learning_rate {learning_rate:g}: {task.score() / before:.4f} of the loss left", flush=True)
        with injected(network.unet, 4, 4.0, "attention", 0) as lora:
            params = lora.parameters()
            backprop(task, params, 3e-4, 100, task.low)
            start, start_score = [p.detach().clone() for p in params], task.score()
            size = sum(p.numel() for p in params)
            print(f"\nAfter 100 steps of BP-low: {start_score / before:.4f} left. {size} factors")
            print("\nError of a slope against autograd")
            for epsilon in (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5):
                print(f"  zo_epsilon {epsilon:g}: {slope_error(task, params, epsilon):.4f}", flush=True)
            trace = hessian_trace(task, params)
            print(f"\ntr(H) = {trace:.3g}, so the predicted best zo_learning_rate is {1 / trace:.3g} N")
            print("\nZO at full size from there, 1600 forward passes, zo_epsilon 1e-3")
            for n in (1, 4, 8):
                for learning_rate in (1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3):
                    for p, value in zip(params, start, strict=True):
                        p.data.copy_(value)
                    zero_order(task, params, learning_rate, 1e-3, n, 1600)
                    ratio = task.score() / start_score
                    print(f"  N {n}, zo_learning_rate {learning_rate:g}: {ratio:.4f} of that loss left", flush=True)


if __name__ == "__main__":
    main()
