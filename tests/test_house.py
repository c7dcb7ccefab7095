"The house in order: floors, frameworks, words, notebooks, versions and commands."
import ast
import json
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "semsynth"
NBS = ROOT / "nbs"


def source(cell: dict) -> str:
    return "".join(cell["source"])


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def visible(path: Path) -> bool:
    return not any(part.startswith((".", "_")) for part in path.relative_to(NBS).parts)


BOOKS = {
    relative(path): json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(NBS.rglob("*.ipynb")) if visible(path)
}
# Lessons are numbered and lie in nbs/ itself; 10 to 49 are the families.
LESSONS = [name for name in BOOKS if re.fullmatch(r"nbs/\d\d[a-z]?_\w+\.ipynb", name)]
FAMILIES = [name for name in LESSONS if re.fullmatch(r"nbs/[1-4]\d[a-z]?_\w+\.ipynb", name)]
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name not in
                 ("__init__.py", "_modidx.py"))


def code_cells(name: str) -> list[dict]:
    return [cell for cell in BOOKS[name]["cells"] if cell["cell_type"] == "code"]


def code(name: str) -> str:
    return "\n".join(source(cell) for cell in code_cells(name))


def prose(name: str) -> str:
    cells = BOOKS[name]["cells"]
    return "\n\n".join(source(cell) for cell in cells if cell["cell_type"] == "markdown")


def exported_module(name: str) -> str | None:
    "The module that a notebook exports, or None."
    found = re.search(r"^#\|\s*default_exp\s+([\w.]+)", code(name), re.M)
    return found and found.group(1)


