"""Headless Chromium and JupyterLab, driven as a person drives them.

Chromium is spoken to by its own DevTools protocol over a websocket; nothing but Debian's (or
anyone's) `chromium` is needed.
"""

import base64
import contextlib
import io
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import papermill
import websocket
from PIL import Image

from hamr_lib.files import ROOT

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome")
     if (found := shutil.which(name))), None,
)  # fmt: skip
LAB_SETTINGS = {
    # Every cell is drawn, in view or not.
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


class Chrome:
    """A tab of a headless Chromium, whose camera, if any, sees a motion JPEG file."""

    def __init__(self, folder, camera=None):
        folder = Path(folder)
        self.downloads = folder / "downloads"
        self.downloads.mkdir(parents=True)
        seen = [
            "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
            f"--use-file-for-fake-video-capture={camera}",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            [CHROMIUM, "--headless=new", "--no-sandbox", "--remote-debugging-port=0",
             *(seen if camera else ()), f"--user-data-dir={folder / 'profile'}", "--no-first-run",
             "--disable-extensions", "--disable-background-networking",
             "--disable-component-update", "--disable-sync",
             "--enable-unsafe-swiftshader", "--use-angle=swiftshader", "--disable-dev-shm-usage",
             "--window-size=1400,1000", "--remote-allow-origins=*", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        port_file = folder / "profile" / "DevToolsActivePort"
        until(lambda: port_file.is_file() and port_file.read_text().count("\n"), 60, "Chromium")
        port = port_file.read_text().split("\n")[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            pages = [page for page in json.load(answer) if page["type"] == "page"]
        self._socket = websocket.create_connection(pages[0]["webSocketDebuggerUrl"], timeout=120)
        self._ids = itertools.count(1)
        self.events = []
        for domain in ("Page", "Network", "Runtime", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))
        self.call("Page.setInterceptFileChooserDialog", enabled=True)
        # No question whether to leave a notebook unsaved: nobody would answer it.
        script = "addEventListener('beforeunload', e => e.stopImmediatePropagation(), true)"
        self.call("Page.addScriptToEvaluateOnNewDocument", source=script)
        # A page that is not in front has no current document, by which JupyterLab goes.
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def close(self):
        """End the browser."""
        self._socket.close()
        self._process.terminate()
        self._process.wait(30)

    def call(self, method, **params):
        """Call a method of the protocol; what happens meanwhile is kept in `events`."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") != number:
                self.events.append(message)
            elif "error" in message:
                raise RuntimeError(f"{method}: {message['error']}")
            else:
                return message["result"]

    def js(self, expression):
        """The value of a JavaScript expression; a promise is awaited."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, expression, seconds=120):
        """Wait until a JavaScript expression is true."""
        return until(lambda: self.js(expression), seconds, expression)

    def open(self, url):
        """Go to a page and wait until it is loaded."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState == 'complete'")

    def offline(self):
        """Take the network away; files can still be opened."""
        rates = {"latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self.call("Network.emulateNetworkConditions", offline=True, **rates)

    def requested(self):
        """The addresses that were asked for, without what a page holds itself."""
        sent = [one for one in self.events if one.get("method") == "Network.requestWillBeSent"]
        urls = [one["params"]["request"]["url"] for one in sent]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def place(self, element):
        """Scroll an element (a JavaScript expression) into view; x, y, width, height there."""
        self.js(f"({element}).scrollIntoView({{block: 'center'}})")
        time.sleep(0.2)
        return self.js(f"(r => [r.x, r.y, r.width, r.height])(({element}).getBoundingClientRect())")

    def click(self, element, along=0.5):
        """Click on an element, at a share of its width, as the mouse does."""
        x, y, width, height = self.place(element)
        at = {"x": x + along * width, "y": y + height / 2, "button": "left", "clickCount": 1}
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **at)

    def picture(self, element=None):
        """What is seen of an element, or of the window: (H, W, 3) uint8."""
        clip = {}
        if element:
            x, y, width, height = self.place(element)
            clip = {"clip": {"x": x, "y": y, "width": width, "height": height, "scale": 1}}
        data = self.call("Page.captureScreenshot", format="png", **clip)["data"]
        return np.array(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))

    def upload(self, button, path):
        """Click a button that asks for a file, and choose one."""
        before = len(self.events)
        self.click(button)

        def opened():
            self.js("1")  # takes in what has happened
            seen = self.events[before:]
            return [one for one in seen if one.get("method") == "Page.fileChooserOpened"]

        node = until(opened, 30, "the file dialogue")[0]["params"]["backendNodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], backendNodeId=node)

    def downloaded(self, name):
        """Wait for a downloaded file of this name; its path."""
        path = self.downloads / name
        until(path.is_file, 30, f"the download of {name}")
        return path


@contextlib.contextmanager
def jupyter_lab(folder):
    """JupyterLab on the loopback address; yields a function of a file's name to its address."""
    folder = Path(folder)
    for name, values in LAB_SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = open(folder / "lab.log", "w")  # noqa: SIM115
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}",
         "--allow-root", "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True",
         "--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={folder}"],
        env=os.environ | {
            "PYTHONPATH": str(ROOT), "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        },
        stdout=log, stderr=log,
    )  # fmt: skip

    def ready():
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status") as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError):
            return False

    try:
        until(ready, 120, "JupyterLab")
        yield lambda name: f"http://127.0.0.1:{port}/lab/tree/{name}?reset"
    finally:
        server.terminate()
        server.wait(60)
        log.close()


def prepare(notebook, folder, **parameters):
    """A copy of one of the project's notebooks in a folder, with parameters, not yet run."""
    papermill.execute_notebook(
        str(ROOT / "notebooks" / f"{notebook}.ipynb"), str(Path(folder) / f"{notebook}.ipynb"),
        parameters=parameters, kernel_name="python3", prepare_only=True, progress_bar=False,
    )  # fmt: skip


def run_all(chrome, url, seconds=300):
    """Open a notebook and run all its cells, as its menu does; errors of its cells are raised."""
    chrome.open(url)
    name = url.split("/")[-1].split("?")[0]
    shell = "window.jupyterapp?.shell"
    notebook = (
        f"Array.from({shell}?.widgets('main') ?? []).find(w => w.context?.path.endsWith('{name}'))"
    )
    kernel = f"{notebook}?.sessionContext?.session?.kernel"
    chrome.wait(f"{kernel}?.status == 'idle'", seconds)
    chrome.js(f"{shell}.activateById({notebook}.id)")
    chrome.wait(f"!!{shell}.currentWidget")
    chrome.js("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    cells = f"Array.from({notebook}.content.widgets)"
    left = f"{cells}.filter(c => c.model.type == 'code' && !c.model.executionCount).length"
    errors = f"{cells}.flatMap(c => c.model.type == 'code' ? c.model.outputs.toJSON() : [])"
    errors += ".filter(o => o.output_type == 'error').map(o => o.ename + ': ' + o.evalue)"

    def done():
        found = chrome.js(errors)
        if found:
            raise RuntimeError(f"{url}: {found}")
        return chrome.js(left) == 0 and chrome.js(f"{kernel}.status == 'idle'")

    until(done, seconds, f"the cells of {url}")


def until(condition, seconds, what):
    """Ask again and again until something is true; its value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.2)
