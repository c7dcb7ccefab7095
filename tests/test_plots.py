"Pictures: exact pixels, sentences that are true, and a gallery that a browser can use."
import base64
import html.parser
import io
import json
import math
import shutil
import subprocess
import sys

import PIL.Image
import pytest
import torch

from semsynth.labels import CITYSCAPES, CITYSCAPES_35, FACADES, IGNORE_INDEX, read_label_map
from semsynth.plots import (
    GalleryRow,
    Picture,
    describe_label_map,
    figure_picture,
    grid_image,
    quiet_style,
    show_comparison,
    show_curves,
    show_grid,
    show_label_map,
    show_legend,
    smooth,
    to_uint8,
    write_gallery,
)
from semsynth.synthesizer import History


def some_maps(count: int = 2, resolution: int = 32) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 12, (count, 4, 4), generator=rng)
    return coarse.repeat_interleave(resolution // 4, 1).repeat_interleave(resolution // 4, 2)


def some_images(count: int = 2, resolution: int = 32) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, resolution, resolution, generator=rng) * 2 - 1


def history() -> History:
    gaps = (1.0, math.nan)
    steps = range(1, 101)
    return History({"step": k, "generator": 3 - k / 100, "d": gaps[k % 2]} for k in steps)


def test_to_uint8_inverts_the_reading_of_every_level():
    levels = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    assert torch.equal(to_uint8(levels.float() / 127.5 - 1), levels)
    assert to_uint8(torch.full((2, 3, 1, 1), -9.0)).max() == 0


def test_importing_plots_does_not_import_matplotlib():
    code = "import sys, semsynth.plots; sys.exit(bool({'matplotlib', 'scipy'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Sentences ---------------------------------------------------------------------------------------


def test_a_label_map_is_described_largest_class_first():
    label_map = torch.full((10, 20), 1)
    label_map[:, :5] = 2
    label_map[0, 0] = IGNORE_INDEX
    told = describe_label_map(label_map, FACADES)
    assert told == "Label map of 20 by 10 pixels: facade 75 %, window 24 %, no label under 1 %."


def test_only_so_many_classes_are_named():
    told = describe_label_map(torch.arange(12).reshape(3, 4), FACADES, most=2)
    assert told.endswith("background 8 %, facade 8 %, 10 further classes 83 %.")


def test_curves_are_described_by_first_and_last_values():
    alt = show_curves(history(), smoothing=0).alt
    assert "generator from 2.99 to 2" in alt and "d from 1 to 1" in alt and "100 steps" in alt


@pytest.mark.parametrize(
    "picture",
    [
        lambda: show_label_map(some_maps()[0], FACADES),
        lambda: show_legend(CITYSCAPES_35),
        lambda: show_grid(some_maps(), some_images(), some_images(), FACADES),
        lambda: show_comparison({"<a>": some_images(), 'b "quoted"': some_images()}),
        lambda: show_curves(history()),
        lambda: show_curves(History()),
    ],
)
def test_every_picture_is_shown_with_its_sentence_and_stays_small(picture):
    picture = picture()
    shown, metadata = picture._repr_mimebundle_()
    (mime,) = [kind for kind in shown if kind.startswith("image/")]
    content = base64.b64decode(shown[mime])
    PIL.Image.open(io.BytesIO(content)).load()
    assert len(content) < 40_000
    assert metadata[mime]["alt"] == shown["text/plain"] == picture.alt

    found = []
    reader = html.parser.HTMLParser()
    reader.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    reader.feed(shown["text/html"])
    assert [tag for tag, _ in found] == ["img"] and found[0][1]["alt"] == picture.alt


# Pixels ------------------------------------------------------------------------------------------


def test_a_label_map_stays_crisp_and_indexed():
    label_map = some_maps(1, 20)
    picture = show_label_map(label_map, FACADES, least=50, legend=False)
    assert picture.image.size == (60, 60)
    for row, column in [(0, 0), (7, 12), (19, 19)]:
        colour = picture.image.getpixel((3 * column + 1, 3 * row + 1))
        assert colour == FACADES.palette[int(label_map[0, row, column])]
    mime, content = picture.encode()
    lossless = PIL.Image.open(io.BytesIO(content))
    assert mime == "image/png" and lossless.mode == "P"
    assert lossless.convert("RGB").tobytes() == picture.image.tobytes()


def test_a_grid_holds_every_pixel_of_every_column():
    label_map, sample, real = some_maps(), some_images(), -some_images()
    grid = grid_image({"label map": label_map, "sample": sample, "real": real}, FACADES, gap=4)
    assert grid.size == (3 * 32 + 2 * 4, 24 + 2 * 32 + 4)
    for column, images in ((1, sample), (2, real)):
        for row in range(2):
            for y, x in [(0, 0), (31, 31), (5, 17)]:
                pixel = grid.getpixel((column * 36 + x, 24 + row * 36 + y))
                assert pixel == tuple(to_uint8(images)[row, :, y, x].tolist())


def test_a_grid_refuses_unequal_columns():
    with pytest.raises(ValueError, match="equal shapes"):
        grid_image({"a": some_images(2), "b": some_images(1)})


