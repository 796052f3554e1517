"""The command `hamr` (also `python -m hamr_lib`): meshes from photos."""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import track

from .errors import HamrError

DONE, FAILED, USAGE, PARTLY, INTERRUPTED = 0, 1, 2, 3, 130
PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm",
          ".jp2", ".avif")  # fmt: skip

RECOVER = """\
Recover the hand in each photo: its mesh, its joints and its pose.

For every photo NAME.* four files are written into --out:
  NAME_overlay.png  the mesh and the joints drawn over the photo
  NAME.glb          the mesh for 3-D viewers, upright
  NAME.obj          the mesh in metres, camera frame (x right, y down, z away), wrist at the origin
  NAME.json         joints_2d (21 x 2, pixels of the photo), joints_3d (21 x 3, metres, as the
                    OBJ), camera (s, tx, ty: joints_2d = s * joints_3d[:, :2] + (tx, ty)), betas,
                    global_orient, hand_pose, box, side, hand, checkpoint

Where the hand is, and which one it is, has to be said with --box and --side: finding hands is not
built yet, and neither are videos.
"""

CODES = f"""\
exit codes:
  {DONE}    every photo is done
  {FAILED}    an argument is wrong (a folder without photos, an unknown checkpoint, an unwritable
       --out, ...), or not one of the photos could be done; the reason is printed
  {USAGE}    the command line itself is wrong
  {PARTLY}    some photos are done; each of the others is named with its reason
  {INTERRUPTED}  interrupted from the keyboard
"""


def main(argv=None):
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        return _recover(args)
    except HamrError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser():
    parser = argparse.ArgumentParser(prog="hamr", description="HAMR: hand meshes from photos.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "recover",
        help="meshes from photos",
        description=RECOVER,
        epilog=CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "photos", nargs="+", type=Path, metavar="PHOTO", help="an image, or a folder of images"
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="made if missing")
    command.add_argument(
        "--box",
        type=_box,
        metavar="x0,y0,x1,y1",
        help="around the hand, pixels of the upright photo; the same for all photos "
        "(write --box=-5,... where the first number is negative)",
    )
    command.add_argument("--side", choices=("left", "right", "auto"), default="auto")
    command.add_argument(
        "--checkpoint",
        type=Path,
        metavar="F",
        help="default: your own latest training run, else the one that is shipped",
    )
    command.add_argument("--device", metavar="D", help="default: a GPU if there is one, else cpu")
    return parser


def _box(text):
    try:
        x0, y0, x1, y1 = (float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected four numbers x0,y0,x1,y1, got {text!r}"
        ) from None
    return x0, y0, x1, y1


def _recover(args):
    # Here, so that --help and a mistyped option do not wait for torch.
    from .recovery import ENDINGS, PhotoError, pretrained_checkpoint, recover

    photos = list_photos(args.photos)
    out = args.out.resolve()
    if out in {path.resolve() for path in args.photos}:
        raise HamrError(f"--out {args.out} is a folder of photos: results would be mixed with them")
    written = {out / f"{photo.stem}{ending}" for photo in photos for ending in ENDINGS}
    for photo in written & {photo.resolve() for photo in photos}:
        raise HamrError(f"a result would overwrite {photo}: choose another --out")
    _check_out(args.out)
    checkpoint = args.checkpoint or pretrained_checkpoint()
    done = 0
    console = Console(stderr=True)
    for photo in track(photos, "recovering", console=console, disable=len(photos) == 1):
        try:
            recoveries = recover(photo, args.box, args.side, checkpoint, args.device)
        except PhotoError as error:
            console.print(f"error: {photo}: {error}", markup=False, soft_wrap=True)
            continue
        for i, recovery in enumerate(recoveries, start=1):
            recovery.save(args.out, photo.stem if i == 1 else f"{photo.stem}-{i}")
        done += 1
    print(f"{done} of {len(photos)} photos done, by {checkpoint}: {args.out}")
    return DONE if done == len(photos) else PARTLY if done else FAILED


def list_photos(paths):
    """The photos among files and folders: a file as it is, of a folder those named like images.

    Raises:
        HamrError: for a path that does not exist, a folder without photos, and two photos whose
            results would have the same name.
    """
    photos = []
    for path in paths:
        if not path.exists():
            raise HamrError(f"{path} does not exist")
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in PHOTOS and p.is_file())
            if not found:
                raise HamrError(f"{path} is a folder without photos ({', '.join(PHOTOS)})")
            photos += found
        else:
            photos.append(path)
    stem, count = Counter(photo.stem for photo in photos).most_common(1)[0]
    if count > 1:
        same = ", ".join(str(photo) for photo in photos if photo.stem == stem)
        raise HamrError(f"the results of {same} would overwrite one another: rename them")
    return photos


def _check_out(folder):
    """Find out before the work, not after it, that nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise HamrError(f"cannot write into {folder}: {error.strerror or error}") from error
