"""Plots by block and layer: nothing is left out, names are text, and what cannot be drawn is refused by name."""

import io
import re

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import loratools as lt
from loratools.cli.compare import command as compare
from loratools.cli.inspect import command as inspect
from loratools.errors import OutputExists, OutputRefused, PathNotFound, UsageError
from loratools.reports import plot as plots
from loratools.reports.block_map import block_maps, placed
from loratools.reports.plot import Plot, Scale, write_plot
from loratools.reports.plot_html import written
from tests.reports.browser import CHROMIUM, Browser
from tests.reports.test_page import HOSTILE, Reader


@pytest.mark.parametrize(
    ("path", "block", "layer"),
    [
        (
            "down_blocks.0.attentions.1.transformer_blocks.2.attn1.to_q",
            "down_blocks.0.attentions.1.transformer_blocks.2",
            "attn1.to_q",
        ),
        (
            "down_blocks.0.attentions.1.transformer_blocks.2.ff.net.0.proj",
            "down_blocks.0.attentions.1.transformer_blocks.2",
            "ff.net.0.proj",
        ),
        ("mid_block.attentions.0.proj_in", "mid_block.attentions.0", "proj_in"),
        ("transformer_blocks.3.attn.to_out.0", "transformer_blocks.3", "attn.to_out.0"),
        ("up_blocks.1.resnets.2.conv1", "up_blocks.1.resnets.2", "conv1"),
        ("text_model.encoder.layers.11.mlp.fc1", "text_model.encoder.layers.11", "mlp.fc1"),
        ("encoder.block.4.layer.0.SelfAttention.q", "encoder.block.4.layer.0", "SelfAttention.q"),
        ("transformer.h.7.attn.c_attn", "transformer.h.7", "attn.c_attn"),
        ("conv_in", "", "conv_in"),
        ("blocks.0.q+blocks.0.k+blocks.0.v", "blocks.0", "q +2"),
    ],
)
def test_a_path_is_its_block_and_its_layer(path, block, layer):
    assert placed(path) == (block, layer)


def modules():
    """(module, norm) pairs: a dead one and one without a number among them."""
    rows = [
        (f"unet:down_blocks.{at}.attentions.0.transformer_blocks.0.attn1.to_{name}", 0.1 * 3**at)
        for at in range(4)
        for name in "qkv"
    ]
    rows += [("unet:conv_in", 0.7), ("text_encoder:layers.0.mlp.fc1", 0.0), ("text_encoder:layers.1.mlp.fc1", None)]
    return rows


def made(**changes):
    spectra = {name: [value, value / 3, value / 20] if value else [] for name, value in modules()}
    given = {"title": "style", "measure": "norm of the delta", "maps": block_maps(modules()), "spectra": spectra}
    return Plot(**{**given, **changes})


def test_every_module_stands_in_exactly_one_map():
    maps = block_maps(modules())
    assert [one.title for one in maps] == ["unet · transformer_blocks", "unet", "text_encoder · layers"]
    assert sum(len(one.values) for one in maps) == len(modules())
    for one in maps:
        assert {block for block, _ in one.values} == set(one.blocks)
        assert {layer for _, layer in one.values} == set(one.layers)


def test_colours_follow_the_logarithm_from_dark_to_bright():
    scale = Scale.of([1e-3, 1.0, 0.0, float("inf")])
    assert (scale.low, scale.high) == (1e-3, 1.0)
    brightness = [sum(bytes.fromhex(scale.colour(10 ** (-at / 10))[1:])) for at in range(30, -1, -1)]
    assert brightness == sorted(brightness)
    assert scale.colour(float("inf")) == scale.colour(1.0) == "#fde725"
    assert Scale.of([]).colour(1.0) == Scale.of([2.0]).colour(2.0) == "#fde725"


def test_the_page_of_a_plot_names_every_module_and_its_number_and_fetches_nothing():
    content = written(made())
    assert content == written(made())
    found = Reader(content)
    titles = [title for title in re.findall(r"<title>([^<]*)</title>", content) if "norm of the delta" in title]
    assert len(titles) == len(modules())
    assert "layers.0 mlp.fc1: norm of the delta 0" in titles
    assert "layers.1 mlp.fc1: norm of the delta –" in titles
    assert not [item for _, item in found.elements if "src" in item or "href" in item]
    assert len(found.named("polyline")) == 13 + 1  # a line for each module that has a spectrum, and the UNet's median


