"""tutorial.md: every chapter runs, shows the source as it is, and names only what exists."""

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sybil import Document
from sybil.parsers.markdown import PythonCodeBlockParser

from scratchnet.backends import OPERATORS, BackendError

ROOT = Path(__file__).resolve().parent.parent
TUTORIAL = ROOT / "tutorial.md"
TEXT = TUTORIAL.read_text(encoding="utf-8")
HEADING = re.compile(r"^## (\d+)\. (.+)$", re.MULTILINE)
CHAPTERS = [int(number) for number, _ in HEADING.findall(TEXT)]
OWN_PROCESS = {11}  # sets a switch that Numba reads when it is imported
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_chapter(number: int) -> int:
    """Run the Python blocks of one chapter in order, in a namespace of their own."""
    bounds = [match.start() for match in HEADING.finditer(TEXT)] + [len(TEXT)]
    start, stop = bounds[CHAPTERS.index(number)], bounds[CHAPTERS.index(number) + 1]
    document = Document.parse(str(TUTORIAL), PythonCodeBlockParser())
    examples = [example for example in document if start <= example.region.start < stop]
    for example in examples:
        example.evaluate()
    return len(examples)


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Glyphs are drawn here; MNIST is here where this machine has it."""
    folder = tmp_path_factory.mktemp("data")
    mnist = Path(os.environ.get("SCRATCHNET_DATA", "")) / "mnist"
    if "SCRATCHNET_DATA" in os.environ and mnist.is_dir():
        (folder / "mnist").symlink_to(mnist.resolve())
    return folder


@pytest.mark.parametrize("number", CHAPTERS)
def test_chapter_runs(number, data_folder, tmp_path, monkeypatch):
    """Each chapter stands alone: it begins with its own imports."""
    monkeypatch.setenv("SCRATCHNET_DATA", str(data_folder))
    monkeypatch.chdir(tmp_path)
    if number not in OWN_PROCESS:
        assert run_chapter(number) >= 3
        return
    command = f"import test_tutorial as t; assert t.run_chapter({number}) >= 3"
    folders = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-c", command],
        env=os.environ | {"PYTHONPATH": folders},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_chapters_are_numbered():
    assert CHAPTERS == list(range(1, len(CHAPTERS) + 1))


def _figures():
    path = ROOT / "examples" / "tutorial_figures.py"
    spec = importlib.util.spec_from_file_location("tutorial_figures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_source_shown_is_the_source():
    """`python examples/tutorial_figures.py --sources` brings it up to date."""
    assert _figures().with_sources(TEXT) == TEXT


def test_the_source_shown_is_named():
    """A reader does not see the comment, and must tell the project's code from code to type."""
    for match in re.finditer(r"<!-- source: ([\w.]+) -->", TEXT):
        assert TEXT[: match.start()].endswith(f", `{match[1]}`:\n\n"), match[1]
    assert len(_figures().SHOWN.findall(TEXT)) == TEXT.count("<!-- source:")


def test_the_source_is_shown_in_each_chapter_on_an_operator():
    for number in (number for number in CHAPTERS if number < 10):
        assert "<!-- source: scratchnet." in _chapter(number), f"chapter {number}"


def _chapter(number: int) -> str:
    starts = [match.start() for match in HEADING.finditer(TEXT)] + [len(TEXT)]
    return TEXT[starts[number - 1] : starts[number]]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\bscratchnet(?:\.[A-Za-z_]\w*)+", TEXT))))
def test_every_name_exists(name):
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        except BackendError:  # a backend that does not run here, but is there
            assert importlib.util.find_spec(name)
            return
        for part in parts[cut:]:
            found = getattr(found, part)
        return
    raise AssertionError(name)


def test_every_path_exists():
    paths = set(re.findall(r"\b(?:scratchnet|tests|examples)/[\w/.]*\w", TEXT))
    missing = [path for path in sorted(paths) if not (ROOT / path).exists()]
    assert not missing


def _slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_link_leads_somewhere():
    prose = FENCE.sub("", TEXT)
    anchors = {"#" + _slug(heading) for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE)}
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith("#"):
            assert target in anchors, target
        elif not target.startswith("https://"):
            assert (ROOT / target).exists(), target


def test_every_figure_is_there_described_and_small():
    shown = re.findall(r"!\[(.*?)\]\((.*?)\)", TEXT, re.DOTALL)
    for description, path in shown:
        assert len(description) > 40, f"{path}: say in words what it shows"
        assert (ROOT / path).stat().st_size < 150_000, path
    drawn = {f"examples/figures/{name}.png" for name in _figures().FIGURES}
    assert drawn == {path for _, path in shown}


def test_every_chapter_has_its_parts():
    for number in CHAPTERS:
        chapter = _chapter(number)
        assert "**The question.**" in chapter, number
        minutes = re.search(r"^\*(\d+) minutes\.\*", chapter, re.MULTILINE)[1]
        assert re.search(rf"^\| {number} \| \[.*\| {minutes} \|$", TEXT, re.MULTILINE), number
        assert "![" in chapter, number
        assert re.search(r"\b[Ss]ources?: |Li et al\.", chapter), number
        assert re.search(r"\b(?:check_gradients|gradcheck)\(", chapter), number
        assert re.search(r"^### A (?:mistake|surprise)", chapter, re.MULTILINE), number
        assert "### Exercises" in chapter, number
        assert chapter.count("<details>") >= 2, number


def test_every_exercise_can_be_checked_by_running_a_block():
    for answer in re.findall(r"<details>(.*?)</details>", TEXT, re.DOTALL):
        assert re.search(r"^assert |^    assert ", answer, re.MULTILINE), answer


def test_every_operator_is_met():
    for operator in OPERATORS:
        assert re.search(rf"\b{operator}(?:_forward|_backward)?\b", TEXT), operator


def test_blocks_fit_the_page():
    """GitHub's column holds some 100 characters of code."""
    for language, block in FENCE.findall(TEXT):
        if language != "math":
            assert max(map(len, block.splitlines()), default=0) <= 100, block


def test_mathematics_renders():
    """Only ```math fences and $`...`$: Markdown eats \\, _ and * of anything else."""
    for match in re.finditer(r"^```math$", TEXT, re.MULTILINE):
        assert TEXT[: match.start()].endswith("\n\n"), TEXT[match.start() : match.start() + 80]
    for match in re.finditer(r"^```math\n(.*?)^```\n(.*?)\n", TEXT, re.MULTILINE | re.DOTALL):
        assert match[2] == "", f"a blank line must follow: {match[1]}"
        assert r"\operatorname" not in match[1]
    prose = FENCE.sub("", TEXT)
    inline = re.findall(r"(.?)\$`([^`\n]+)`\$(.?)", prose)
    for before, _, after in inline:
        assert not re.match(r"[\w-]", before) and not re.match(r"\w", after), (before, after)
    rest = re.sub(r"`[^`\n]*`", "", re.sub(r"\$`[^`\n]+`\$", "", prose))
    assert "$" not in rest, rest[max(0, rest.index("$") - 60) : rest.index("$") + 20]
    assert r"\(" not in rest and r"\[" not in rest
