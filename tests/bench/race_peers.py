"""The others in race.py: core's TrainLoraNode, and two loops on diffusers' and peft's own parts as its examples have
them. Their peaks are live bytes of tensors, by the trainers' own counter, over a few steps of a run of their own."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from comfy_extras.nodes_train import TrainLoraNode
from comfyui import comfyui_path
from diffusers import DDPMScheduler
from pack.trainers.memory import LiveBytes
from pack.trainers.pocket.export import pipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from race_ours import BATCH, LORA_NAME, LORA_RATE, RANK, TOKEN_RATE, WORD, Clock, Racer, Run, Subject
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from toys import World

COUNTED_STEPS = 2  # AdamW's moments are there in the second
CORE_AS_OURS = {"rank": RANK, "learning_rate": LORA_RATE, "gradient_checkpointing": False}
CORE_AS_OURS |= {"training_dtype": "fp32", "lora_dtype": "fp32"}


def core(**settings) -> Racer:
    """Core's node, through its class, on tensors of inference mode as in a graph. It copies the model; where the first
    copy stays is ComfyUI's affair (off a GPU), so its bytes are not counted here."""

    def train(world: World, subject: Subject, seed: int, marks: Sequence[int], is_counted: bool) -> Run:
        defaults = {item.id: item.default for item in TrainLoraNode.GET_SCHEMA().inputs if hasattr(item, "default")}
        given = defaults | settings | {"batch_size": BATCH, "seed": seed, "steps": marks[-1]}
        copies, step = [], 0
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(seed)  # of its LoRA, photos and timesteps
            latents = [{"samples": world.vae.encode(subject.pictures.movedim(1, 3))}]  # (5, 128, 128, 3)
            positive = [world.clip.encode_from_tokens_scheduled(world.clip.tokenize(f"a photo of a {LORA_NAME}"))]
            clock = Clock(marks)

            def after(optimizer, *_) -> None:
                nonlocal step
                step += 1
                values = optimizer.param_groups[0]["params"]
                clock.note(step, lambda: {str(i): value.detach().clone() for i, value in enumerate(values)})

            watching = register_optimizer_step_post_hook(after)
            try:
                with LiveBytes() if is_counted else nullcontext() as counter:
                    settings_as_lists = {name: [value] for name, value in given.items()}
                    inputs = {"model": [world.model], "latents": latents, "positive": positive}
                    lora = TrainLoraNode.execute(**inputs, **settings_as_lists).result[0]
            finally:
                watching.remove()
        for snapshot in clock.snapshots:  # the optimizer has the parameters in the LoRA's order
            copies.append(snapshot._replace(learnt=dict(zip(lora, snapshot.learnt.values(), strict=True))))
        return Run(copies, counter.peak if is_counted else 0)

    return lambda world, subject, seed, marks: _counted_first(partial(train, world, subject, seed), marks)


