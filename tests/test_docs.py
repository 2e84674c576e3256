"""Checks the documentation: its configs load, its links lead somewhere, its generated pages are fresh."""

from __future__ import annotations

import builtins
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from eardrum import config, errors
from tests.conftest import run_server
from tests.scripts import load_script

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SOURCES = ROOT / "src" / "eardrum"

PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "bench" / "README.md"])
FENCE = re.compile(r"^( *)```.*?^\1```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]*)\)")
GENERATED = (
    "reference/config.schema.json",
    "reference/config.md",
    "reference/engines.md",
    "reference/routes.md",
    "reference/cli.md",
    "explanation/code-map.md",
)
PACKAGES = "|".join(["src", *sorted(folder.name for folder in SOURCES.iterdir() if (folder / "__init__.py").exists())])
SOURCE_PATH = re.compile(rf"`((?:{PACKAGES})/[\w/]+/|[\w/]+/\w+\.py)`")
IDENTIFIER = re.compile(r"[A-Z]\w*[a-z]\w*[A-Z]\w*|[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+|_?[a-z0-9]+(?:_[a-z0-9]+)+")
FOREIGN_IDENTIFIERS = {"proxy_pass", "IMAGE_REGISTRY"}
"""Identifiers on these pages that are another program's: a setting of nginx, a variable of the CI."""


def get_label(page: Path) -> str:
    return str(page.relative_to(ROOT))


def read_prose(page: Path) -> str:
    """The page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@cache
def list_anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and Python-Markdown both name them."""
    headings = re.findall(r"^#+ (.*)$", read_prose(page), re.MULTILINE)
    return {re.sub(r"[ ]", "-", re.sub(r"[^\w\- ]", "", heading.lower())) for heading in headings}


def find_broken_links(page: Path) -> Iterator[str]:
    for link in LINK.findall(read_prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        if not path.exists():
            yield f"{link}: there is no such file"
        elif anchor and anchor not in list_anchors(path):
            yield f"{link}: there is no such heading"
        elif DOCS in page.parents and DOCS not in path.parents:
            yield f"{link}: the site has no files outside docs/"


def list_examples(page: str) -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=get_label)
def test_links_lead_somewhere(page: Path) -> None:
    assert list(find_broken_links(page)) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One\n\n[a](page.md#one) [b](other.md) [c](#two) [d](https://example.com)\n```\n[e](nowhere.md)\n```\n")
    assert [broken.split(":")[0] for broken in find_broken_links(page)] == ["other.md", "#two"]


def list_navigation() -> list[str]:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    return re.findall(r"^ +- ([\w/-]+\.md)$", text.split("\nnav:")[1], re.MULTILINE)


def test_every_page_is_in_the_navigation() -> None:
    listed = list_navigation()
    decisions = LINK.findall((DOCS / "decisions" / "index.md").read_text(encoding="utf-8"))
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert sorted([*listed, *(f"decisions/{name}" for name in decisions)]) == sorted(pages)


def test_the_first_page_links_every_page_once() -> None:
    links = [link.partition("#")[0] for link in LINK.findall(read_prose(DOCS / "index.md")) if "#" not in link]
    assert sorted({*links, "index.md"}) == sorted(list_navigation())
    assert [link for link, count in Counter(links).items() if count > 1 and link != "explanation/security.md"] == []


def test_generated_pages_are_fresh() -> None:
    generated = {path.relative_to(DOCS).as_posix(): text for path, text in load_script("docs").build_pages()}
    assert sorted(generated) == sorted(GENERATED)
    stale = [name for name, text in generated.items() if (DOCS / name).read_text(encoding="utf-8") != text]
    assert stale == [], "run `make docs`"


def test_sources_that_are_named_exist() -> None:
    missing = [
        f"{get_label(page)}: {path}"
        for page in PAGES
        for path in SOURCE_PATH.findall(read_prose(page))
        if not any((folder / path).exists() for folder in (SOURCES, ROOT, page.parent))
    ]
    assert missing == []


def test_identifiers_that_explanations_name_exist() -> None:
    """A name in the code, or a setting, that was renamed or removed."""
    sources = [*SOURCES.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    existing = {word for path in sources for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}
    pages = [page for page in PAGES if page.parent.name == "explanation" or page.name in ("house.md", "CONTRIBUTING.md")]
    unknown = [
        f"{get_label(page)}: {name}"
        for page in pages
        for code in re.findall(r"`([\w.]+)`", read_prose(page))
        for name in code.split(".")
        if IDENTIFIER.fullmatch(name) and name not in existing | FOREIGN_IDENTIFIERS
    ]
    assert len(pages) > 7
    assert unknown == []


def test_pages_that_the_code_names_exist() -> None:
    named = {
        (get_label(source), page)
        for folder in ("src", "tests", "bench", "scripts")
        for source in (ROOT / folder).rglob("*.py")
        for page in re.findall(r"docs/[\w/-]+\.(?:md|json)", source.read_text(encoding="utf-8"))
    }
    assert [(source, page) for source, page in sorted(named) if not (ROOT / page).exists()] == []


def list_error_rows() -> set[tuple[str, str]]:
    page = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE))


