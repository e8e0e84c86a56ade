"""Where the trainer's defaults come from: learning rates, epsilon and N, which the paper does not give.

    python tests/bench/defaults.py [--minutes 6]

Trains a U-Net of SD 1.5's block structure (tests/tiny.py, 3.2M parameters) from scratch on photos of 13 subjects for
some minutes, then personalises it on a 14th by LoRA and measures, at full size and under fixed noise, how much of the
loss goes. "Latents" are the photos' colours and luminance averaged over 8x8 pixels, so no autoencoder is needed.
The ZO learning rate is also predicted: for small steps the expected loss falls most at N / tr(H), H being the Hessian,
whose trace takes forward passes alone to estimate.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
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
RESOLUTION = 128  # 16 x 16 latents
TIMESTEPS = torch.arange(25, 1000, 50)


def latent(image: Tensor) -> Tensor:
    """Colours and luminance averaged over 8 x 8 pixels, about zero mean and unit variance, (4, H / 8, W / 8)."""
    small = torch.nn.functional.avg_pool2d(image.permute(2, 0, 1), 8)  # (H, W, 3) -> (3, H/8, W/8)
    return (torch.cat([small, small.mean(0, keepdim=True)]) - 0.5) * 4


def photos(subject: str) -> list[Tensor]:
    settings = SubjectSettings(PROMPT, RESOLUTION)
    return [photo.image for photo in load_subject(DREAMBOOTH / subject, settings, DREAMBOOTH).subject.photos]


def other_subjects(context_of) -> list[tuple[Tensor, Tensor]]:
    """Latents and prompts of all photos but the subject's."""
    return [
        (latent(image), context_of(f"a photo of a {folder.name.rstrip('0123456789').replace('_', ' ')}"))
        for folder in sorted(DREAMBOOTH.iterdir())
        if folder.is_dir() and folder.name != SUBJECT
        for image in photos(folder.name)
    ]


def pretrain(network: Network, data: list[tuple[Tensor, Tensor]], minutes: float, batch: int = 16) -> None:
    """Train all weights on the other subjects, or take them from the last time."""
    cache = ROOT / f".checkpoints/defaults_{minutes:g}.safetensors"
    if cache.is_file():
        network.unet.load_state_dict(load_file(cache))
        return
    params = list(network.unet.parameters())
    for p in params:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(params, lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    losses, start = [], time.perf_counter()
    while time.perf_counter() - start < 60 * minutes:
        picks = torch.randint(len(data), (batch,), generator=generator).tolist()
        shifts = torch.randint(-3, 4, (batch, 2), generator=generator).tolist()
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
    cache.parent.mkdir(exist_ok=True)
    save_file(network.unet.state_dict(), cache)


class Task:
    """The held-out subject on a network: losses for training steps, and fixed-noise losses that are the scores."""

    def __init__(self, network: Network, context: Tensor, others: list[tuple[Tensor, Tensor]]):
        self.network, self.context, self.others = network, context, others[::5]
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

    def score(self) -> float:
        """Mean loss over the subject's photos and TIMESTEPS at full size."""
        return self._mean([(image, self.context) for image in self.high])

    def drift(self) -> float:
        """The same over every fifth photo of the other subjects, with their own prompts."""
        return self._mean(self.others)

    @torch.inference_mode()
    def _mean(self, pairs: list[tuple[Tensor, Tensor]]) -> float:
        n = len(TIMESTEPS)
        losses = [
            denoising_loss(
                self.network, image.expand(n, -1, -1, -1), self.noise, TIMESTEPS, Condition(context.expand(n, -1, -1))
            )
            for image, context in pairs
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


def exact_slopes(task: Task, params: list[Tensor], draws: int = 24) -> Tensor:
    """Slopes by autograd for random photos, timesteps and directions, (draws,)."""
    generator = torch.Generator().manual_seed(4)
    slopes = []
    for seed in range(draws):
        gradients = torch.autograd.grad(task.loss(generator, task.high)(), params)
        z = [torch.zeros_like(p) for p in params]
        add_perturbation(z, seed, 1.0)
        slopes.append(sum((g * d).double().sum().item() for g, d in zip(gradients, z, strict=True)))
    return torch.tensor(slopes)


def slopes(task: Task, params: list[Tensor], epsilon: float, draws: int = 24) -> Tensor:
    """The same slopes by central differences."""
    generator = torch.Generator().manual_seed(4)
    found = []
    for seed in range(draws):
        loss = task.loss(generator, task.high)
        with torch.inference_mode():
            found.append(central_difference(lambda: loss().item(), params, seed, epsilon)[0])  # noqa: B023
    return torch.tensor(found)


def in_half_precision(network: Network, dtype: torch.dtype) -> Network:
    """The same network computing in float16 or bfloat16; its LoRA stays float32."""

    def predict(x_t, t, condition):
        with torch.autocast("cpu", dtype):
            return network.predict(x_t, t, condition).float()

    return network._replace(predict=predict)


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
    parser.add_argument("--minutes", type=float, default=6.0)
    minutes = parser.parse_args().minutes
    model, clip = tiny.tiny_model("sd1"), tiny.tiny_clip("sd1")

    def context_of(prompt: str) -> Tensor:
        return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0][0].clone()

    with host.trainable(model) as network:
        others = other_subjects(context_of)
        pretrain(network, others, minutes)
        task = Task(network, context_of(PROMPT), others)
        before, others_before = task.score(), task.drift()
        print(f"loss before: {before:.4f}; of the other subjects: {others_before:.4f}")
        print("\nBP-low, 750 steps of AdamW, rank 4: loss left, and of the other subjects")
        for learning_rate in (3e-5, 1e-4, 3e-4, 1e-3, 3e-3):
            with injected(network.unet, 4, 4.0, "attention", 0) as lora:
                backprop(task, lora.parameters(), learning_rate, 750, task.low)
                left, drift = task.score() / before, task.drift() / others_before
                print(f"  learning_rate {learning_rate:g}: {left:.4f} {drift:.4f}", flush=True)
        with injected(network.unet, 4, 4.0, "attention", 0) as lora:
            params = lora.parameters()
            backprop(task, params, 3e-4, 100, task.low)
            start, start_score = [p.detach().clone() for p in params], task.score()
            size = sum(p.numel() for p in params)
            print(f"\nAfter 100 steps of BP-low: {start_score / before:.4f} left. {size} factors")
            print("\nError of a slope against autograd, in float32, float16 and bfloat16")
            exact = exact_slopes(task, params)
            halves = [
                Task(in_half_precision(network, dtype), task.context, others)
                for dtype in (torch.float16, torch.bfloat16)
            ]
            for epsilon in (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4):
                errors = [(slopes(t, params, epsilon) - exact).norm() / exact.norm() for t in (task, *halves)]
                print(f"  zo_epsilon {epsilon:g}: " + " ".join(f"{error:.4f}" for error in errors), flush=True)
            trace = hessian_trace(task, params)
            print(f"\ntr(H) = {trace:.3g}, so the predicted best zo_learning_rate is {1 / trace:.3g} N")
            print("\nZO at full size from there, 2000 forward passes, zo_epsilon 1e-2")
            for n in (1, 4):
                for learning_rate in (1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0):
                    for p, value in zip(params, start, strict=True):
                        p.data.copy_(value)
                    zero_order(task, params, learning_rate, 1e-2, n, 2000)
                    ratio = task.score() / start_score
                    print(f"  N {n}, zo_learning_rate {learning_rate:g}: {ratio:.4f} of that loss left", flush=True)


if __name__ == "__main__":
    main()
