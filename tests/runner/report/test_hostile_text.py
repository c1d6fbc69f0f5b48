"""Text from elsewhere (descriptions, names, data, answers, errors) is shown in a report as text."""

from __future__ import annotations

import html
import json
import re
from base64 import b64encode
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from nanochat.runner.report.html import render_html
from nanochat.runner.report.markdown import code_span, escape, markdown_table, paragraphs
from nanochat.runner.report.run_report import write_report
from nanochat.runner.store.run_catalog import find_run
from nanochat.runner.store.run_state import RunState
from nanochat.runner.upload.build_view import run_view
from nanochat.storage.files import write_text

SECRET = "-----BEGIN PRIVATE KEY----- mZ3kQ"
PNG = b"\x89PNG\r\n\x1a\n" + SECRET.encode()
# {key}: the absolute path of a private file; {up}: its path relative to the run's folder.
HOSTILE = {
    "image": "![]({key})",
    "image beside the run": "![x]({up})",
    "image with a title": '![x](<{key}> "title")',
    "image by file address": "![x](file://{key})",
    "image by reference": "![x][key]\n\n[key]: {key}",
    "image by short reference": "![key]\n\n[key]: <{key}>",
    "image in a link": "[![x]({key})]({key})",
    "image elsewhere": "![x](http://127.0.0.1:9/track.png)",
    "image as data": "![x](data:image/png;base64,AAAA)",
    "image that looks like ours": "![loss](plots/loss.png)",
    "image after an escape": "\\![x]({key}) \\\\![x]({key})",
    "image in a table": "a|b\n-|-\n![x]({key})|c",
    "image in a list": "- ![x]({key})\n- b\n\n1. ![x]({key})\n2) b",
    "image after indented text": "a\n    ![x]({key})\n\n\t![x]({key})",
    "image in a quotation": "> ![x]({key})",
    "image in a heading": "# ![x]({key})\n\n![x]({key})\n===\n\n![x]({key})\n---",
    "image after a fence": "```\n![x]({key})\n```\n![x]({key})\n~~~\n![x]({key})",
    "image after ticks": "`` ` ![x]({key}) ``` ![x]({key}) `",
    "image in html": "<img src={key}>\n<img src='{key}' onerror=alert(1)>",
    "picture in html": "<picture><source srcset={key}></picture><object data={key}></object><iframe src={key}>",
    "script": "<script>alert(1)</script>\n\n<SCRIPT SRC=//x.y/z.js></SCRIPT >",
    "end of the page": "</pre></code></td></main></body></html><script>alert(1)</script><!--",
    "style": "<style>body {{ display: none }}</style><link rel=stylesheet href=//x.y>",
    "link": "[x](javascript:alert(1)) [x](http://x.y) <http://x.y> [x]({key}) [x](recipe.yaml)",
    "link by reference": "[x][1]\n\n[1]: javascript:alert(1)",
    "emphasis": "*a* **b** __c__ _d_ ~~e~~ `f` f_g_h",
    "entities": "&lt;b&gt; &#33;[x]({key}) &excl;[x]({key}) & a&b",
    "rules and tables": "---\n***\n___\n| a | b |\n|---|---|\n| c | d |\n:--\na | b",
    "control characters": "\x00 \x07 \x1b]0;title\x07 \x1b[2J \x08 \x0b \x0c \x7f \x9b31m \u202e \u2066",
    "line ends": "a\rb\r\nc\x85d\u2028e\u2029f\x1cg",
    "long line": "x" * 30_000 + " ![x]({key})",
    "long word in ticks": "`" * 5_000,
    "brackets": "[" * 200 + "x" + "]({key})" * 200,
    "lists": "- a\n+ b\n1. c\n1) d\n-\n1.\n- - -\n\n#\n# e\n####### f\n>g",
    "only white space": " \n\t\n    \n",
}

PLAIN_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "nav", "main", "h1", "h2", "h3", "h4", "h5", "h6", "p", "br"),
    *("a", "ul", "li", "strong", "code", "pre", "table", "thead", "tbody", "tr", "th", "td", "details", "summary"),
}


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def words(text: str) -> str:
    """Return the text without spaces and line ends, and with other control characters as visible escapes."""
    shown = (c if c in " \n\t\u2028\u2029" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join("".join(shown).split())


@pytest.fixture
def key(tmp_path):
    """A private file, which is a picture, so that nothing but its place keeps it from being embedded."""
    path = tmp_path / "id_rsa.png"
    path.write_bytes(PNG)
    return path


def check_page(page: str) -> Page:
    """Check that a page embeds nothing, loads nothing, runs nothing and links only to itself."""
    assert SECRET not in page
    assert b64encode(PNG).decode()[20:-4] not in page
    parsed = Page(page)
    assert {tag for tag, _ in parsed.elements} <= PLAIN_TAGS
    for tag, attributes in parsed.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "data")], tag
        assert (attributes.get("href") or "#").startswith("#")
    return parsed


def hostile_state(state: RunState, text: str) -> RunState:
    """Return the state of a run with a text in place of every text that reaches its report. Titles name links too."""
    provenance = state.provenance.model_copy(update={"host": text, "packages": {text: text}})
    stages = tuple(entry.model_copy(update={"title": text[:60], "reason": text}) for entry in state.stages)
    names = ("name", "description", "message", "command", "recipe")
    changes = {"expectations": {text: "< 1"}, "provenance": provenance, "stages": stages}
    return state.model_copy(update=dict.fromkeys(names, text) | changes)


