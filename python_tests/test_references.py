"""What the project's own texts cite exists: files, folders, tests, and the sections of documents."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("csrc", "lmcleaner_ext", "python_tests", "benchmarks", "docs", "scripts", "examples", "configs", ".ci")
TEXTS = {".py", ".cpp", ".cu", ".cuh", ".h", ".md", ".sh", ".toml", ".yml", ".yaml", ".json", ".txt", ""}

FILE = re.compile(r"(?<![\w/.{*<$])((?:\.\.?/)?\w[\w./-]*\.(?:py|cpp|cu|cuh|h|md|sh))(?:::(\w+))?(?![\w*{])")
PLACE = re.compile(rf"(?<![\w/.-])(?<!--out )((?:{'|'.join(FOLDERS[:-1])})/[\w./-]*)(?![\w*{{<$])")
SECTION = re.compile(r"([\w./-]+\.md)\W{1,3}sections? (\d+(?:(?:, | and | to )\d+)*)")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([\w-]+))?\)")

# what other projects or a user's disk have under this name, and what a build makes
ELSEWHERE = {"xxhash.h", "demo.md"}
BUILT = {"lmcleaner_ext/_native", "lmcleaner_ext/_cuda"}


def project():
    """{path from the root: text} of the files that people write; dated results are history and may name what was."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")] + list(ROOT.iterdir())
    names = {path.relative_to(ROOT).as_posix(): path for path in found if path.is_file() and path.suffix in TEXTS}
    left_out = re.compile(r"(^|/)(__pycache__|\.hypothesis|\.\w+_cache|\.git)(/|$)|^benchmarks/results/")
    return {name: path.read_text() for name, path in names.items() if not left_out.search(name)}


PROJECT = project()


def exists(cited, citing):
    """As a path from the root, from the citing file, or as the end of a path (`log/reader.py`, `reader.py`)."""
    if (ROOT / cited).exists() or (ROOT / citing).parent.joinpath(cited).exists():
        return True
    return any(f"/{path}".endswith(f"/{cited.removeprefix('./')}") for path in PROJECT)


def sections(document, citing):
    """The numbers of a document's sections; `document` exists."""
    (path,) = {p for p in PROJECT if f"/{p}".endswith(f"/{Path(document).name}")}
    return {int(number) for number in re.findall(r"^#+ (\d+)\. ", PROJECT[path], re.MULTILINE)}


def anchors(text):
    """The names by which headings of a document can be linked to."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def wrong_references(citing, text):
    """What this text cites and the project does not have."""
    wrong = []
    text = re.sub(r"^\s*#include.*$|https?://\S+", "", text, flags=re.MULTILINE)  # compilers find the former
    for cited, test in FILE.findall(text):
        if Path(cited).name in ELSEWHERE:
            continue
        if not exists(cited, citing):
            wrong.append(cited)
        elif test and not any(f"def {test}(" in t for p, t in PROJECT.items() if p.endswith(cited)):
            wrong.append(f"{cited}::{test}")
    for place in PLACE.findall(text):
        if place not in BUILT and not exists(place.rstrip("./"), citing):
            wrong.append(place)
    for document, numbers in SECTION.findall(text):
        if exists(document, citing):
            missing = set(map(int, re.findall(r"\d+", numbers))) - sections(document, citing)
            wrong += [f"{document} section {number}" for number in sorted(missing)]
    if citing.endswith(".md"):
        for target, anchor in LINK.findall(text):
            path = (ROOT / citing).parent / target if target else ROOT / citing
            if not path.exists() or (anchor and anchor not in anchors(path.read_text())):
                wrong.append(f"{target}#{anchor}")
    return wrong


@pytest.mark.parametrize("citing", sorted(PROJECT))
def test_everything_cited_exists(citing):
    if citing != "python_tests/test_references.py":
        assert wrong_references(citing, PROJECT[citing]) == []


@pytest.mark.parametrize(
    ("citing", "text", "found"),
    [
        ("lmcleaner_ext/losses.py", "see METHOD.md section 4", ["METHOD.md"]),
        ("lmcleaner_ext/losses.py", "docs/method.md, sections 3 and 44", ["docs/method.md section 44"]),
        ("docs/cli.md", "(method.md, section 99)", ["method.md section 99"]),
        ("lmcleaner_ext/losses.py", "as in log/nothing.py", ["log/nothing.py"]),
        ("csrc/math/anything.h", "// the loops are in csrc/nowhere/", ["csrc/nowhere/"]),
        ("csrc/math/anything.h", "// specified by reference/nothing.py", ["reference/nothing.py"]),
        ("README.md", "[docs](docs/nothing.md)", ["docs/nothing.md", "docs/nothing.md", "docs/nothing.md#"]),
        ("README.md", "[docs](docs/method.md#no-such-heading)", ["docs/method.md#no-such-heading"]),
        ("docs/cli.md", "test_references.py::test_nothing", ["test_references.py::test_nothing"]),
        ("docs/cli.md", "docs/method.md, sections 3 and 4; [it](method.md#1-the-question); test_references.py", []),
    ],
)
def test_a_wrong_reference_is_found(citing, text, found):
    assert wrong_references(citing, text) == found
