"""Code lines of the five rooms, without blanks, comments and docstrings: ``python tests/code_lines.py [REVISION ...]``.

Without a revision, those of the working tree; ``ruff format`` makes the lines of two revisions comparable.
"""

import ast
import io
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("multilevel", "recipes", "levels", "problems", "solvers")
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(text):
    """
    >>> code_lines('def f():  # a comment' + chr(10) * 2 + '    "A docstring."' + chr(10) + '    return 1' + chr(10))
    2
    """
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def files(revision):
    """Path and text of every Python file of the rooms."""
    if revision is None:
        paths = (path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
        return {str(path.relative_to(ROOT)): path.read_text() for path in paths}
    listed = git("ls-tree", "-r", "--name-only", revision, "--", *ROOMS).split("\n")
    return {path: git("show", f"{revision}:{path}") for path in listed if path.endswith(".py")}


def git(*arguments):
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def main(revisions):
    print("revision".ljust(14), *(room.rjust(10) for room in (*ROOMS, "together")))
    for revision in revisions or [None]:
        counts = Counter()
        for path, text in files(revision).items():
            counts[path.partition("/")[0]] += code_lines(text)
        numbers = [*(counts[room] for room in ROOMS), counts.total()]
        print((revision or "working tree").ljust(14), *(f"{number:>10,}" for number in numbers))


if __name__ == "__main__":
    main(sys.argv[1:])
