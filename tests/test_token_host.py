"""ComfyUI's text encoders with a live token: the same bits as the stock node, gradients, and nothing left behind."""

from contextlib import contextmanager
from functools import cache

import pytest
import tiny
import torch
from comfy.text_encoders.sd3_clip import SD3Tokenizer
from pack.nodes import host
from pack.nodes.host_embeddings import encoder_names, with_token
from pack.nodes.host_token import text_encoder, token_examples
from pack.trainers.memory import PhaseMeter
from pack.trainers.photos import Photo, Subject
from safetensors.torch import save_file

import nodes  # ComfyUI's, not ours

KINDS = ("sd1", "sd2", "sdxl")
every_kind = pytest.mark.parametrize("kind", KINDS)
NAME = "my_dog"
tiny_clip = cache(tiny.tiny_clip)  # nothing changes them
TEXTS = (
    "embedding:my_dog",
    "a photo of a embedding:my_dog on a table",
    "embedding:my_dog, sharp, and embedding:my_dog",
    "a (embedding:my_dog:1.3) with a (hat)",
    f"a photo of {'very ' * 80} good embedding:my_dog",
)


def token(kind: str, count: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys = {"sd1": ["clip_l"], "sd2": ["clip_h"], "sdxl": ["clip_l", "clip_g"]}[kind]
    return {key: torch.randn(count, tiny.WIDTH, generator=generator) * 0.2 for key in keys}


def stock(clip, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What core's CLIP Text Encode gives, run as ComfyUI runs it."""
    with torch.inference_mode():
        (((context, extras),),) = nodes.CLIPTextEncode().encode(clip, text)
    return context, extras["pooled_output"]


def parts(tokenizer):
    return [part for part in vars(tokenizer).values() if hasattr(part, "embedding_directory")]


@contextmanager
def encoding(clip):
    with torch.inference_mode(False), text_encoder(clip, NAME) as encoder:
        yield encoder


def assert_equal(got, expected):
    assert len(got) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@every_kind
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_memory_and_file_give_the_same_bits(kind, text, tmp_path):
    vectors = token(kind)
    save_file(
        vectors if kind == "sdxl" else {"emb_params": next(iter(vectors.values()))}, tmp_path / f"{NAME}.safetensors"
    )
    with_file = tiny.tiny_clip(kind)
    for part in parts(with_file.tokenizer):
        part.embedding_directory = [str(tmp_path)]
    expected = stock(with_file, text)
    assert_equal(stock(with_token(tiny_clip(kind), NAME, vectors), text), expected)
    assert not torch.equal(stock(tiny_clip(kind), text)[0], expected[0])


@every_kind
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize("layer", [None, -2])
def test_the_live_token_gives_the_bits_of_the_stock_node(kind, text, layer):
    clip, vectors = tiny_clip(kind).clone(), token(kind)
    clip.clip_layer(layer)
    expected = stock(with_token(clip, NAME, vectors), text)
    one = {key: vector[None] for key, vector in vectors.items()}
    with encoding(clip) as encoder:
        with torch.inference_mode():
            assert_equal(encoder.encode(text, one), expected)
        asking = {key: vector.clone().requires_grad_() for key, vector in one.items()}
        assert_equal(encoder.encode(text, asking), expected)


@every_kind
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_batch_of_tokens_is_each_of_them(kind, text):
    tokens = [token(kind, seed=seed) for seed in range(3)]
    batch = {key: torch.stack([one[key] for one in tokens]) for key in tokens[0]}
    with encoding(tiny_clip(kind)) as encoder, torch.inference_mode():
        together = encoder.encode(text, batch)
        for k in range(3):
            alone = encoder.encode(text, {key: vector[k : k + 1] for key, vector in batch.items()})
            torch.testing.assert_close([x[k : k + 1] for x in together], list(alone), atol=1e-5, rtol=0)


@every_kind
def test_the_first_vectors_are_those_of_the_word(kind):
    clip = tiny.tiny_clip(kind)
    with encoding(clip) as encoder:
        dog = encoder.initial_vectors("dog", 1)
        got = encoder.encode("a photo of a embedding:my_dog", {key: vector[None] for key, vector in dog.items()})
        several = encoder.initial_vectors("corgi puppy", 3)
        words = [encoder.initial_vectors(word, 1) for word in ("corgi", "puppy")]
    assert_equal(got, stock(clip, "a photo of a dog"))
    for key, vectors in several.items():
        assert vectors.shape == (3, tiny.WIDTH) and not vectors.requires_grad
        torch.testing.assert_close(vectors, ((words[0][key] + words[1][key]) / 2).expand(3, -1))


def test_a_word_of_nothing_is_refused():
    with encoding(tiny_clip("sd1")) as encoder, pytest.raises(ValueError, match="initial_word: got ' '"):
        encoder.initial_vectors(" ", 1)


@every_kind
@pytest.mark.parametrize("text", TEXTS[1:4], ids=range(3))
def test_gradients_agree_with_finite_differences(kind, text):
    """Of a random projection of conditioning and pooled text, along random directions."""
    generator = torch.Generator().manual_seed(5)
    vectors = {key: vector[None] for key, vector in token(kind).items()}
    with encoding(tiny_clip(kind)) as encoder:
        weights = [torch.randn(x.shape, generator=generator) for x in encoder.encode(text, vectors)]

        def value(at):
            return sum((w * x).double().sum() for w, x in zip(weights, encoder.encode(text, at), strict=True))

        asking = {key: vector.clone().requires_grad_() for key, vector in vectors.items()}
        gradients = torch.autograd.grad(value(asking), list(asking.values()))
        for _ in range(3):
            z = {key: torch.randn(vector.shape, generator=generator) for key, vector in vectors.items()}
            above, below = (value({key: vectors[key] + e * z[key] for key in z}) for e in (1e-3, -1e-3))
            slope = sum((g * d).double().sum() for g, d in zip(gradients, z.values(), strict=True))
            assert ((above - below) / 2e-3).item() == pytest.approx(slope.item(), rel=1e-2, abs=1e-2)


class Cancelled(BaseException):
    """As ComfyUI's InterruptProcessingException, no Exception."""


@every_kind
@pytest.mark.parametrize("error", [None, KeyboardInterrupt, Cancelled])
def test_the_clip_is_left_as_it_was(kind, error):
    clip = tiny.tiny_clip(kind)
    weights = {name: value.clone() for name, value in clip.cond_stage_model.state_dict().items()}
    tokenizers = [(part, dict(vars(part))) for part in parts(clip.tokenizer)]
    modules, tokenizer = list(clip.cond_stage_model.modules()), clip.tokenizer
    encoders = [getattr(clip.cond_stage_model, name) for name in encoder_names(clip)]
    options = [(part.layer, part.layer_idx, part.execution_device) for part in encoders]
    asked = [parameter.requires_grad for parameter in clip.cond_stage_model.parameters()]
    before = stock(clip, "a photo of a dog")
    one = {key: vector[None].requires_grad_() for key, vector in token(kind).items()}
    try:
        with encoding(clip) as encoder:
            encoder.encode(TEXTS[1], one)[0].sum().backward()
            if error:
                raise error
    except (KeyboardInterrupt, Cancelled):
        pass
    with_token(clip, NAME, token(kind))
    after = clip.cond_stage_model.state_dict()
    assert after.keys() == weights.keys() and all(torch.equal(after[name], value) for name, value in weights.items())
    assert list(clip.cond_stage_model.modules()) == modules
    assert [parameter.requires_grad for parameter in clip.cond_stage_model.parameters()] == asked
    assert clip.tokenizer is tokenizer and all(dict(vars(part)) == content for part, content in tokenizers)
    assert [(part.layer, part.layer_idx, part.execution_device) for part in encoders] == options
    assert_equal(stock(clip, "a photo of a dog"), before)


def test_a_lora_on_the_clip_acts_and_is_taken_off_again():
    clip = tiny.tiny_clip("sd1")
    before = stock(clip, "a photo of a dog")
    patched = clip.clone()
    name = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    assert patched.add_patches({name: ("diff", (torch.ones(2 * tiny.WIDTH, tiny.WIDTH),))}) == [name]
    vectors = token("sd1")
    expected = stock(with_token(patched, NAME, vectors), TEXTS[1])
    assert not torch.equal(expected[0], stock(with_token(clip, NAME, vectors), TEXTS[1])[0])
    with encoding(patched) as encoder:
        assert_equal(encoder.encode(TEXTS[1], {key: vector[None] for key, vector in vectors.items()}), expected)
    assert_equal(stock(clip, "a photo of a dog"), before)


def test_a_clip_can_hold_two_tokens():
    first, second = token("sd1", seed=1), token("sd1", seed=2)
    both = with_token(with_token(tiny_clip("sd1"), "one", first), "two", second)
    for name, vectors in (("one", first), ("two", second)):
        alone = with_token(tiny_clip("sd1"), name, vectors)
        assert_equal(stock(both, f"a embedding:{name}, sharp"), stock(alone, f"a embedding:{name}, sharp"))


def test_a_token_in_memory_comes_before_a_file(tmp_path):
    save_file({"emb_params": torch.zeros(1, tiny.WIDTH)}, tmp_path / f"{NAME}.safetensors")
    clip = tiny.tiny_clip("sd1")
    clip.tokenizer.clip_l.embedding_directory = [str(tmp_path)]
    expected = stock(with_token(tiny_clip("sd1"), NAME, token("sd1")), TEXTS[1])
    assert_equal(stock(with_token(clip, NAME, token("sd1")), TEXTS[1]), expected)


def test_the_clip_keeps_its_own_copy_of_the_vectors():
    vectors = token("sd1")
    clip = with_token(tiny.tiny_clip("sd1"), NAME, vectors)
    before = stock(clip, TEXTS[0])
    vectors["clip_l"].zero_()
    assert_equal(stock(clip, TEXTS[0]), before)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_conditions_are_those_of_an_encoded_photo(kind):
    """encode_subject with the token in memory is the oracle: context, pooled text and sizes."""
    model, clip = tiny.tiny_model(kind), tiny.tiny_clip(kind)
    vectors = token("sdxl" if kind == "ssd1b" else kind)
    photo = Photo("1.png", torch.rand(64, 96, 3, generator=torch.Generator().manual_seed(0)), TEXTS[1])
    subject = Subject((photo,), TEXTS[1], "", 64, False)
    with torch.inference_mode():
        meter = PhaseMeter(torch.device("cpu"))
        with_name = with_token(clip, NAME, vectors)
        sample = host.encode_subject(model, with_name, tiny.tiny_vae(), subject, 1.0, meter)[0].high
    with host.trainable(model) as network, text_encoder(clip, NAME) as encoder:
        (example,) = token_examples(model, network, encoder, [sample.latent], [TEXTS[:2]])
        got = example.encoders[1]({key: vector[None] for key, vector in vectors.items()})
    assert example.latent is sample.latent and len(example.encoders) == 2
    assert torch.equal(got.context[0], sample.context)
    assert sample.vector is None or torch.equal(got.vector[0], sample.vector)
    assert (got.vector is None) == (sample.vector is None)


def test_captions_without_the_token_are_refused():
    model = tiny.tiny_model("sd1")
    with host.trainable(model) as network, text_encoder(tiny_clip("sd1"), NAME) as encoder:
        for text in ("a dog", "a photo of embedding:my_dog.", "a photo of-embedding:my_dog", "embedding:my_cat"):
            with pytest.raises(ValueError, match="captions: .* does not hold embedding:my_dog"):
                token_examples(model, network, encoder, [torch.zeros(4, 8, 8)], [[text]])


def test_a_clip_that_does_not_belong_to_the_model_is_refused():
    model = tiny.tiny_model("sd1")
    with host.trainable(model) as network, text_encoder(tiny_clip("sdxl"), NAME) as encoder:
        with pytest.raises(ValueError, match="clip: its tokens are 64 wide, the model needs 32"):
            token_examples(model, network, encoder, [torch.zeros(4, 8, 8)], [[TEXTS[0]]])


def test_vectors_that_do_not_fit_the_clip_are_refused():
    with pytest.raises(ValueError, match="embedding: its vectors have widths .*clip_h.* the clip needs .*clip_l"):
        with_token(tiny_clip("sd1"), NAME, token("sd2"))


def test_a_clip_of_another_family_is_refused():
    clip = tiny.tiny_clip("sdxl").clone()
    clip.tokenizer = SD3Tokenizer()
    with pytest.raises(ValueError, match="clip: got a SDXLClipModel, needs to be the CLIP of a Stable Diffusion 1.x"):
        with_token(clip, NAME, token("sdxl"))


def test_bad_names_are_refused_before_anything_happens():
    with pytest.raises(ValueError, match="token: got 'my dog'"), text_encoder(tiny_clip("sd1"), "my dog"):
        pass
    with pytest.raises(ValueError, match="token: got 'my dog'"):
        with_token(tiny_clip("sd1"), "my dog", token("sd1"))
