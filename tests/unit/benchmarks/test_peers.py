"""Another commit of this package as an engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def peers(tmp_path, monkeypatch):
    import _peers

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "gptrio" / "benchmarks").mkdir(parents=True)
    _peers.sources.cache_clear()
    return _peers


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone: git knows no commits")
def test_a_commit_is_imported_from_its_own_sources(peers):
    variables = peers.recipe("gptrio@HEAD").variables
    code = "import gptrio; print(gptrio.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=variables)
    assert Path(done.stdout.strip()) == Path(variables["PYTHONPATH"], "gptrio", "__init__.py")
    assert Path(variables["PYTHONPATH"]) != ROOT / "src"


def test_gptrio_alone_is_this_tree(peers):
    assert peers.recipe("gptrio").variables["PYTHONPATH"] == str(ROOT / "src")


@pytest.mark.parametrize("peer", ["gptrio@0000000", "gptjr"])
def test_an_unknown_peer_or_commit_is_missing(peers, peer):
    with pytest.raises(peers.Missing, match=peer.rpartition("@")[2]):
        peers.variants(peer, "gpt2", "float32")
