"`semsynth paint`: what it writes, what it refuses, and a server that answers to its token alone."
import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

from semsynth.configs import build_model, find_config, save_weights
from semsynth.labels import CITYSCAPES, FACADES, InputError
from semsynth.paint import add_paint_options, board_notebook, named_sources, paint, server_command

SMALL = ["model.channels=4", "model.num_downs=5"]


def weights(path: Path, space=FACADES) -> Path:
    config = find_config("synthetic", "pix2pix", SMALL)
    return save_weights(path, build_model(config, space.num_classes), config, space)


def arguments(*words: str) -> argparse.Namespace:
    return add_paint_options(argparse.ArgumentParser()).parse_args(words)


def test_the_notebook_builds_a_board(tmp_path: Path):
    sources = named_sources([str(weights(tmp_path / "mine.safetensors"))])
    cells = json.loads(board_notebook(sources, 64))["cells"]
    names = {}
    exec("".join(cells[0]["source"]), names)
    board = eval("".join(cells[1]["source"]), names)
    assert list(board.cards) == ["mine"] and board.cards["mine"].image.shape == (1, 3, 64, 64)
    assert torch.equal(board.easel.label_map.unique()[:2], torch.tensor([0, 1]))
    board.close()


def test_classes_must_be_the_same(tmp_path: Path):
    first = weights(tmp_path / "first.safetensors")
    second = weights(tmp_path / "second.safetensors", CITYSCAPES)
    with pytest.raises(InputError, match="second.safetensors was trained on other classes"):
        named_sources([str(first), str(second)])


@pytest.mark.parametrize(("words", "sentence"), [
    (["--size", "32"], "--size 32 cannot be had: 64 to 512 can"),
    (["nowhere"], "there is no nowhere"),
])
def test_mistakes_are_sentences(words: list[str], sentence: str):
    with pytest.raises(InputError, match=re.escape(sentence)):
        paint(arguments(*words))


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("semsynth.paint.find_spec", lambda name: None)
    with pytest.raises(InputError, match="voila is not installed here: pip install voila"):
        server_command(tmp_path / "a.ipynb", 1, voila=True)


@pytest.mark.parametrize("voila", [False, True])
def test_only_this_machine_is_served(
    voila: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("semsynth.paint.find_spec", lambda name: name)
    command = " ".join(server_command(tmp_path / "a.ipynb", 8123, voila=voila, browser=False))
    assert "ip=127.0.0.1" in command and "--no-browser" in command
    assert "token=" not in command.replace("auto_token=True", "")  # everybody reads commands


def status(address: str) -> int:
    try:
        return urllib.request.urlopen(address, timeout=5).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:  # not listening yet
        return 0


def test_the_server_wants_its_token_and_ends_with_control_c(tmp_path: Path):
    call = ("import argparse, sys\nfrom semsynth.paint import add_paint_options, paint\n"
            "sys.exit(paint(add_paint_options(argparse.ArgumentParser()).parse_args()))")
    source = weights(tmp_path / "mine.safetensors")
    command = [sys.executable, "-c", call, str(source), "--no-browser"]
    environment = os.environ | {"JUPYTER_CONFIG_DIR": str(tmp_path), "TMPDIR": str(tmp_path)}
    if os.name == "posix" and os.geteuid() == 0:  # which a container's user is
        (tmp_path / "jupyter_server_config.py").write_text("c.ServerApp.allow_root = True\n")
    # Whoever starts the tests with nohup and & has Ctrl-C ignored, and children would inherit it.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          env=environment, start_new_session=True,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                          ) as process:
        try:
            address, token = re.search(r"(http\S+)/lab\S+token=(\S+)", process.stdout.readline()
                                       ).groups()
            deadline = time.monotonic() + 120
            while not status(f"{address}/api/status?token={token}"):
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.2)
            assert status(f"{address}/api/status?token={token}") == 200
            assert status(f"{address}/api/status") == 403
            assert len(token) >= 32
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(90) == 0
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert not list(tmp_path.glob("semsynth-paint-*"))