def module_name(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")


def imports(path: Path) -> list[tuple[int, str]]:
    "Line and full name of every module that a file imports, at its top or inside a function."
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = ["semsynth", *module_name(path).split(".")[:-1]]
            base = ".".join(parents[:len(parents) + 1 - node.level]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            found.append((node.lineno, module))
            if module == "semsynth":
                found += [(node.lineno, f"semsynth.{alias.name}") for alias in node.names]
    return found


# --- floors

FLOORS = {exported_module(name): name.split("/")[-1].split("_")[0]
          for name in LESSONS if exported_module(name)}


def test_every_module_has_one_notebook():
    exported = [exported_module(name) for name in BOOKS if exported_module(name)]
    assert len(exported) == len(set(exported)), "two notebooks export one module"
    assert sorted(exported) == sorted(map(module_name, MODULES))


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_go_down(path):
    floor = FLOORS.get(module_name(path))
    if floor is None:  # The answers to exercises stand above all lessons.
        return
    for line, imported in imports(path):
        if not imported.startswith("semsynth."):
            continue
        name = imported.removeprefix("semsynth.")
        if name.startswith("answers"):
            assert path.stem == "exercises", f"{path.name}:{line}: only `check` opens the answers"
        below = FLOORS.get(name)
        if below is not None:
            assert below < floor, f"{path.name}:{line}, floor {floor}, imports {name} of {below}"


# --- frameworks

HOMES = {
    "pytorch_lightning": {"training"},
    "torchmetrics": {"metrics"},
    "ipywidgets": {"painter", "viewers", "playground"},
    "anywidget": {"painter", "viewers"},
    "yaml": {"configs"},
    "matplotlib": {"plots", "widgets"},
    "fastcore": set(),
    "nbdev": set(),
}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_every_framework_has_one_home(path):
    for line, imported in imports(path):
        homes = HOMES.get(imported.split(".")[0])
        assert homes is None or module_name(path) in homes, f"{path.name}:{line} imports {imported}"


def test_importing_semsynth_is_light():
    heavy = [*HOMES, "torchvision", "diffusers", "transformers", "PIL", "IPython"]
    script = f"import semsynth, sys; print([name for name in {heavy} if name in sys.modules])"
    said = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert said.strip() == "[]"


# --- code

FORBIDDEN_WORDS = set(
    "utils helpers misc common manager handler engine wrapper "
    "segmap label_nc n_labels colormap dontcare input_label hint input_concat "
    "netG netD G_net D_net critic NLayerDiscriminator pred_real pred_fake output_D D_fake gan_mode "
    "GAN_Feat x_start ddim_steps num_inference_steps cfg_scale cldm n_embed ema_rate kimg hparams"
    .split()
)


def names_given(path: Path) -> list[tuple[int, str]]:
    "Line and name of everything that a module names itself; what others named is theirs."
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.append((node.lineno, node.name))
        elif isinstance(node, ast.arg):
            found.append((node.lineno, node.arg))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.append((node.lineno, node.id))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.append((node.lineno, node.attr))
        elif isinstance(node, ast.alias) and node.asname:
            found.append((node.lineno, node.asname))
    return found


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_no_forbidden_word(path):
    wrong = [f"{path.name}:{line} {name}" for line, name in names_given(path)
             if FORBIDDEN_WORDS & {name, *name.split("_")}
             or name.startswith(("my_", "new_")) or name.endswith("_v2")]
    assert not wrong


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_code_hides_nothing(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    for node in ast.walk(tree):
        star = isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
        assert not star, f"{path.name}:{node.lineno} star import"
        bare = isinstance(node, ast.ExceptHandler) and node.type is None
        assert not bare, f"{path.name}:{node.lineno} bare except"
    for pattern in [r"\.cuda\(\)", r"strict\s*=\s*False", r"weights_only\s*=\s*False",
                    r"\bglobals\(\)", r"yaml\.(unsafe|full)_load", r"pickle\.load",
                    r"from __future__ import annotations"]:
        found = re.search(pattern, text)
        assert not found, f"{path.name}: {found and found.group()}"


# --- notebooks

@pytest.mark.parametrize("name", BOOKS)
def test_notebook_is_clean(name):
    book = BOOKS[name]
    assert set(book["metadata"]) <= {"kernelspec"}, "metadata beyond the kernel, or widget state"
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell.get("id") for cell in book["cells"]]
    assert None not in ids and len(ids) == len(set(ids)), "a cell without an id of its own"
    assert all(cell["execution_count"] is None for cell in code_cells(name)), "run nbdev_clean"


@pytest.mark.parametrize("name", BOOKS)
def test_outputs_are_small_and_tell_nothing_of_a_machine(name):
    outputs = json.dumps([cell["outputs"] for cell in code_cells(name)])
    assert len(outputs) <= 400_000, f"{len(outputs) // 1000} kB of outputs"
    assert "application/vnd.jupyter.widget-view+json" not in outputs, "a widget was saved"
    assert '"output_type": "error"' not in outputs, "an error was saved"
    everything = outputs + prose(name) + code(name)
    assert not re.search(r"/(tmp|root|home|Users|work)/\w", everything), "a path of one machine"


@pytest.mark.parametrize("name", BOOKS)
def test_pictures_have_alt_text(name):
    for alt in re.findall(r"!\[([^\]]*)\]\(", prose(name)):
        assert len(alt) >= 8, f"a picture is described by {alt!r}"
    for tag in re.findall(r"<img\b[^>]*>", prose(name)):
        assert re.search(r'alt="[^"]{8,}"', tag), tag


@pytest.mark.parametrize("name", BOOKS)
def test_every_cell_runs_everywhere(name):
    text = code(name)
    assert not re.search(r"^#\|\s*eval:\s*false", text, re.M), "a cell that is never run"
    for word in ["ipympl", "ipycanvas", "threading.Thread", "%matplotlib widget"]:
        assert word not in text, f"{word} fails in Colab"
    for installed in re.findall(r"^\s*[%!]pip install(.*)$", text, re.M):
        assert not re.search(r"\b(torch|torchvision|numpy)\b", installed), "Colab has its own"


COLAB_CELL = '''import sys
if "google.colab" in sys.modules:
    %pip install -q "semsynth[course] @ git+https://github.com/semsynth/semsynth"'''
COLAB = "https://colab.research.google.com"


@pytest.mark.parametrize("name", LESSONS)
def test_lesson_opens_as_all_do(name):
    first = BOOKS[name]["cells"][0]
    assert first["cell_type"] == "markdown" and re.match(r"# .+\n+> .+", source(first))
    badge = (f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]"
             f"({COLAB}/github/semsynth/semsynth/blob/main/{name})")
    assert badge in source(first)
    assert COLAB_CELL in [source(cell).strip() for cell in code_cells(name)]


SPINE = ["why", "idea", "build", "train", "look inside", "ablat", "faithful", "exercise", "summary"]


@pytest.mark.parametrize("name", FAMILIES)
def test_family_has_the_whole_spine(name):
    heads = [head.lower() for head in re.findall(r"^#+\s*(.+)$", prose(name), re.M)]
    places = [next((place for place, head in enumerate(heads) if word in head), None)
              for word in SPINE]
    missing = [word for word, place in zip(SPINE, places, strict=True) if place is None]
    assert not missing, f"no heading for {missing}"
    assert places == sorted(places), "the headings are there, but in another order"
    assert len(prose(name).split()) >= 1500
    assert "$" in prose(name), "no formula"
    assert "check(" in code(name), "no exercise"
    assert any(cell["outputs"] for cell in code_cells(name)), "no picture is saved"


# --- versions and commands

def requirements(*keys: str) -> set[str]:
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    words = " ".join(settings["DEFAULT"][key] for key in keys).split()
    return {re.split(r"[<>=!~\[]", word)[0].lower() for word in words}


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!-]+", pin) for pin in pins)
    names = [pin.split("==")[0].lower() for pin in pins]
    assert len(names) == len(set(names)), "a version is pinned twice"
    return dict(pin.lower().split("==") for pin in pins)


