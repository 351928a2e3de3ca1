"""Phrases of translated English are in no message, docstring or page."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ["solvers", "problems", "levels", "recipes", "multilevel"]
#: Each with what to write instead.
PHRASES = {
    r"(?<!so )that there (is|are)\b": "existing, known, available",
    r"\b(can|cannot|could|to) be had\b|\b(is|are) had\b": "can be downloaded, come from",
    r"\bof (its|their|one's) own(?=$|[.,;:)(]| \(| (and|for|in|it|not|over|to|where)\b)": "its own ..., separate",
    r"\b(go|goes|going|went) on (with|from)\b": "continues, resumes",
    r"(?<!left )(?<!leave )(?<!leaves )(?<!let )\balone\b": "only",
    r"\bbelongs? into\b": "belongs in",
    r"\blikewise\b": "too, also, the same",
    r"\b[Ww]hoever\b": "anyone who, code that",
    r"\band its like\b|\band its kin\b": "and similar",
    r"\bdoes without\b|\bdone without\b": "needs no",
    r"\bwithout a word\b": "silently",
    r"(?<!here )\b(is|are) no (?!(longer|more|less|fewer|larger|smaller|better|worse|other|one)\b)": "is not a",
    r"\banew\b": "again",
    r"\bbut for\b": "except",
    r"\bthereby\b": "thus, so",
    r"\bsuch a one\b": "such a ..., it",
    r"\b(those|ones) given\b": "the given ...",
    r"\bwho reads whom\b": "which level reads which",
    r"\b(None|empty) where\b": "None if, None without",
    r"\bin another way\b": "differently, another way",
    r"\bto the last bit\b": "bit for bit",
    r"\bonce an? (step|update)\b|\bpixels a side\b": "once per update, pixels per side",
}
#: Docstrings that begin as nominal clauses; a docstring says what the thing does or is.
OPENINGS = r"(What|Of|As) "


def docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def strings(tree):
    """Every text of a file, docstrings included: the constants, and the fixed parts of f-strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "~" for part in node.values]
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def phrases_in(text):
    flat = " ".join(text.split())
    return [found[0] for phrase in PHRASES for found in [re.search(f".{{0,30}}{phrase}.{{0,20}}", flat)] if found]


@pytest.mark.parametrize("room", ROOMS)
def test_messages_and_docstrings_are_natural_english(room):
    wrong = []
    for path in sorted((ROOT / room).rglob("*.py")):
        tree = ast.parse(path.read_text())
        name = path.relative_to(ROOT)
        wrong += [f"{name}:{line}: {found}" for line, text in strings(tree) for found in phrases_in(text)]
        wrong += [
            f"{name}:{line}: {text.splitlines()[0]}" for line, text in docstrings(tree) if re.match(OPENINGS, text)
        ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{page.name}" for page in ROOT.glob("docs/*.md"))])
def test_pages_are_natural_english(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    assert not phrases_in(text), "\n".join(phrases_in(text))


def test_each_phrase_is_found_and_its_remedy_is_not():
    bad = (
        "folders that there are; cannot be had; of its own; goes on with; torch alone; belongs into; likewise; whoever;"
        " a seed is no reason; drawn anew; all but for one; thereby; such a one; those given; who reads whom;"
        " None where; formed in another way; to the last bit; once an update"
    )
    assert len(phrases_in(bad)) == 19
    good = "left alone, existing folders, its own file, continues with only torch; there is no file; it is no longer so"
    assert phrases_in(good) == []