def test_smoothing_keeps_constants_and_skips_gaps():
    assert smooth([5.0] * 4) == pytest.approx([5.0] * 4)
    assert smooth([1.0, 2.0], weight=0) == [1.0, 2.0]
    values = smooth([1.0, math.nan, 1.0, 4.0], weight=0.5)
    assert math.isnan(values[1]) and values[2] == pytest.approx(1) and 1 < values[3] < 4


def test_figures_are_closed_and_style_does_not_leak():
    from matplotlib import pyplot, rcParams

    before, size = len(pyplot.get_fignums()), rcParams["font.size"]
    with quiet_style():
        picture = figure_picture(pyplot.figure(figsize=(2, 1)), "Nothing.")
    assert picture.image.size == (144, 72)
    assert len(pyplot.get_fignums()) == before and rcParams["font.size"] == size


def test_a_picture_is_written_as_it_is(tmp_path):
    image = PIL.Image.new("RGB", (5, 4), (1, 2, 3))
    Picture(image, "A dark patch.").save(tmp_path / "patch.png")
    assert PIL.Image.open(tmp_path / "patch.png").getpixel((0, 0)) == (1, 2, 3)


# Gallery -----------------------------------------------------------------------------------------


@pytest.fixture
def gallery(tmp_path):
    label_map, sample, real = some_maps(3), some_images(6).view(3, 2, 3, 32, 32), some_images(3)
    scores = [{"L1": 0.3, "SSIM": 0.5}, {"L1": 0.1, "SSIM": math.nan}, {"L1": 0.2, "SSIM": 0.7}]
    names = ["<script>alert(1)</script>", "../up & away", "plain"]
    rows = (GalleryRow(names[i], label_map[i], sample[i], real[i], scores[i]) for i in range(3))
    return write_gallery(tmp_path, rows, "A <title>", FACADES, facts={"FID": 12.3456, "images": 3})


def test_the_gallery_writes_what_it_was_given_and_nothing_else(gallery):
    folder = gallery.parent
    assert sorted(p.name for p in folder.iterdir()) == ["gallery", "gallery.html"]
    assert len(list((folder / "gallery").iterdir())) == 3 * 4
    maps = sorted((folder / "gallery").glob("*-label.png"))
    assert torch.equal(torch.stack([read_label_map(p, FACADES) for p in maps]), some_maps(3))


def test_the_gallery_page_is_whole_safe_and_offline(gallery):
    text = gallery.read_text()
    assert "alert(1)</script>" not in text and "&lt;script&gt;alert(1)" in text
    assert "<h1>A &lt;title&gt;</h1>" in text and "http" not in text
    images = []
    reader = html.parser.HTMLParser()
    reader.handle_starttag = lambda tag, a: images.append(dict(a)) if tag == "img" else None
    reader.feed(text)
    pictures = [image for image in images if "src" in image]
    assert len(pictures) == 3 * 4
    assert all(image["alt"] and (gallery.parent / image["src"]).is_file() for image in pictures)
    assert "12.35" in text and "mean L1" in text and ">0.2<" in text


def test_a_gallery_without_rows_scores_or_photographs(tmp_path):
    assert "0 label maps" in write_gallery(tmp_path, [], "Empty", CITYSCAPES).read_text()
    row = GalleryRow("one", some_maps(1)[0], some_images(1))
    assert "<td data-value" not in write_gallery(tmp_path, [row], "One", FACADES).read_text()


DRIVE = """
<script>
const names = () => [...document.querySelectorAll('tbody th')].map(cell => cell.textContent);
const buttons = [...document.querySelectorAll('button')];
const press = text => buttons.find(button => button.textContent === text).click();
const told = {};
press('L1'); told.up = names();
press('L1'); told.down = names();
press('SSIM'); told.missing = names().at(-1);
told.aria = [...document.querySelectorAll('th[aria-sort]')].map(h => h.getAttribute('aria-sort'));
told.said = document.getElementById('said').textContent;
document.querySelector('.open').click();
told.open = document.querySelector('dialog').open;
told.first = document.getElementById('caption').textContent;
const key = new KeyboardEvent('keydown', {key: 'ArrowLeft', bubbles: true});
document.querySelector('dialog').dispatchEvent(key);
told.before = document.getElementById('caption').textContent;
press('Next'); told.again = document.getElementById('caption').textContent;
press('Close'); told.closed = !document.querySelector('dialog').open;
document.title = JSON.stringify(told);
</script></body>"""


def test_the_gallery_sorts_and_enlarges_in_a_browser(gallery, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("chromium is not installed")
    page = gallery.with_name("driven.html")
    page.write_text(gallery.read_text().replace("</body>", DRIVE))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    command = [chromium, *flags, page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout

    title = html.unescape(shown.split("<title>")[1].split("</title>")[0])
    told = json.loads(title)
    script, up, plain = "<script>alert(1)</script>", "../up & away", "plain"
    assert told["up"] == [up, plain, script] and told["down"] == [script, plain, up]
    assert told["missing"] == up and told["aria"] == ["none", "none", "ascending"]
    assert told["said"] == "Sorted by SSIM, smallest first."
    assert told["open"] and told["closed"] and told["first"] == told["again"] != told["before"]
    assert told["first"].startswith(f"{script}: Label map of 32 by 32 pixels")