def test_constraints_name_every_requirement():
    asked = requirements("requirements", "course_requirements", "fid_requirements",
                         "dev_requirements")
    assert asked <= set(constraints())


def test_the_package_imports_only_what_it_requires():
    distributions = {"PIL": "pillow", "yaml": "pyyaml"}
    known = requirements("requirements", "fid_requirements") | {"semsynth"}
    known |= set(sys.stdlib_module_names)
    unknown = []
    for path in MODULES:
        for line, imported in imports(path):
            top = imported.split(".")[0]
            name = distributions.get(top, top).lower().replace("_", "-")
            if name not in known and top not in known:
                unknown.append(f"{path.name}:{line} imports {top}")
    assert not unknown


def test_colab_keeps_its_own_torch():
    settings = (ROOT / "settings.ini").read_text(encoding="utf-8")
    required = re.search(r"^requirements = (.*)$", settings, re.M).group(1).split()
    for name in ["torch", "torchvision", "numpy"]:
        bounds = next(word for word in required if re.split(r"[<>=]", word)[0] == name)
        assert "<" not in bounds and "==" not in bounds, bounds


def readme_blocks(language: str) -> str:
    "All code of one language in README.md."
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", readme, re.S))


def test_commands_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):(?!=)", makefile, re.M))
    used = set(re.findall(r"^make (?:[A-Z]+=\S+ )*([a-z]+)", readme_blocks("bash"), re.M))
    assert {"demo", "test", "lab"} <= used <= targets


def test_links_of_the_readme_lead_somewhere():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in set(re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", readme)):
        assert (ROOT / path).exists(), f"README.md links to {path}, which is not there"


def test_python_of_the_readme_runs(capsys):
    names = {}
    exec(readme_blocks("python"), names)
    assert names["image"].shape == (1, 3, 64, 64)
    assert "generator/l1" in capsys.readouterr().out


def test_verbs_of_the_readme_exist():
    from semsynth.cli import VERBS

    assert set(re.findall(r"^semsynth (\w+)", readme_blocks("bash"), re.M)) <= set(VERBS)


@pytest.mark.parametrize("page", ["README.md", "nbs/index.ipynb"])
def test_course_map_names_every_lesson(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    missing = [name for name in LESSONS if name.split("/")[-1] not in text]
    assert not missing


@pytest.mark.parametrize("name", BOOKS)
def test_links_between_notebooks_lead_somewhere(name):
    folder = (ROOT / name).parent
    for target in re.findall(r"\]\((?!https?:|#|mailto:|attachment:)([^)#\s]+)", prose(name)):
        assert (folder / target).exists(), f"{name} links to {target}"


def test_nothing_unplanned_at_the_top():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git clone")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    planned = set("nbs semsynth tests benchmarks settings.ini setup.py environment.yml README.md "
                  "LICENSE Makefile train.py constraints.txt .ci .github .gitignore .gitattributes "
                  ".ruff.toml".split())
    assert top <= planned
