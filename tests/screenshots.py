"""Take screenshots of both interactive notebooks and of the gallery.

`python tests/screenshots.py PROFILE PHOTO` (in the project's environment, with chromium installed)
takes them of a finished study and writes them to results/reference/screenshots/.
"""

import sys
import tempfile
from pathlib import Path

import cv2
from browser import Chrome, jupyter_lab, prepare, run_all, until

from hamr_lib.data.frame import write_image
from hamr_lib.files import ROOT
from hamr_lib.study import results_dir

TARGET = ROOT / "results" / "reference" / "screenshots"


WIDGET = "document.querySelector('.jp-OutputArea-output .jupyter-widgets')"


def save(name, picture):
    """Write a screenshot at three quarters of its size, as a small PNG."""
    small = cv2.resize(picture, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
    write_image(TARGET / f"{name}.png", small)


def take(profile, photo):
    """Take all of a profile's finished study; `photo` is the path of what is uploaded."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        chrome = Chrome(folder / "chrome", size=(1300, 1200))
        with jupyter_lab(folder) as address:

            def show(element, name):
                chrome.place(f"document.querySelectorAll('.jp-OutputArea {element}")
                chrome.js("new Promise(done => setTimeout(done, 2000))")
                save(name, chrome.picture())

            def run(notebook, **parameters):
                prepare(notebook, folder, **parameters)
                run_all(chrome, address(f"{notebook}.ipynb"))
                chrome.js("void window.jupyterapp.commands.execute('application:toggle-left-area')")

            run("explore_mesh", hand="open", profile=profile)
            until(lambda: (chrome.picture(WIDGET) < 250).any(), 30, "the mesh")
            show("canvas')[0]", "explore_mesh")
            show("img.widget-image')[1]", "explore_mesh_predictions")
            run("recover_photo", out="out")
            button = "document.querySelector('.jp-OutputArea button.widget-upload')"
            chrome.upload(button, Path(photo).resolve())  # the browser has another folder
            chrome.wait("document.body.textContent.includes('saved in')")
            show("canvas')[0]", "recover_photo")
        chrome.open(f"file://{results_dir(profile) / 'gallery.html'}")
        save("gallery", chrome.picture())
        chrome.close()


if __name__ == "__main__":
    take(*sys.argv[1:])
