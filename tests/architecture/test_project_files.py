"""README, CI, the pins and the change log tell the same story."""

from __future__ import annotations

import re

import gptrio
from tests.architecture.source import ROOT

NOT_IN_CI = {"hatchling", "flash-attn", "lm-eval"}  # fetched by the build alone; needs a GPU; brings 50 packages


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def readme_commands() -> list[str]:
    """Lines of README that install something: its two commands."""
    return re.findall(r"^(pip install .*)$", read("README.md"), re.MULTILINE)


def pins() -> dict[str, str]:
    rows = [line for line in read("constraints.txt").splitlines() if line and not line.startswith("#")]
    return dict(row.split(";")[0].strip().split("==") for row in rows)


def declared_dependencies() -> set[str]:
    """Distributions that pyproject.toml asks for, base and extras."""
    text = read("pyproject.toml").split("[project.scripts]")[0]
    lists = re.findall(r"^[\w-]+ = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    names = re.findall(r'"([A-Za-z0-9_-]+)(?=[<>=])', "\n".join(lists))
    return {name.lower().replace("_", "-") for name in names} - NOT_IN_CI


def test_ci_runs_the_commands_of_the_readme_word_for_word():
    assert len(readme_commands()) == 2
    assert [command for command in readme_commands() if command not in read(".ci/run")] == []


def test_readme_commands_install_the_tested_versions():
    assert all("-c constraints.txt" in command for command in readme_commands())


def test_every_dependency_is_pinned_to_a_public_version():
    pinned = {name.lower().replace("_", "-") for name in pins()}
    assert {"torch", "transformers", "pytest"} <= declared_dependencies()
    assert declared_dependencies() - pinned == set()
    assert [version for version in pins().values() if "+" in version] == []


def test_changelog_opens_with_this_version():
    assert re.search(r"^## (\S+)", read("CHANGELOG.md"), re.MULTILINE)[1] == gptrio.__version__
