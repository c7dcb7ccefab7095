"A real JupyterLab on this machine, and a chromium that looks at it."
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from jupyter_client import BlockingKernelClient

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FOUND = [path for path in map(shutil.which, NAMES) if path]
CHROMIUM = os.environ.get("SEMSYNTH_CHROMIUM") or next(iter(FOUND), None)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]
TOKEN = "of-no-use-elsewhere"
SETTINGS = {
    # Every cell is on the page, also those that are not in sight.
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


class Lab(NamedTuple):
    "A server that runs."

    url: str
    folder: Path     # Its notebooks
    runtime: Path    # Where its kernels say how to reach them

    def write(self, name: str, cells: list[str]) -> str:
        "A notebook with these cells; returns the address that opens it."
        book = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "python3"}},
        )
        nbformat.write(book, self.folder / name)
        return f"{self.url}lab/tree/{name}?reset&token={TOKEN}"

    def kernel(self) -> "Kernel":
        "The kernel that started last."
        files = sorted(self.runtime.glob("kernel-*.json"), key=lambda path: path.stat().st_mtime)
        return Kernel(files[-1])


class Kernel:
    "A second pair of eyes on the kernel behind a page: what does Python itself say?"

    def __init__(self, file: Path):
        self.client = BlockingKernelClient(connection_file=str(file))
        self.client.load_connection_file()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def value(self, expression: str) -> Any:
        "What an expression gives, through JSON."
        code = {"value": f"__import__('json').dumps({expression})"}
        reply = self.client.execute("", user_expressions=code, reply=True, timeout=60)
        answer = reply["content"]["user_expressions"]["value"]
        assert answer["status"] == "ok", answer
        text = answer["data"]["text/plain"]
        return json.loads(eval(text))  # the repr of a JSON string

    def close(self) -> None:
        self.client.stop_channels()


@contextmanager
def running_lab(place: Path) -> Iterator[Lab]:
    "Starts a JupyterLab that knows nothing of the person's own, and ends it."
    folder, runtime, config = place / "notebooks", place / "runtime", place / "config"
    for path in (folder, runtime, config):
        path.mkdir()
    for name, values in SETTINGS.items():
        path = config / "lab" / "user-settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    environment = {
        name: value for name, value in os.environ.items()
        if name not in ("IN_TEST", "SEMSYNTH_STILL") and not name.startswith("JUPYTER")
    } | {
        "JUPYTER_CONFIG_DIR": str(config), "JUPYTER_RUNTIME_DIR": str(runtime),
        "JUPYTER_DATA_DIR": str(place / "data"), "IPYTHONDIR": str(place / "ipython"),
        "JUPYTERLAB_SETTINGS_DIR": str(config / "lab" / "user-settings"), "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        "--port=0", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}",
        "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly",
    ]
    with (place / "server.log").open("w") as log, subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
    ) as server:
        try:
            yield Lab(wait_for_server(runtime, server, place / "server.log"), folder, runtime)
        finally:
            server.terminate()


def wait_for_server(runtime: Path, server: subprocess.Popen, log: Path) -> str:
    "The address, as soon as there is one."
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        for path in runtime.glob("jpserver-*.json"):
            text = path.read_text()
            if text.rstrip().endswith("}"):
                return json.loads(text)["url"]
        time.sleep(0.1)
    raise TimeoutError(log.read_text())
