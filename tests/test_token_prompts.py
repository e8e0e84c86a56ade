"""Names that prompts can hold, and prompts that hold them: judged by ComfyUI's own parser."""

import pytest
import tiny
import torch
from pack.nodes.host_embeddings import with_token
from pack.trainers.token_prompts import TEMPLATES, check_token_name, training_captions, with_embedding

BAD_NAMES = [
    ("", "empty"),
    ("my dog", "a space"),
    ("my,dog", "','"),
    ("(dog)", r"'\(', '\)'"),
    ("dog:1.2", "':'"),
    ("pets/dog", "'/'"),
    ("pets\\dog", "would end the name"),
    ("..", r"'\.'"),
    ("dog.safetensors", r"'\.'"),
    ("[dog]", r"'\['"),
    ("<dog>", "'<'"),
    ("{dog|cat}", r"'\{'"),
    ("dog\n", "would end the name"),
    ("dog\0", "would end the name"),
    ("1e5", "weight"),
    ("1_000", "weight"),
    ("inf", "weight"),
    ("NaN", "weight"),
    ("con", "Windows"),
    ("x" * 300, "longer than"),
]


@pytest.mark.parametrize("name, reason", BAD_NAMES)
def test_names_that_prompts_or_files_cannot_hold_are_refused(name, reason):
    with pytest.raises(ValueError, match=f"token: got .*{reason}.*; needs a name such as my_dog"):
        check_token_name(name)


@pytest.fixture(scope="module")
def clip():
    return tiny.tiny_clip("sd1")


def vectors_in(clip, text: str) -> list[float]:
    """Weights of all vectors in the text, as ComfyUI parses it."""
    return [weight for section in clip.tokenize(text)["l"] for word, weight in section if torch.is_tensor(word)]


@pytest.mark.parametrize("name", ["my_dog", "sks", "my-dog", "Dog2", "-", "2dogs", "собака"])
@pytest.mark.parametrize(
    "template, weights",
    [
        ("embedding:{}", [1.0]),
        ("a photo of embedding:{}, sharp", [1.0]),
        ("(embedding:{}:1.3) on a table", [1.3]),
        ("(embedding:{})", [1.1]),
        ("embedding:{} and embedding:{}", [1.0, 1.0]),
        ("embedding:other", []),
        ("embedding:{}x", []),
    ],
)
def test_names_that_pass_are_found_in_every_prompt(clip, name, template, weights):
    check_token_name(name)
    with_name = with_token(clip, name, {"clip_l": torch.zeros(1, tiny.WIDTH)})
    assert vectors_in(with_name, template.format(name, name)) == pytest.approx(weights)


@pytest.mark.parametrize(
    "text, weights",
    [
        ("a photo of a sks dog", [1.0]),
        ("sks", [1.0]),
        ("my sks, my (sks:1.2).", [1.0, 1.2]),
        ("sks: the (sks) of sks-land; a [sks]", [1.0, 1.1, 1.0, 1.0]),
        ("sks.sks", [1.0, 1.0]),
        (r"sks \(sks\)", [1.0, 1.0]),
        ("a photo of embedding:sks", [1.0]),
        ("asks sksy sks", [1.0]),
    ],
)
def test_a_word_becomes_the_token_wherever_it_stands_on_its_own(clip, text, weights):
    with_name = with_token(clip, "my_dog", {"clip_l": torch.zeros(1, tiny.WIDTH)})
    assert vectors_in(with_name, with_embedding(text, "sks", "my_dog")) == pytest.approx(weights)


@pytest.mark.parametrize("word", ["cat", "", "do"])
def test_a_text_without_the_word_is_refused(word):
    with pytest.raises(ValueError, match="captions: 'a dog' has no .* in it"):
        with_embedding("a dog", word, "my_dog")


def test_the_27_templates(clip):
    assert len(set(TEMPLATES)) == 27
    with_name = with_token(clip, "my_dog", {"clip_l": torch.zeros(1, tiny.WIDTH)})
    for template in TEMPLATES:
        assert vectors_in(with_name, with_embedding(template, "{}", "my_dog")) == [1.0]


def test_training_captions_are_templates_or_the_photo_s_own():
    assert len(training_captions("templates", "", "dog", "rex")) == len(TEMPLATES)
    assert training_captions("one caption", "a cat", "dog", "rex") == ["a photo of a embedding:rex"]
    for caption in ("a sks dog asleep", "a rex asleep", "a embedding:rex asleep"):
        assert training_captions("photo captions", caption, "sks dog", "rex") == ["a embedding:rex asleep"]
    with pytest.raises(ValueError, match="captions: 'a cat' has no 'sks dog' in it"):
        training_captions("photo captions", "a cat", "sks dog", "rex")
    assert training_captions("photo captions", "a rex-like dog", "dog", "rex") == ["a rex-like embedding:rex"]
