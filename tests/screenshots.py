"""Screenshots of both interactive notebooks and of the gallery, for the README.

`python tests/screenshots.py PROFILE PHOTO` (in the project's environment, with chromium installed)
takes them of a finished study, into results/reference/screenshots/.
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


def output(number):
    """The output area of the widget that comes at this place in a notebook."""
    return f"document.querySelectorAll('.jp-OutputArea-output .jupyter-widgets')[{number}]"


def save(name, picture):
    """Write a screenshot at three quarters of its size, as a small PNG."""
    small = cv2.resize(picture, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
    write_image(TARGET / f"{name}.png", small)


def take(profile, photo):
    """Take all of a profile's study.

    Args:
        profile: of a finished study.
        photo: path of what is uploaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        chrome = Chrome(folder / "chrome", size=(1300, 1200))
        with jupyter_lab(folder) as address:
            prepare("explore_mesh", folder, hand="open", profile=profile)
            run_all(chrome, address("explore_mesh.ipynb"))
            chrome.js("void window.jupyterapp.commands.execute('application:toggle-left-area')")
            until(lambda: (chrome.picture(output(0)) < 250).any(), 30, "the mesh")
            chrome.place("document.querySelectorAll('.jp-OutputArea canvas')[0]")
            chrome.js("new Promise(done => setTimeout(done, 2000))")
            save("explore_mesh", chrome.picture())
            chrome.place("document.querySelectorAll('.jp-OutputArea img.widget-image')[1]")
            chrome.js("new Promise(done => setTimeout(done, 2000))")
            save("explore_mesh_predictions", chrome.picture())

            prepare("recover_photo", folder, out="out")
            run_all(chrome, address("recover_photo.ipynb"))
            chrome.js("void window.jupyterapp.commands.execute('application:toggle-left-area')")
            button = "document.querySelector('.jp-OutputArea button.widget-upload')"
            chrome.upload(button, Path(photo).resolve())  # the browser has another folder
            chrome.wait("document.body.textContent.includes('saved in')")
            chrome.place("document.querySelectorAll('.jp-OutputArea canvas')[0]")
            chrome.js("new Promise(done => setTimeout(done, 2000))")
            save("recover_photo", chrome.picture())
        chrome.open(f"file://{results_dir(profile) / 'gallery.html'}")
        save("gallery", chrome.picture())
        chrome.close()


if __name__ == "__main__":
    take(*sys.argv[1:])