def test_report_shows_hostile_text_as_text(bench, key, monkeypatch):
    """The text is in every place that a report takes from elsewhere: the run, its samples, notes and sources."""
    monkeypatch.setattr("nanochat.runner.report.run_report.render_html", render_html)
    run, folder = bench.run(), bench.stage_folder("pretrain")
    log = folder.log.read_text()
    texts = [template.format(key=key, up="../../../../id_rsa.png") for template in HOSTILE.values()]
    for some in (texts[start::5] for start in range(5)):  # the test below has each by itself
        text = "\n\n".join(some)
        hostile_state(run.state, text).write(run.folder.state)
        write_text(folder.samples, f"# Samples\n\n## {text}\n\n{text}\n")
        write_text(folder.log, f"{log}\nnote: {text}\n")
        folder.sources.write_text(json.dumps([text]))
        write_report(find_run(str(run.folder.path), bench.base), bench.base)
        parsed = check_page(run.folder.report_page.read_text(encoding="utf-8"))
        assert words(text) in words(parsed.text)
        report = run.folder.report.read_text(encoding="utf-8")
        assert not [c for c in report if not c.isprintable() and c not in "\n\t\u2028\u2029"], "terminals show it too"
        for markdown in (report, run_view(run.folder, bench.base).description):
            check_markdown(markdown)


def check_markdown(markdown: str) -> None:
    """Check that a viewer of markdown, such as MLflow's, that allows HTML finds none and no links to elsewhere."""
    for tag, attributes in Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)).elements:
        assert tag in PLAIN_TAGS, tag
        assert attributes.get("href") in (None, "recipe.yaml", "config.yaml")


@pytest.mark.parametrize("name", HOSTILE)
def test_escaped_text_is_shown_by_markdown_as_it_is(name):
    """An independent reader of markdown finds no markup in it, in a line, a heading, a cell and paragraphs."""
    text = HOSTILE[name].format(key="/etc/key", up="../key")
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")
    for source, tags in (
        (escape(text), {"p"}),
        (f"# {escape(text)}", {"h1"}),
        (f"- {escape(text)}", {"ul", "li"}),
        (markdown_table((text, "b"), "lr", [(text, text)]), {"table", "thead", "tbody", "tr", "th", "td"}),
        (paragraphs(text), {"p", "br"}),
        (code_span(text), {"p", "code"}),
    ):
        page = Page(markdown.render(source))
        assert {tag for tag, _ in page.elements} <= tags, source
        assert words(text) in words(page.text)


@pytest.mark.parametrize("text", ["<b>x</b>", "a<!-- b -->", "&lt;b&gt;", ":smile: a:x:b", ":-- | :--", "<img src=x/>"])
def test_text_is_escaped_as_the_reader_of_mlflow_understands_it(text):
    """Showdown 1.9 shows a backslash before `<`, `&` and `:`, and replaces names of emoji in colons."""
    for shown in (escape(text), paragraphs(text)):
        assert not re.search(r"<|\\[<&:]|&(?!lt;|amp;|#58;)|:[-\w]+:|^:", shown)
        assert html.unescape(shown).replace("\\", "") == text


@pytest.mark.parametrize(
    "text", ["0.75", "-1.5", "2-pretrain", "06:35:33 on a", "chat_eval", "a < b & c", "1) no", "- 1", "C:", "a.b", "=="]
)
def test_only_what_markdown_acts_on_is_escaped(text):
    """Numbers and names stay readable in a terminal."""
    assert escape(text).replace("\\", "") == text
    assert ("\\" in escape(text)) == (text in ("1) no", "- 1", "=="))


def test_html_page_refuses_what_markdown_let_through(key, tmp_path):
    """Only named pictures with the content of a PNG file are embedded. Links to files elsewhere are not followed."""
    ours, fake, link = tmp_path / "loss.png", tmp_path / "fake.png", tmp_path / "link.png"
    ours.write_bytes(b"\x89PNG\r\n\x1a\npicture")
    fake.write_text(SECRET)
    link.symlink_to(key)
    recipe = tmp_path / "recipe.yaml"
    recipe.symlink_to(key)
    pictures = {"plots/loss.png": ours, "plots/fake.png": fake, "plots/link.png": link}
    markdown = "".join(f"![x]({name}) " for name in [*pictures, str(key), f"file://{key}"])
    page = render_html(f"# t\n\n{markdown}\n\n[a](recipe.yaml) [b](http://x.y)\n", pictures, attached=[recipe])
    assert SECRET not in page and b64encode(PNG).decode()[20:-4] not in page
    images = [attributes["src"] for tag, attributes in Page(page).elements if tag == "img"]
    assert images == ["data:image/png;base64," + b64encode(ours.read_bytes()).decode()]
    assert "<a " not in page
    shown = html.unescape(page)
    for text in (f"![x]({key})", f"![x](file://{key})", "[a](recipe.yaml)", "[b](http://x.y)", "![x](plots/link.png)"):
        assert text in shown