def test_every_error_has_a_row() -> None:
    def list_codes(kind: type[errors.EardrumError]) -> set[tuple[str, str]]:
        # Protocols have further ones of their own, which exist where their modules are loaded.
        shared = [each for each in kind.__subclasses__() if each.__module__ == errors.__name__]
        return {(str(kind.status), kind.code)}.union(*map(list_codes, shared))

    assert list_codes(errors.EardrumError) == list_error_rows()


def test_codes_in_troubleshooting_exist() -> None:
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    assert {(status, code) for status, code in re.findall(r"\b(\d{3}) `(\w+)`", text)} <= list_error_rows()


CONFIGS = [
    *(
        "guides/speech.md",
        "guides/llama-swap.md",
        "reference/config.md",
        "guides/commands.md",
        "guides/gpu.md",
        "guides/home-assistant.md",
    ),
    *("guides/hotwords.md", "guides/ollama.md", "guides/reverse-proxy.md", "guides/systemd.md", "models.md"),
]


@pytest.mark.parametrize("page", CONFIGS)
def test_configs_that_are_shown_load_without_a_warning(page: str, tmp_path: Path) -> None:
    assert list_examples(page)
    for text in list_examples(page):
        file = tmp_path / "config.yaml"
        file.write_text(text)
        loaded = config.load_config(file, environment={"PHONE_KEY": "a", "DESK_KEY": "b", "ADMIN_KEY": "c"})
        assert [str(warning) for warning in loaded.warnings] == []
        assert bool(loaded.settings.models) == ("models" in yaml.safe_load(text))


def test_the_config_of_the_readme_loads_without_a_warning(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "config.yaml"
    file.write_text(text)
    loaded = config.load_config(file, environment={})
    assert (sorted(loaded.settings.models), loaded.warnings) == (["gemma", "qwen", "turbo"], ())


def test_the_page_on_llama_swap_tells_the_truth(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(list_examples("guides/llama-swap.md")[0])
    models = config.load_settings(file, environment={}).models
    assert models["gemma"].cmd.split() == [
        *("llama-server", "--port", "9000", "--host", "127.0.0.1", "-m", "/srv/models/gemma-3-12b.gguf")
    ]
    assert "comments" not in models["qwen"].cmd
    assert models["qwen"].aliases == ("gpt-4o-mini", "qwen:no-think")
    assert models["whisper"].proxy == "http://localhost:9002"


def normalize(text: str) -> str:
    """The text without what differs from run to run: numbers, the folder of the package, line breaks."""
    return " ".join(re.sub(r"\d+", "0", re.sub(r"\S*src/eardrum/sample\.ogg", "SAMPLE", text)).split())


@pytest.mark.slow
def test_getting_started_shows_what_is_printed(tmp_path: Path) -> None:
    page = (DOCS / "getting-started.md").read_text(encoding="utf-8")
    banner, transcripts = re.findall(r"^```console\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[:2]
    with run_server("--sample", "--wyoming", "--wyoming-port", "0", HF_HOME=str(tmp_path)) as server:
        server.wait_for_log("amiable himself.", 60)
        printed = normalize(server.log)
        for paragraph in banner.removeprefix("$ make run\n").split("\n\n"):
            assert normalize(paragraph) in printed
        sample = (SOURCES / "sample.ogg").read_bytes()
        assert server.post_audio(sample, model="whisper-1").text in transcripts
        assert server.post_audio(sample, model="whisper-1", response_format="srt").text.strip() in transcripts


FOREIGN_NAMES = {"MediaRecorder", "NAME", "J"}
"""Names in docstrings that are another program's, and placeholders."""


def test_classes_and_constants_that_docstrings_name_exist() -> None:
    named: list[tuple[str, str]] = []
    existing = {*dir(builtins), *FOREIGN_NAMES}
    for path in sorted(SOURCES.rglob("*.py")):
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
            is_docstring = token.type == tokenize.STRING and token.string.startswith(('"""', 'r"""'))
            if token.type == tokenize.COMMENT or is_docstring:
                named += [(f"{path.name}:{token.start[0]}", name) for name in re.findall(r"`([A-Za-z][\w.]*)", token.string)]
            elif token.type == tokenize.NAME:
                existing.add(token.string)
            elif token.type == tokenize.STRING:
                existing.update(re.findall(r"\w+", token.string))
    is_ours = re.compile(r"[A-Z][a-z]+([A-Z][a-z]*)+|[A-Z]+(_[A-Z0-9]+)*")
    unknown = [(where, name) for where, name in named if is_ours.fullmatch(first := name.split(".")[0]) and first not in existing]
    assert not unknown


@pytest.fixture
def stages() -> list[str]:
    """The stages of `make stages`, which .ci/run calls after `make test`."""
    called = re.findall(r"^make (\S+)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert called == ["test", "stages"]
    (found,) = re.findall(r"^STAGE_TARGETS := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return found.split()


def test_every_stage_has_a_recipe(stages: list[str]) -> None:
    """make takes a target without one, if it is declared phony, for done."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipes = set(re.findall(r"^(\S+):.*\n\t", makefile, re.MULTILINE)) | {"test"}
    assert len(stages) > 10
    assert not set(stages) - recipes
    assert not set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split()) - recipes


def test_every_stage_runs_for_pull_requests_and_is_described(stages: list[str]) -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    assert sorted(jobs["stages"]["strategy"]["matrix"]["stage"]) == sorted(stages)
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert not [stage for stage in stages if f"`make {stage}`" not in text]
