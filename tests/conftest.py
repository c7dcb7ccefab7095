"Where tests find real data, and what every test may ask for."
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def shared(variable: str, name: str) -> Path:
    "A folder that never lies in the repository: named by the environment, or beside the clone."
    return Path(os.environ.get(variable, ROOT.parent / "shared" / name))


TEST_DATA = shared("SEMSYNTH_TEST_DATA", "data")
PARITY = shared("SEMSYNTH_PARITY", "parity")


def folder_or_skip(folder: Path, variable: str) -> Path:
    if not folder.is_dir():
        pytest.skip(f"{folder.name} is not here: set {variable} to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    "The repository."
    return ROOT


@pytest.fixture(scope="session")
def test_data() -> Path:
    "Real samples of every dataset, in folders `facades`, `camvid` and `cityscapes_samples`."
    return folder_or_skip(TEST_DATA, "SEMSYNTH_TEST_DATA")


@pytest.fixture(scope="session")
def facades_folder(test_data: Path) -> Path:
    "CMP Facade in the layout of pix2pix."
    return folder_or_skip(test_data / "facades", "SEMSYNTH_TEST_DATA")


@pytest.fixture(scope="session")
def camvid_folder(test_data: Path) -> Path:
    "A few frames of CamVid."
    return folder_or_skip(test_data / "camvid", "SEMSYNTH_TEST_DATA")


@pytest.fixture(scope="session")
def cityscapes_folder(test_data: Path) -> Path:
    "A few frames of Cityscapes in the official layout."
    return folder_or_skip(test_data / "cityscapes_samples", "SEMSYNTH_TEST_DATA")


@pytest.fixture(scope="session")
def parity_folder() -> Path:
    "Weights, inputs and outputs of official networks."
    return folder_or_skip(PARITY, "SEMSYNTH_PARITY")


@pytest.fixture
def rng() -> torch.Generator:
    "The source of all randomness of one test."
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    "No test reads or writes the cache of the person who runs it."
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEMSYNTH_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def same_seed() -> None:
    "Layers are initialised from torch's global source: every test starts it at the same place."
    torch.manual_seed(0)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    "Tests in the browser share one server, so one process runs them; the others go where room is."
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "browser" if "test_browser.py" in nodeid else nodeid

    return Scheduling(config, log)
