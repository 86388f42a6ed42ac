"""README and pages stay short and plain: lengths of sentences, and none of the words that only we used."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RULES = ROOT / "site" / "vale" / "Layersift"  # where vale is, `make prose` holds the pages to the same rules
LONGEST, MEAN = yaml.safe_load((RULES / "Sentences.yml").read_text())["max"], 20  # words a sentence
README_WORDS, README_MEAN = 600, 18
ALL_WORDS = 15_000  # of prose, in README and docs
OTHER_WORDS = {
    rf"\b(?:{word})\b"
    for name, key in (("Words", "swap"), ("Litotes", "tokens"))
    for word in yaml.safe_load((RULES / f"{name}.yml").read_text())[key]
}


def prose_of(text):
    """Blocks of running text: no code, tables, headings, pictures, or targets of links."""
    text = re.sub(r"```.*?```|<!--.*?-->", "\n\n", text, flags=re.DOTALL)
    blocks = [[]]
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith(("|", "#", "!")):
            blocks.append([])
            continue
        if item := re.match(r"(?:[-*+]|\d+\.|>) ", line):
            blocks.append([])
            line = line[item.end() :]
        blocks[-1].append(line)
    for block in filter(None, (" ".join(block) for block in blocks)):
        yield re.sub(r"`[^`]*`", "CODE", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", block))


def sentences_of(text):
    """Each sentence's number of words."""
    for block in prose_of(text):
        for sentence in re.split(r"(?<=[.!?;:])\s+(?=[A-Z(*\"'])", block):
            words = len([word for word in sentence.split() if re.search(r"\w", word)])
            if words > 2:
                yield words, sentence


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_sentences_are_short(page):
    own = list(sentences_of(page.read_text()))
    assert [sentence for words, sentence in own if words > LONGEST] == []
    if own:
        most = README_MEAN if page.name == "README.md" and page.parent == ROOT else MEAN
        assert sum(words for words, _ in own) / len(own) <= most


def test_the_readme_is_one_screen():
    assert sum(words for words, _ in sentences_of((ROOT / "README.md").read_text())) <= README_WORDS


def test_all_pages_together_are_short():
    pages = [page for page in PAGES if page.name != "CONTRIBUTING.md"]
    assert sum(words for page in pages for words, _ in sentences_of(page.read_text())) <= ALL_WORDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_words_are_the_fields(page):
    assert words_to_replace("\n".join(prose_of(page.read_text()))) == []


def words_to_replace(text):
    """What vale's rules would replace in a text."""
    return [found[0] for word in OTHER_WORDS for found in re.finditer(word, text, re.IGNORECASE)]


def test_a_word_of_the_glossarys_left_column_is_found():
    assert words_to_replace("Their environment was not understood until then: a unique unit.") == []
    assert sorted(words_to_replace("The surroundings of an encoder are not uncommon.")) == [
        "not uncommon",
        "of an encoder",
        "surroundings",
    ]


def test_a_long_sentence_is_found():
    text = f"Short. W{'word ' * 36}.\n\n| {'cell ' * 50} |\n\n```sh\n{'flag ' * 50}\n```\n"
    assert [words for words, _ in sentences_of(text) if words > LONGEST] == [36]
