"""ComfyUI's text encoders with a token that changes while it is learnt.

Text is encoded by the very modules that core's CLIP Text Encode runs, so that the conditioning is the same to the bit.
Tried against ComfyUI 0.30.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import cycle

import torch
from comfy import model_management
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor, nn

from ..trainers.objective import Condition, Network
from ..trainers.token_prompts import check_token_name, embedding_prompt
from ..trainers.token_steps import TokenExample
from ..trainers.token_table import looked_up_in_ram
from .host import _size_vector, _token_width
from .host_embeddings import embedding_table, encoder_names, with_lookup
from .host_weights import fit_for_autograd, unload

MARK = torch.zeros(1)  # where a vector of the token goes; no vector is one number wide


class TextEncoder:
    """A CLIP's text encoders, on their device, ready to encode a token that changes."""

    def __init__(self, clip: CLIP, name: str, waiting_bytes: int):
        self.waiting_bytes = waiting_bytes  # of weights that are quantised, and of the table of words: off the device
        self.name, self.module, self.device = name, clip.cond_stage_model, clip.patcher.load_device
        self._keys = encoder_names(clip)
        self._vectors: dict[str, Tensor] = {}
        self._clip = with_lookup(clip, name, self._vectors)
        self._marked: dict[tuple[str, int], dict[str, list]] = {}

    @property
    def width(self) -> int:
        """Of the conditioning."""
        return sum(embedding_table(self.module, key).embedding_dim for key in self._keys)

    def initial_vectors(self, word: str, count: int) -> dict[str, Tensor]:
        """`count` copies of the word's vector, (count, w) by text encoder on the CPU; of its mean if it is several."""
        return {key: self._word(key, word).expand(count, -1).clone() for key in self._keys}

    def _word(self, key: str, word: str) -> Tensor:
        tokenizer = getattr(self._clip.tokenizer, key)
        ids = tokenizer.tokenizer(word)["input_ids"][tokenizer.tokens_start : -1]
        if not ids:
            raise ValueError(f"initial_word: got {word!r}; needs a word for what the photos show, such as dog")
        rows = embedding_table(self.module, key)(torch.tensor(ids, device=self.device), out_dtype=torch.float32)
        return rows.mean(0).cpu()

    def check(self, text: str) -> None:
        """Raises ValueError unless the token is in the text as ComfyUI reads it."""
        words = [word for section in self._tokenized(text, 1)[self._keys[0]] for word, _ in section]
        if not any(map(_is_mark, words)):
            raise ValueError(f"captions: {text!r} does not hold {embedding_prompt(self.name)} between spaces")

    def encode(self, text: str, vectors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Conditioning (K, S, D) and pooled text (K, A) for each of K tokens, (K, n, w) by text encoder.

        With gradients if the vectors ask for them and gradients are on.
        """
        tensors = [vectors[key].to(self.device) for key in self._keys]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return _Encoded.apply(partial(self._forward, text), *tensors)
        return self._forward(text, *tensors)

    def _forward(self, text: str, *tensors: Tensor) -> tuple[Tensor, Tensor | None]:
        prompts = [self._prompt(text, candidate) for candidate in zip(*tensors, strict=True)]
        is_on_cuda = self.device.type == "cuda"  # ComfyUI 0.20 has no context for this yet
        with torch.cuda.device(self.device) if is_on_cuda else nullcontext():
            return _encoded(self.module, self._keys, prompts)

    def _prompt(self, text: str, candidate: Sequence[Tensor]) -> dict[str, list]:
        """Sections of (token or vector, weight) pairs by text encoder, with the candidate's vectors (n, w) in them."""
        marked, prompt = self._tokenized(text, len(candidate[0])), {}
        for key, vectors in zip(self._keys, candidate, strict=True):
            rows = cycle(vectors)
            prompt[key] = [[(next(rows) if _is_mark(word) else word, w) for word, w in part] for part in marked[key]]
        return prompt

    def _tokenized(self, text: str, count: int) -> dict[str, list]:
        """The same with marks in the place of a token of so many vectors. Each text is tokenized once in a run."""
        if (text, count) not in self._marked:
            self._vectors.update({key: MARK.expand(count, -1) for key in self._keys})
            tokens = self._clip.tokenize(text)
            self._marked[text, count] = {key: tokens[key.removeprefix("clip_")] for key in self._keys}
        return self._marked[text, count]


def _is_mark(word: int | Tensor) -> bool:
    return torch.is_tensor(word) and word.shape == MARK.shape


def _encoded(module: nn.Module, keys: Sequence[str], prompts: list[dict[str, list]]) -> tuple[Tensor, Tensor | None]:
    """What encode_token_weights gives for each of K prompts alike but for their vectors, as one batch."""
    if any(weight != 1 for section in prompts[0][keys[0]] for _, weight in section):
        alone = [module.encode_token_weights({key.removeprefix("clip_"): p[key] for key in keys}) for p in prompts]
        contexts, pooled = zip(*alone, strict=True)
        return torch.cat(contexts), None if pooled[0] is None else torch.cat(pooled)
    parts = []
    for key in keys:
        sections = [[token for token, _ in section] for prompt in prompts for section in prompt[key]]
        context, pooled = getattr(module, key).encode(sections)[:2]
        parts.append(context.unflatten(0, (len(prompts), -1)).flatten(1, 2))  # (K * sections, 77, w) -> (K, S, w)
    length = min(part.shape[1] for part in parts)
    context = torch.cat([part[:, :length] for part in parts], dim=-1)
    return context, None if pooled is None else pooled.unflatten(0, (len(prompts), -1))[:, 0]


class _Encoded(torch.autograd.Function):
    """Encodes without keeping activations, and again for the backward pass.

    ComfyUI's CLIP layers add in place to what autograd has saved. PyTorch allows it within one context for forward and
    backward pass; here that context holds this second encoding alone, and not the U-Net.
    """

    @staticmethod
    def forward(ctx, encode: Callable[..., tuple[Tensor, Tensor | None]], *vectors: Tensor):
        ctx.encode = encode
        ctx.save_for_backward(*vectors)
        return encode(*vectors)

    @staticmethod
    def backward(ctx, *gradients: Tensor | None):
        with torch.enable_grad(), torch.autograd.graph.allow_mutation_on_saved_tensors():
            vectors = [vector.detach().requires_grad_() for vector in ctx.saved_tensors]
            pairs = zip(ctx.encode(*vectors), gradients, strict=True)
            outputs, given = zip(*(pair for pair in pairs if pair[1] is not None and pair[0] is not None), strict=True)
            return None, *torch.autograd.grad(outputs, vectors, given)


@contextmanager
def text_encoder(clip: CLIP, name: str, quantization: str = "none") -> Iterator[TextEncoder]:
    """The CLIP's own text encoders on their device, with a live token of this name, as weights fit for autograd.

    To be entered inside host.trainable(), which empties the device. The CLIP and its weights have their own values
    afterwards. Raises ValueError for a name that prompts cannot hold, and for a CLIP of another family or with hooks.
    """
    check_token_name(name)
    if clip.patcher.forced_hooks:
        raise ValueError(
            "clip: it has hooks (Set CLIP Hooks), with which no token can be learnt; connect it before them"
        )
    private = clip.patcher.is_dynamic()
    if private:
        clip = clip.clone(disable_dynamic=True)
        clip.cond_stage_model = clip.patcher.model  # clone() leaves the dynamic one there
    encoder_names(clip)
    module = clip.cond_stage_model
    try:
        with ExitStack() as stack:
            waiting = stack.enter_context(fit_for_autograd(clip.patcher, module, quantization, alone=False))
            tables = [embedding_table(module, key) for key in encoder_names(clip)]
            waiting += stack.enter_context(looked_up_in_ram(tables, clip.patcher.load_device))
            module.reset_clip_options()
            if clip.layer_idx is not None:
                module.set_clip_options({"layer": clip.layer_idx})
            module.set_clip_options({"execution_device": clip.patcher.load_device})
            yield TextEncoder(clip, name, waiting)
    finally:
        module.reset_clip_options()
        if private:
            unload(clip.patcher)


def token_examples(
    model: ModelPatcher,
    network: Network,
    encoder: TextEncoder,
    latents: Sequence[Tensor],
    captions: Sequence[Sequence[str]],
    weights: Sequence[Tensor | None] | None = None,
) -> list[TokenExample]:
    """Photos (C, H, W), scaled as the U-Net expects them, each with its captions, which hold embedding:NAME.

    weights are host.photo_weights().

    Raises ValueError where a caption does not, and where the CLIP does not belong to the model; RuntimeError where the
    device had no room for both.
    """
    if any(p.device != network.device for p in network.unet.parameters() if not p.is_meta):  # whose memory is counted
        raise RuntimeError(
            f"{network.device} has no room for model and clip at once, which steps need; set quantization to int8"
        )
    width, needed = encoder.width, _token_width(model.model.diffusion_model)
    if width != needed:
        raise ValueError(
            f"clip: its tokens are {width} wide, the model needs {needed}; connect the CLIP of "
            f"the model, from the same checkpoint"
        )
    for text in dict.fromkeys(text for texts in captions for text in texts):
        encoder.check(text)
    return [
        TokenExample(latent, [partial(_condition, model, network, encoder, latent, text) for text in texts], weight)
        for latent, texts, weight in zip(latents, captions, weights or [None] * len(latents), strict=True)
    ]


def live_conditions(
    model: ModelPatcher,
    network: Network,
    encoder: TextEncoder,
    latent: Tensor,
    prompt: str,
    present: Sequence[Callable[[], Mapping[str, Tensor]]],
) -> Callable[[], list[Condition]]:
    """Gives the prompt, with the token as it is by then, and "", for pictures of the size of this latent (C, H, W).

    The first of `present` gives the token, (1, n, w) by text encoder; it has to be there by the first call.
    """
    return lambda: [_condition(model, network, encoder, latent, text, present[0]()) for text in (prompt, "")]


def _condition(
    model: ModelPatcher,
    network: Network,
    encoder: TextEncoder,
    latent: Tensor,
    text: str,
    vectors: Mapping[str, Tensor],
) -> Condition:
    context, pooled = encoder.encode(text, vectors)
    size = (8 * latent.shape[-1], 8 * latent.shape[-2])
    vector = _size_vector(model, latent[None], (context, pooled), size, target=size)
    return Condition(context.to(network.device), None if vector is None else vector.to(network.device))


def free_bytes(network: Network) -> Callable[[], int]:
    """What memory is left on the network's device, whenever it is asked."""
    return lambda: int(model_management.get_free_memory(network.device))
