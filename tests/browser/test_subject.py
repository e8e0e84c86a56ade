"""Photos from the user's disk, dropped on Load Subject Images or chosen with its button, in the real canvas."""

import io
import json
import uuid
from pathlib import Path

import pytest
from frontend import PACK_NAME
from PIL import Image

pytestmark = pytest.mark.browser

WORKFLOW = Path(__file__).resolve().parents[2] / "workflows" / "pocket_train_and_save.json"
SUBJECT = "app.graph.nodes.find(n => n.type === 'EdgeTune_LoadSubjectImages')"
WIDGET = "(name => SUBJECT.widgets.find(w => w.name === name))"
FOLDER = "() => [WIDGET('folder').value, WIDGET('folder').options.values]"
PROMPT = "prompt => { WIDGET('instance_prompt').value = prompt; }"
DROP = """async files => {
    const dataTransfer = new DataTransfer();
    for (const [name, bytes] of files) dataTransfer.items.add(new File([Uint8Array.from(bytes)], name));
    if (!SUBJECT.onDragOver({ dataTransfer })) throw new Error('refused');
    return await SUBJECT.onDragDrop({ dataTransfer });
}"""
BUTTON = """() => {
    const node = SUBJECT, { canvas, ds } = app.canvas, frame = canvas.getBoundingClientRect();
    const [x, y] = [node.pos[0] + node.size[0] / 2, node.pos[1] + WIDGET('upload photos').last_y + 10];
    return [frame.x + (x + ds.offset[0]) * ds.scale, frame.y + (y + ds.offset[1]) * ds.scale];
}"""
NAMES = """async ([url, cases]) => {
    const { folderName } = await import(`${url}/lib/photos.mjs`);
    return cases.map(([prompt, taken]) => folderName(prompt, taken));
}"""


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (96, 80), colour).save(file, "PNG")
    return file.getvalue()


def evaluate(canvas, script: str, argument: object = None):
    """The script's result, the words in capitals being those above."""
    return canvas.page.evaluate(script.replace("WIDGET", WIDGET).replace("SUBJECT", SUBJECT), argument)


@pytest.fixture
def word(canvas) -> str:
    """The workflow is open, with a prompt for a subject that no test had before."""
    canvas.open(json.loads(WORKFLOW.read_text(encoding="utf-8")), "pocket_train_and_save")
    word = f"toy{uuid.uuid4().hex[:6]}"
    evaluate(canvas, PROMPT, f"a photo of a sks {word}")
    return word


def drop(canvas, *files: tuple[str, bytes]) -> None:
    evaluate(canvas, DROP, [(name, list(content)) for name, content in files])


def chosen(canvas) -> str:
    name, offered = evaluate(canvas, FOLDER)
    assert name in offered
    return name


def folder_of(server, name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (server.folders["input"] / name).iterdir()}


def test_photos_that_are_dropped_are_in_a_new_folder_that_is_chosen(canvas, server, word):
    drop(canvas, ("a.png", png("red")), ("b.PNG", png("blue")))
    assert chosen(canvas) == f"sks_{word}"
    assert folder_of(server, f"sks_{word}") == {"a.png": png("red"), "b.PNG": png("blue")}
    pictures = canvas.page.locator(".edgetune-photos img")
    canvas.wait(lambda: [p.evaluate("e => e.naturalWidth") for p in pictures.all()] == [96, 96], timeout_s=10)
    assert canvas.page.get_by_text(f"2 photos in sks_{word}").is_visible()
    assert canvas.export()["3"]["inputs"]["folder"] == f"sks_{word}"
    assert canvas.messages == []


def test_a_mask_comes_with_its_photo_and_is_not_counted_as_one(canvas, server, word):
    drop(canvas, ("a.png", png("red")), ("a.mask.png", png("white")), ("b.png", png("blue")))
    assert sorted(folder_of(server, chosen(canvas))) == ["a.mask.png", "a.png", "b.png"]
    canvas.page.get_by_text(f"2 photos and 1 mask in sks_{word}").wait_for()
    assert canvas.page.locator(".edgetune-photos img").count() == 2


def test_a_second_drop_makes_a_folder_of_its_own(canvas, server, word):
    for colour in ("red", "blue"):
        drop(canvas, ("a.png", png(colour)))
    assert chosen(canvas) == f"sks_{word}_2"
    assert folder_of(server, f"sks_{word}") == {"a.png": png("red")}
    assert folder_of(server, f"sks_{word}_2") == {"a.png": png("blue")}


def test_photos_of_one_name_are_all_kept(canvas, server, word):
    drop(canvas, ("a.png", png("red")), ("a.png", png("blue")), ("a.png", png("red")))
    assert sorted(folder_of(server, f"sks_{word}").values()) == sorted([png("red"), png("blue")])


def test_what_is_no_photo_is_left_out_and_said(canvas, server, word):
    drop(canvas, ("a.png", png("red")), ("notes.pdf", b"%PDF"))
    canvas.page.get_by_text("Not photos, left out: notes.pdf").wait_for()
    assert folder_of(server, chosen(canvas)) == {"a.png": png("red")}
    before = chosen(canvas)
    drop(canvas, ("more.pdf", b"%PDF"))
    canvas.page.get_by_text("Not photos, left out: more.pdf").wait_for()
    assert chosen(canvas) == before


def test_an_upload_that_fails_is_said_and_nothing_is_chosen(canvas, word):
    before = chosen(canvas)
    canvas.page.route("**/upload/image", lambda route: route.fulfill(status=413))
    try:
        drop(canvas, ("a.png", png("red")))
        canvas.page.get_by_text("Upload failed. a.png: 413").wait_for()
    finally:
        canvas.page.unroute("**/upload/image")
    assert chosen(canvas) == before


def test_the_button_takes_several_photos(canvas, server, word):
    with canvas.page.expect_file_chooser() as dialog:
        if canvas.is_nodes2:
            canvas.page.get_by_role("button", name="upload photos").click()
        else:
            canvas.page.mouse.click(*evaluate(canvas, BUTTON))
    assert dialog.value.is_multiple()
    files = [("a.png", png("red")), ("b.png", png("blue"))]
    dialog.value.set_files([{"name": name, "mimeType": "image/png", "buffer": data} for name, data in files])
    canvas.page.get_by_text(f"2 photos in sks_{word}").wait_for()
    assert folder_of(server, chosen(canvas)) == dict(files)


def test_folders_are_named_after_the_subject(canvas):
    cases = [
        ("a photo of a sks dog", [], "sks_dog"),
        ("a photo of a sks dog", ["SKS_Dog", "sks_dog_2"], "sks_dog_3"),
        ("A picture of my  old/../teapot!", [], "old_teapot"),
        ("", ["photos"], "photos_2"),
        ("../..", [], "photos"),
        ("фото кота", [], "фото_кота"),
    ]
    url = f"{canvas.url}/extensions/{PACK_NAME}"
    got = canvas.page.evaluate(NAMES, [url, [[prompt, taken] for prompt, taken, _ in cases]])
    assert got == [name for *_, name in cases]
