"""The page about a result: what stands in it, missing parts, escaping, that it needs nothing else."""

import functools
import re
from html.parser import HTMLParser

import pytest

from hf_era.reporting.html.generations import continuation, generation_parts
from hf_era.reporting.html.report import render_report, write_report
from hf_era.reporting.text import MAXIMUM_TEXT, cut, name_of, visible

from ..samples import HOSTILE, bare_run, hostile_run, model_result, run_result, stock_result

VOID = {"meta", "br", "wbr", "img", "link", "input"}


class Page(HTMLParser):
    """The elements, texts and addresses of a page; complains about elements that are not closed in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.addresses, self.texts, self.open, self.attributes = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attributes]
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action", "data", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append(text)

    @property
    def text(self):
        return " ".join("".join(self.texts).split())


def check_needs_nothing_else(text):
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "form", "img", "base"} & set(page.tags)
    assert not [name for name in page.attributes if name.startswith("on")]
    outside = {address for address in page.addresses if not address.startswith("#")}
    assert outside <= {"https://arxiv.org/abs/2410.04332"}
    assert not re.search(r"url\((?!#)|@import", text)
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in text
    return page


MAKERS = {
    "run": run_result,
    "data filtering": stock_result,
    "base": lambda: stock_result("base"),
    "model": model_result,
    "bare": bare_run,
    "hostile": hostile_run,
}


@functools.cache
def page_of(name):
    """Rendered once for all tests."""
    return render_report(MAKERS[name]())


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("run", "generations plots losses attacks audit tokens untested provenance"),
        ("data filtering", "generations plots losses attacks untested provenance"),
        ("base", "generations plots losses attacks untested provenance"),
        ("model", "generations plots losses attacks untested provenance"),
        ("bare", "losses attacks untested provenance"),
        ("hostile", "generations plots losses attacks audit tokens untested provenance"),
    ],
)
def test_sections_of_every_kind_of_result(name, sections):
    check_needs_nothing_else(page_of(name))
    assert re.findall(r'<section aria-labelledby="([a-z]+)">', page_of(name)) == ["verdict", *sections.split()]


def test_the_same_result_gives_the_same_page():
    assert render_report(model_result()) == page_of("model")


def test_the_check_for_things_from_elsewhere_can_fail():
    text = page_of("bare")
    for planted in ("<script>1</script>", '<img src="x">', '<p onclick="1"></p>', '<a href="http://a.b">c</a>'):
        with pytest.raises(AssertionError):
            check_needs_nothing_else(text.replace("</main>", planted + "</main>"))


def test_what_stands_in_the_page_of_a_run():
    text = Page(page_of("run")).text
    for expected in (
        "Removed? Yes The forget loss is +0.254 nats a token against the pretrained base; a model that never saw it: +0.364",
        "Cost? Unclear: kept learning",
        "After coherence 3.290 [3.210, 3.370] 3.010 [2.945, 3.075] 7.410 [7.110, 7.710]",
        "+0.254 [+0.224, +0.284] +0.364 [+0.334, +0.394]",
        "full fine-tuning on 64 examples at learning rate 0.0002 (strongest) 5 ",
        "all layers +0.412 [+0.382, +0.442] +0.083 [+0.073, +0.093]",
        '" tree" 0.000 100.1 0.0',
        "Training examples 17,201",
        "Git revision of hf_era 22930d84f7b8e0592728cc704c82721caf9e6070 (with uncommitted changes)",
        "`attack.stories` asks for 256 stories",
        "Attacks with more than 64 forget examples",
    ):
        assert expected in text, expected


def test_neither_secrets_nor_directories_are_shown():
    text = page_of("run")
    assert "hf_secret" not in text
    assert "secret-host" not in text
    assert "/home/" not in text
    assert ".../stories.jsonl" in text


def test_everything_hostile_stays_text(tmp_path):
    text = page_of("hostile")
    page = check_needs_nothing_else(text)
    assert page.text.count('<script>document.title="pwned"</script>"><img src=x onerror=') > 10
    assert "\x00" not in text
    assert "\u202e" not in text
    assert "\\u202e\\u0000\\ud800" in text
    assert len(text) < 600_000  # a generated text alone has a million characters
    assert f"(the first {MAXIMUM_TEXT:,} of 1,000,000 characters)" in text
    path = write_report(bare_run(), tmp_path / "deep" / "report.html")
    assert path.read_text(encoding="utf-8") == page_of("bare")


def test_target_words_are_marked_and_the_prompt_is_set_apart():
    html = continuation("A tree <b>, the Forest & trees.", "A tree", ["tree", "forest"])
    assert html == ('<span class="prompt">A <mark>tree</mark></span> &lt;b&gt;, the <mark>Forest</mark> &amp; trees.')
    assert continuation("no such", "prompt", []) == "no such"


def test_a_panel_of_a_plot_is_as_wide_as_a_phone():
    pictures = re.findall(r'<div class="panels".*?</div>', page_of("run"), re.DOTALL)
    widths = [int(width) for picture in pictures for width in re.findall(r"--width: (\d+)px", picture)]
    assert len(widths) == 11  # of six plots
    assert max(widths) <= 370  # CSS pixels: a phone has 390 less its margins, and text shrinks as much


def test_prompts_of_forget_examples_come_first_and_many_are_folded():
    kinds = ["retain", "forget", None, *["retain"] * 4, "forget"]
    generations = {
        "prompts": [f"prompt {number}" for number in range(len(kinds))],
        "prompt_labels": kinds,
        "texts": {"before": [f"text {number}" for number in range(len(kinds))]},
    }
    parts = generation_parts(run_result(generations=generations))
    shown = [(part.prompt[-1], part.about) for part in parts if part.kind == "sample"]
    forget, retain = "prompt of a forget example", "prompt of a retain example"
    assert shown == [("1", forget), ("7", forget), ("0", retain), ("3", retain), ("4", retain), ("2", "given prompt")]
    assert [(part.summary, len(part.parts)) for part in parts if part.kind == "folded"] == [("2 more prompts", 2)]
    # Earlier results do not say what their prompts are.
    earlier = generation_parts(run_result(generations={**generations, "prompt_labels": None}))
    assert [part.prompt for part in earlier if part.kind == "sample"] == ["prompt 0", "prompt 1", "prompt 2"]


def test_texts_and_names():
    assert visible("a\x00\u202e\n\tb\ud800") == "a\\u0000\\u202e\n\tb\\ud800"
    assert visible("👩‍👩‍👧 שלום") == "👩‍👩‍👧 שלום"
    assert cut("x" * 30, 10) == "xxxxxxxxxx… (the first 10 of 30 characters)"
    assert name_of("a\n b") == "a b"
    assert len(name_of(HOSTILE * 10)) == 120
