"""The pages show every claim and every figure, load nothing, and are drawn by a real browser without complaint."""

import html
import re
import shutil
import subprocess

import pytest

from gpumlp.recipes.page import index_page, recipe_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")


@pytest.fixture
def page(done) -> str:
    return recipe_page(done.results())


def test_published_and_ours_stand_side_by_side_with_rule_and_verdict(page, done):
    text = html.unescape(page)
    for part in done.recipe.parts:
        assert f'id="{part.id}"' in text
        for claim in part.claims:
            assert f'<th scope="row">{claim.what}' in text
    assert "at least 8" in text
    assert "! fault in the report" in text
    assert "It counts wrongly." in text
    assert re.search(r"published\">0\.5</td>.*ours\">0\.\d+</td>.*at least 0\.1</td>.*✓ holds", text)
    assert "Read from both." in text
    assert "3 holds" in text


def test_every_figure_has_an_alternative_text(page, done):
    pictures = re.findall(r"<svg[^>]*>", page)
    assert len(pictures) == sum(len(record.pictures) for record in done.records.values()) == 2
    for picture in pictures:
        assert 'role="img"' in picture
        assert re.search('aria-label="[^"]{20,}"', picture)


def test_ids_are_unique_and_settings_are_configs(page):
    import tomllib

    from gpumlp.config import complete_config

    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    settings = [html.unescape(text) for text in re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.DOTALL)]
    assert len(settings) == 2
    for text in settings:
        assert complete_config(tomllib.loads(text))["training"]["epochs"] == 6


def test_nothing_is_loaded_from_anywhere(page, done):
    for text in (page, index_page([done.results()], quick=False)):
        assert not re.search(r'(?:src|href)="(?!#|tiny/report\.html)', text)
        assert "default-src 'none'" in text
        assert "<script" not in text


def test_the_index_links_to_the_page_of_each_part(done):
    text = index_page([done.results(), done.results()], quick=True)
    assert 'href="tiny/report.html#one"' in text
    assert "· quick" in text


def test_a_report_that_is_not_complete_says_so(done):
    done.forget(["sum"])
    text = recipe_page(done.results())
    assert "Not every part was run" in text
    assert "not run" in text


@pytest.mark.skipif(not BROWSER, reason="no Chromium is installed")
def test_a_browser_draws_the_page_without_a_complaint_and_no_wider_than_a_phone(page, tmp_path):
    probe = (
        "<script>addEventListener('load', () => document.documentElement.dataset.width = "
        "[document.documentElement.scrollWidth, innerWidth].join('/'))</script></body>"
    )
    path = tmp_path / "page.html"
    # the page forbids scripts; the one that measures it is let through for this
    path.write_text(
        page.replace("</body>", probe).replace(
            "default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'"
        ),
        encoding="utf-8",
    )
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command += [
        "--enable-logging=stderr",
        "--window-size=500,2000",
        "--virtual-time-budget=2000",
        "--dump-dom",
    ]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    ((scrolled, inner),) = re.findall(r'data-width="(\d+)/(\d+)"', done.stdout)
    assert int(scrolled) <= int(inner)
    assert "CONSOLE" not in done.stderr
