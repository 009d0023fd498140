"""Fixtures: the stand-in set, the real CIFAR-10 where it is at hand, and what the notebook defines."""

import shutil
from types import SimpleNamespace

import pytest

import cifar10
from tests.notebook import ROOT, run_cells

SHARED = ROOT.parent / "shared"
needs_cifar10 = pytest.mark.skipif(
    not (SHARED / "CIFAR-10").is_dir(), reason="The real CIFAR-10 isn't at ../shared/CIFAR-10."
)
needs_original = pytest.mark.skipif(
    not (SHARED / "original").is_dir(), reason="The original's outputs aren't at ../shared/original."
)


@pytest.fixture(scope="session")
def stand_in_path(tmp_path_factory):
    """Folder of the stand-in set."""
    return cifar10.make_stand_in(tmp_path_factory.mktemp("stand-in"))


@pytest.fixture(scope="session")
def cifar10_path(tmp_path_factory):
    """Folder of the real CIFAR-10, extracted from an archive that was put there by hand."""
    path = tmp_path_factory.mktemp("CIFAR-10")
    shutil.copy(SHARED / "CIFAR-10" / "cifar-10-python.tar.gz", path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar10, "data_path", path)
        cifar10.maybe_download_and_extract()
    return path


@pytest.fixture(scope="session")
def notebook(stand_in_path, tmp_path_factory):
    """What the notebook defines, with a new network, up to its training. Don't train this one."""
    return SimpleNamespace(**run_cells(stand_in_path, tmp_path_factory.mktemp("checkpoints")))


@pytest.fixture
def new_notebook(stand_in_path, tmp_path):
    """A function that runs the notebook up to its training, with a network of its own."""

    def run(save_dir=tmp_path / "checkpoints", data_path=stand_in_path, replace=None):
        return SimpleNamespace(**run_cells(data_path, save_dir, replace))

    return run