@pytest.mark.parametrize("name", HOSTILE)
def test_names_in_a_plot_are_text(name):
    def of(word):
        return Reader(written(made(title=word, maps=block_maps([(f"{word}:{word}", 1.0)]), spectra={word: [1.0]})))

    plain, found = of("plain"), of(name)
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in plain.elements]
    assert name in found.text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
def test_a_plot_opens_in_a_browser_without_errors(tmp_path):
    place = write_plot(tmp_path / "plot.html", made())
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(place, width=390)
        assert browser.ask("document.documentElement.dataset.ready") == "yes"
        assert browser.ask("document.documentElement.scrollWidth") <= 390
        assert browser.ask("getComputedStyle(document.querySelector('.map rect')).fill") == "rgb(68, 1, 84)"
        assert browser.faults == []
    finally:
        browser.close()


def test_a_plot_as_png_is_the_same_every_time(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    hostile = made(title="$\\frac{1}{0}$ <b> " + "long " * 60)
    first, second = (write_plot(tmp_path / f"{name}.png", hostile).read_bytes() for name in "ab")
    assert first == second
    assert b"tIME" not in first
    drawn = np.asarray(Image.open(io.BytesIO(first)).convert("RGB"))
    brightest = np.abs(drawn.astype(int) - (253, 231, 37)).max(axis=2) <= 1
    assert brightest.sum() > 100  # the largest norm, and the end of the scale


def test_a_png_without_matplotlib_is_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "find_spec", {}.get)
    with pytest.raises(UsageError, match="matplotlib") as caught:
        write_plot(tmp_path / "plot.png", made())
    assert "loratools[report]" in caught.value.hint
    assert ".html" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_plot_goes_only_where_it_may(tmp_path):
    with pytest.raises(UsageError, match=r"\.png or an \.html"):
        write_plot(tmp_path / "plot.pdf", made())
    with pytest.raises(PathNotFound):
        write_plot(tmp_path / "nowhere" / "plot.html", made())
    place = write_plot(tmp_path / "plot.html", made())
    with pytest.raises(OutputExists):
        write_plot(place, made())
    write_plot(place, made(title="again"), overwrite=True)
    assert "again" in place.read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.html"]


def test_inspect_draws_the_norms_that_it_prints(sd1, tmp_path):
    found = lt.inspect(sd1, plot=tmp_path / "plot.html").to_dict()
    assert found["plot"] == str(tmp_path / "plot.html")
    content = (tmp_path / "plot.html").read_text(encoding="utf-8")
    plain = lt.inspect(sd1, weights=True).to_dict()
    assert {key: value for key, value in found.items() if key != "plot"} == plain
    assert content.count("norm of the delta ") == len(plain["weights"]["modules"])


def test_compare_draws_the_errors_that_it_prints(sd1, adapters, tmp_path):
    place = tmp_path / "plot.html"
    document = lt.compare(sd1, adapters / "peft", plot=place).to_dict()
    assert document["plot"] == str(place)
    assert {key: value for key, value in document.items() if key != "plot"} == lt.compare(
        sd1, adapters / "peft"
    ).to_dict()
    alone = sum(row["where"] != "both" for row in document["modules"])
    assert alone
    assert place.read_text(encoding="utf-8").count("relative error of the delta infinite") == alone


@pytest.mark.parametrize(("command", "files"), [(inspect, 1), (compare, 2)])
def test_plots_are_drawn_from_the_command_line(command, files, sd1, tmp_path):
    place = tmp_path / "plot.html"
    done = CliRunner().invoke(command, [*[str(sd1)] * files, "--plot", str(place)])
    assert done.exit_code == 0, done.output
    assert done.output.endswith(f"plot: {place}\n")
    assert "</html>" in place.read_text(encoding="utf-8")


def test_what_cannot_be_drawn_is_refused_before_anything_is_read(sd1, sdxl, tmp_path):
    done = CliRunner().invoke(inspect, [str(sd1), str(sdxl), "--plot", str(tmp_path / "plot.html")])
    assert isinstance(done.exception, UsageError)
    with pytest.raises(UsageError, match=r"\.png or an \.html"):
        lt.inspect(sd1, plot=tmp_path / "plot.svg")
    link = tmp_path / "style.html"
    link.hardlink_to(sd1)
    with pytest.raises(OutputRefused, match="input"):
        lt.inspect(sd1, plot=link, overwrite=True)


def test_a_base_model_has_nothing_to_draw(tmp_path):
    import torch

    tensors = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3)}
    with pytest.raises(UsageError, match="role is"):
        lt.inspect(tensors, plot=tmp_path / "plot.html")
    assert list(tmp_path.iterdir()) == []
