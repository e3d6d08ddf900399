# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The package as a whole: what importing it does, what its files and its documents say."""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from .tracked_files import ROOT, tracked_files

COPYRIGHT = "# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0."
# Put together from pieces, so that this file does not contain what it looks for.
FORBIDDEN = re.compile(
    r"(?<![\w.~-])/(?:{})/".format("|".join(("work", "tmp", "root", "home", "Users", "farm", "opt", "var")))
    + "|"
    + "|".join(
        host.replace(" ", r"\.") for host in ("pypi org", "pythonhosted org", "npmjs org", "npmjs com", "debian org")
    )
)

IMPORT_WITHOUT_TORCHVISION = """
import sys

sys.modules["torchvision"] = None  # importing it fails, as where it is not installed
import hf_segcap
from transformers import AutoProcessor, pipeline

pipe = pipeline("region-captioning")
print(type(pipe.processor).__name__, type(pipe.image_processor).__name__)
"""

REGISTERED = """
import importlib

import hf_segcap
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText
from transformers.pipelines import PIPELINE_REGISTRY

config = AutoConfig.for_model("sca")
assert type(config) is hf_segcap.SamCaptionConfig
_, task, _ = PIPELINE_REGISTRY.check_task("region-captioning")
assert task["impl"].__module__.startswith("hf_segcap."), task
assert task["pt"] == (AutoModelForImageTextToText,), task
assert AutoModelForImageTextToText._model_mapping[type(config)] is hf_segcap.SamCaptionForRegionCaptioning
for config_class, model_class in (
    (hf_segcap.SamCaptionConfig, hf_segcap.SamCaptionForRegionCaptioning),
    (hf_segcap.SamPromptableConfig, hf_segcap.SamForPromptableSegmentation),
    (hf_segcap.ZimLabelConverterConfig, hf_segcap.ZimLabelConverter),
):
    assert AutoModel._model_mapping[config_class] is model_class
importlib.reload(hf_segcap)
print("registered")
"""

IMPORTED_BY_TRANSFORMERS = "from transformers import pipeline, SamModel, GPT2LMHeadModel"
LIST_MODULES = "import sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"


def run_python(code: str) -> str:
    """What a new Python process prints that runs `code`."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT.parent
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def documents() -> list[Path]:
    return [path for path in tracked_files() if path.suffix == ".md" and "fixtures" not in path.parts]


def code_blocks(path: Path, *languages: str) -> list[str]:
    """The fenced code of a Markdown file that is marked with one of `languages`."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return [code for language, code in re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S) if language in languages]


def shell_commands() -> list[tuple[Path, list[str]]]:
    """(document, words) of every command line in the shell blocks of the documents."""
    commands = []
    for path in documents():
        for block in code_blocks(path, "bash", "sh", "shell"):
            for line in block.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    commands.append((path, words))
    return commands


def test_import_works_without_torchvision() -> None:
    assert run_python(IMPORT_WITHOUT_TORCHVISION).split() == ["SamCaptionProcessor", "SamImageProcessorPil"]


def test_import_registers_everything_once() -> None:
    assert run_python(REGISTERED).strip() == "registered"


def test_import_loads_no_optional_or_heavy_library() -> None:
    before = set(run_python(f"{IMPORTED_BY_TRANSFORMERS}; {LIST_MODULES}").split())
    after = set(run_python(f"import hf_segcap; {IMPORTED_BY_TRANSFORMERS}; {LIST_MODULES}").split())
    # What `pipeline` needs anyway is free; what only training, evaluation and drawing need must wait for them.
    heavy = {"datasets", "peft", "matplotlib", "skimage", "scipy", "pandas", "pyarrow", "evaluate", "typer", "sklearn"}
    assert (after - before) & heavy == set()


def test_public_names_resolve() -> None:
    import hf_segcap

    assert {"SamCaptionConfig", "SamCaptionForRegionCaptioning", "SamCaptionProcessor"} <= set(hf_segcap.__all__)
    assert [name for name in hf_segcap.__all__ if not hasattr(hf_segcap, name)] == []
    assert set(hf_segcap.__all__) <= set(dir(hf_segcap))


def test_version_is_the_same_everywhere() -> None:
    import hf_segcap

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert hf_segcap.__version__ == project["version"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_constraints_fit_the_declared_ranges() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(Requirement(line).name): Requirement(line).specifier for line in lines}
    declared = project["dependencies"] + sum(project["optional-dependencies"].values(), [])
    for requirement in map(Requirement, declared):
        name = canonicalize_name(requirement.name)
        if name in pins:
            (pin,) = pins[name]
            assert requirement.specifier.contains(pin.version), f"{requirement} excludes the pinned {pin.version}"
    assert {canonicalize_name(Requirement(line).name) for line in project["dependencies"]} <= set(pins)


def test_every_source_file_starts_with_the_copyright_line() -> None:
    sources = [path for path in tracked_files() if path.suffix == ".py"]
    assert len(sources) > 20
    wrong = [str(path) for path in sources if not (ROOT / path).read_text(encoding="utf-8").startswith(COPYRIGHT)]
    assert wrong == []


def test_no_file_names_a_machine_or_a_package_host() -> None:
    found = []
    for path in tracked_files():
        text = (ROOT / path).read_bytes().decode("latin-1")
        found += [f"{path}: {match.group()}" for match in FORBIDDEN.finditer(text)]
    assert found == []


def test_help_of_every_command() -> None:
    from hf_segcap.cli import app

    runner = CliRunner()
    top = runner.invoke(app, ["--help"])
    assert top.exit_code == 0
    for command in ("caption", "train"):
        assert command in top.output
        assert runner.invoke(app, [command, "--help"]).exit_code == 0
    script = Path(sys.executable).with_name("hf-segcap")
    assert "caption" in subprocess.run([script, "--help"], check=True, capture_output=True, text=True).stdout


def test_documented_make_targets_and_scripts_exist() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M))
    files = {str(path) for path in tracked_files()}
    commands = shell_commands()
    assert ["make", "demo"] in [words for _, words in commands]
    for document, words in commands:
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, f"{document}: {shlex.join(words)}"
        if words[0].startswith("python") and words[1].endswith(".py"):
            assert words[1] in files, f"{document}: {shlex.join(words)}"


def test_documented_commands_of_the_cli_exist() -> None:
    import typer

    from hf_segcap.cli import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    documented = [(document, words) for document, words in shell_commands() if words[0] == "hf-segcap"]
    assert {words[1] for _, words in documented} >= {"caption", "train"}
    for document, words in documented:
        assert words[1] in commands, f"{document}: {shlex.join(words)}"
        known = {option for parameter in commands[words[1]].params for option in parameter.opts}
        used = {word.split("=")[0] for word in words[2:] if re.match(r"--?[a-z]", word)}
        assert used <= known, f"{document}: {shlex.join(words)}"


def test_documented_python_compiles_and_imports_real_names() -> None:
    import importlib

    snippets = [(path, code) for path in documents() for code in code_blocks(path, "python")]
    assert snippets
    for path, code in snippets:
        for node in ast.walk(ast.parse(code, filename=str(path))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_segcap"):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{path}: {node.module} has no {alias.name}"


def test_links_of_the_documents_lead_somewhere() -> None:
    for path in documents():
        text = (ROOT / path).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)\s#]+)", text):
            assert ((ROOT / path).parent / target).exists(), f"{path} links to {target}, which is not there"


@pytest.mark.parametrize("script", [".ci/run"])
def test_ci_script_is_executable(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
