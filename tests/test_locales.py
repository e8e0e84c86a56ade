"""The translations ComfyUI is given: complete, and of the texts the nodes have now."""

import re

import pytest

from locales import chinese, escaped, files, texts

WHAT_TO_DO = "run python tests/locales.py"


@pytest.mark.parametrize("path", files(), ids=lambda path: path.parent.name)
def test_the_files_hold_what_the_schemas_say(path):
    assert path.read_text(encoding="utf-8") == files()[path], WHAT_TO_DO


def test_every_text_has_a_translation_and_no_translation_is_left_over():
    assert sorted(chinese()) == sorted(texts()), f"translate in tests/locales_zh.json, then {WHAT_TO_DO}"


def test_translations_are_chinese_and_keep_numbers_and_names():
    for english, translation in chinese().items():
        assert re.search(r"[\u4e00-\u9fff]", translation), english
        for name in re.findall(r"\d[\d.,]*\d|\b[a-z]+_[a-z_]+\b|arXiv:\S+\d|\[pocket\]|embedding:NAME", english):
            assert name in translation, (english, name)


def test_what_the_frontend_would_read_as_markup_is_escaped():
    assert escaped("a@b {c} | $d") == "a{'@'}b {'{'}c{'}'} {'|'} {'$'}d"
