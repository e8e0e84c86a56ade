"""Captions: which words each photo gets, and which caption files are refused."""

from pathlib import Path

import pytest
from pack.trainers.photos import SubjectSettings, load_subject
from pictures import save


def captions(folder: Path, **options) -> list[str]:
    settings = SubjectSettings(**{"instance_prompt": "a sks dog"} | options)
    return [photo.caption for photo in load_subject(folder, settings, root=folder).subject.photos]


def test_a_photo_takes_its_own_text_file_where_there_is_one(tmp_path):
    save(tmp_path, "1.png")
    save(tmp_path, "2.png")
    (tmp_path / "2.TXT").write_bytes(b"\xef\xbb\xbfa sks dog\r\n on gr\xc3\xa4ss \n")  # BOM, Windows line ends
    assert captions(tmp_path) == ["a sks dog", "a sks dog on gräss"]
    assert captions(tmp_path, captions="instance prompt") == ["a sks dog", "a sks dog"]
    with pytest.raises(ValueError, match=r"no \.txt file for 1\.png;"):
        captions(tmp_path, captions="text files")
    (tmp_path / "1.txt").write_text("one")
    assert captions(tmp_path, captions="text files") == ["one", "a sks dog on gräss"]


@pytest.mark.parametrize(
    "data, reason",
    [
        ("größe".encode("latin-1"), "save it as UTF-8"),
        ("\ufeffdog".encode("utf-16-le"), "save it as UTF-8"),
        ("dog".encode("utf-16-le"), "save it as UTF-8"),
        (b"", "empty"),
        (b" \n", "empty"),
        (b"dog " * 20_000, "too many for a caption"),
    ],
)
def test_a_caption_file_that_can_not_be_used_is_named(tmp_path, data, reason):
    save(tmp_path, "1.png")
    (tmp_path / "1.txt").write_bytes(data)
    with pytest.raises(ValueError, match=rf"1\.txt: .*{reason}"):
        captions(tmp_path)


def test_an_empty_instance_prompt_is_an_error_only_where_a_photo_needs_it(tmp_path):
    save(tmp_path, "1.png")
    with pytest.raises(ValueError, match="instance_prompt is empty"):
        captions(tmp_path, instance_prompt=" ")
    (tmp_path / "1.txt").write_text("a sks dog")
    assert captions(tmp_path, instance_prompt=" ") == ["a sks dog"]