def diffusers_lora(world: World, subject: Subject, seed: int, marks: Sequence[int]) -> Run:
    """DreamBooth by LoRA without prior preservation, as in diffusers' examples; latents and prompt encoded once."""

    def train(marks: Sequence[int], is_counted: bool) -> Run:
        parts = _Parts(subject, seed)
        prompt = parts.tokens(f"a photo of a {LORA_NAME}")
        with torch.no_grad():
            context = parts.text_encoder(prompt).last_hidden_state
        torch.manual_seed(seed)
        with LiveBytes(parts.unet.parameters()) if is_counted else nullcontext() as counter:
            clock, unet = Clock(marks), parts.unet.requires_grad_(False)
            targets = ["to_k", "to_q", "to_v", "to_out.0"]
            unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=targets))
            learnt = [parameter for parameter in unet.parameters() if parameter.requires_grad]
            optimizer = torch.optim.AdamW(learnt, lr=LORA_RATE)
            unet.train()
            for step in range(1, marks[-1] + 1):
                parts.loss(BATCH, context.expand(BATCH, -1, -1)).backward()
                torch.nn.utils.clip_grad_norm_(learnt, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                clock.note(step, lambda: _kohya(get_peft_model_state_dict(unet)))
        return Run(clock.snapshots, counter.peak if is_counted else 0)

    with torch.random.fork_rng():
        return _counted_first(train, marks)


def diffusers_token(world: World, subject: Subject, seed: int, marks: Sequence[int]) -> Run:
    """Textual inversion as in diffusers' examples: AdamW on the whole table of words, all but one row put back."""

    def train(marks: Sequence[int], is_counted: bool) -> Run:
        parts, mark = _Parts(subject, seed), "<my-toy>"
        (word,) = parts.tokenizer(WORD, add_special_tokens=False).input_ids
        parts.tokenizer.add_tokens([mark])
        encoder, unet = parts.text_encoder, parts.unet.requires_grad_(False)
        encoder.resize_token_embeddings(len(parts.tokenizer), mean_resizing=False)
        token, table = parts.tokenizer.convert_tokens_to_ids(mark), encoder.get_input_embeddings().weight
        encoder.requires_grad_(False)
        table.data[token] = table.data[word]
        table.requires_grad_(True)
        prompt = parts.tokens(f"a photo of a {mark}")
        torch.manual_seed(seed)
        resident = [*unet.parameters(), *encoder.parameters()]
        with LiveBytes(resident) if is_counted else nullcontext() as counter:
            clock, optimizer = Clock(marks), torch.optim.AdamW([table], lr=TOKEN_RATE)
            others, before = torch.arange(len(table)) != token, table.detach().clone()
            encoder.train()
            for step in range(1, marks[-1] + 1):
                parts.loss(1, encoder(prompt).last_hidden_state).backward()
                optimizer.step()
                optimizer.zero_grad()
                with torch.no_grad():
                    table[others] = before[others]
                clock.note(step, lambda: {"clip_l": table[token].detach().clone()[None]})
        return Run(clock.snapshots, counter.peak if is_counted else 0)

    with torch.random.fork_rng():
        return _counted_first(train, marks)


def _counted_first(train: Callable[..., Run], marks: Sequence[int]) -> Run:
    """The training, and the peak of a short one before it, since counting takes time."""
    peak = train([COUNTED_STEPS], is_counted=True).peak_bytes
    return train(marks, is_counted=False)._replace(peak_bytes=peak)


class _Parts:
    """The pocket model in diffusers' own classes, and the loss of random photos, noise and timesteps."""

    def __init__(self, subject: Subject, seed: int):
        pipe = pipeline(comfyui_path() / "comfy" / "sd1_tokenizer")
        self.unet, self.text_encoder, self.tokenizer = pipe.unet, pipe.text_encoder, pipe.tokenizer
        self.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
        with torch.no_grad():
            self.latents = pipe.vae.encode(subject.pictures * 2 - 1).latents
        self._generator = torch.Generator().manual_seed(seed)

    def tokens(self, text: str) -> Tensor:
        return self.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids

    def loss(self, count: int, context: Tensor) -> Tensor:
        picked = torch.randperm(len(self.latents), generator=self._generator)[:count]
        x0, timesteps = self.latents[picked], self.scheduler.config.num_train_timesteps
        noise = torch.randn(x0.shape, generator=self._generator)
        t = torch.randint(timesteps, (count,), generator=self._generator)
        predicted = self.unet(self.scheduler.add_noise(x0, noise, t), t, context).sample
        return torch.nn.functional.mse_loss(predicted, noise)


def _kohya(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """peft's names of a LoRA as ComfyUI reads them."""
    renamed = {}
    for name, value in state.items():
        module, factor = name.removesuffix(".weight").rsplit(".", 1)
        module = "lora_unet_" + module.replace(".", "_")
        renamed[f"{module}.{ {'lora_A': 'lora_down', 'lora_B': 'lora_up'}[factor] }.weight"] = value.detach().clone()
        renamed[f"{module}.alpha"] = torch.tensor(float(RANK))
    return renamed
