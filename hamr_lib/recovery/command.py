"""The command `hamr` (also `python -m hamr_lib`): meshes from photos."""

import argparse
import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from hamr_lib.errors import HamrError

DONE, FAILED, USAGE, PARTLY, NO_HAND, INTERRUPTED = 0, 1, 2, 3, 4, 130
PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm",
          ".jp2", ".avif")  # fmt: skip
VIDEOS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")

RECOVER = """\
Recover the hands in each photo: their meshes, joints and poses.

For every photo NAME.* five files are written into --out:
  NAME_overlay.png  the mesh and the joints drawn over the photo
  NAME.glb          the mesh for 3-D viewers, upright
  NAME.obj          the mesh in metres, camera frame (x right, y down, z away), wrist at the origin
  NAME.json         joints_2d (21 x 2, pixels of the photo), joints_3d (21 x 3, metres, as the
                    OBJ), camera (s, tx, ty: joints_2d = s * joints_3d[:, :2] + (tx, ty)), betas,
                    global_orient, hand_pose, box, side, hand, checkpoint
  NAME.html         the mesh, to be turned with the mouse in any browser, without a network
A second hand's files are called NAME_hand2.*, and so on. Of a video each frame is a photo called
NAME-000000 and so on; frames have no HTML.

The hands and their sides are found by MediaPipe unless --box and --side say them. With --side and
no --box only the hands of that side are recovered; if all found are of the other side, the most
certain one, as a hand of the side that was said.
"""

CODES = f"""\
exit codes:
  {DONE}    every photo and video is done
  {FAILED}    an argument is wrong (a folder without photos, an unknown checkpoint, an unwritable
       --out, ...), or not one of the photos could be done; the reason is printed
  {USAGE}    the command line itself is wrong
  {PARTLY}    some photos are done; each of the others is named with its reason
  {NO_HAND}    no photo is done, since no hand was found in any of them
  {INTERRUPTED}  interrupted from the keyboard

A video is done if a hand was found in at least one of its frames.
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
        "photos",
        nargs="+",
        type=Path,
        metavar="PHOTO",
        help="an image, a video, or a folder of them",
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="made if missing")
    command.add_argument(
        "--box",
        type=_box,
        metavar="x0,y0,x1,y1",
        help="around the hand, pixels of the upright photo; the same for all photos "
        "(write --box=-5,... where the first number is negative); default: hands are found",
    )
    command.add_argument(
        "--side", choices=("left", "right", "auto"), default="auto", help="default: auto"
    )
    command.add_argument(
        "--checkpoint",
        type=Path,
        metavar="F",
        help="default: your own latest training run, else the one that is shipped",
    )
    command.add_argument(
        "--evidence", choices=("network", "landmarks", "both"), default="both",
        help="what the mesh is laid onto: the network's heat maps, MediaPipe's landmarks or both "
        "(default)",
    )  # fmt: skip
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
    from hamr_lib.model.checkpoint import pretrained
    from hamr_lib.recovery.photo import PhotoError
    from hamr_lib.recovery.pipeline import NoHandError

    photos = list_photos(args.photos)
    out = args.out.resolve()
    if out in {path.resolve() for path in args.photos}:
        raise HamrError(f"--out {args.out} is a folder of photos: results would be mixed with them")
    endings = ("_overlay.png", ".glb", ".obj", ".json", ".html")
    written = {out / f"{photo.stem}{ending}" for photo in photos for ending in endings}
    for photo in written & {photo.resolve() for photo in photos}:
        raise HamrError(f"a result would overwrite {photo}: choose another --out")
    _check_out(args.out)
    args.checkpoint = args.checkpoint or pretrained()
    done, failures = 0, []
    console = Console(stderr=True)
    progress = Progress(
        *Progress.get_default_columns(), MofNCompleteColumn(), console=console,
        disable=len(photos) == 1 and not _is_video(photos[0]),
    )  # fmt: skip
    with progress:
        task = progress.add_task("recovering", total=sum(map(_count, photos)))
        for photo in photos:
            try:
                recover_file = _recover_video if _is_video(photo) else _recover_photo
                recover_file(photo, args, lambda: progress.advance(task))
            except PhotoError as error:
                console.print(f"error: {photo}: {error}", markup=False, soft_wrap=True)
                failures.append(error)
                continue
            done += 1
    print(f"{done} of {len(photos)} photos done, by {args.checkpoint}: {args.out}")
    if done:
        return PARTLY if failures else DONE
    return NO_HAND if all(isinstance(error, NoHandError) for error in failures) else FAILED


def _recover_photo(path, args, advance):
    """Recover the hands of one photo and save them."""
    try:
        _recover_image(path, path.stem, args)
    finally:
        advance()


def _recover_video(path, args, advance):
    """Recover the hands of each frame and save them, one frame in memory at a time."""
    from hamr_lib.recovery.pipeline import NoHandError

    count = hits = 0
    for count, frame in enumerate(frames(path), start=1):
        try:
            _recover_image(frame, f"{path.stem}-{count - 1:06d}", args, html=False)
            hits += 1
        except NoHandError:
            pass  # between gestures a hand leaves the picture
        advance()
    print(f"{path}: hands in {hits} of {count} frames")
    if not hits:
        raise NoHandError(f"no hand was found in any of its {count} frames")


def _recover_image(image, stem, args, html=True):
    from hamr_lib.recovery.pipeline import recover
    from hamr_lib.recovery.result import save_photo

    recoveries = recover(
        image, args.box, args.side, args.checkpoint, args.device, args.evidence
    )  # fmt: skip
    save_photo(recoveries, args.out, stem, html=html)


def frames(path):
    """The frames of a video, one after another: (H, W, 3) uint8 RGB, upright.

    Raises:
        PhotoError: for a file that OpenCV cannot read a frame of.
    """
    import cv2

    from hamr_lib.recovery.photo import PhotoError

    video = cv2.VideoCapture(str(path))
    try:
        read, frame = video.read()
        if not read:
            raise PhotoError(f"{path} is not a video that OpenCV reads")
        while read:
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            read, frame = video.read()
    finally:
        video.release()


def _is_video(path):
    return path.suffix.lower() in VIDEOS


def _count(path):
    """How many images a file holds; of a video what it says, which may be wrong."""
    if not _is_video(path):
        return 1
    import cv2

    video = cv2.VideoCapture(str(path))
    count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    video.release()
    return max(1, count)


def list_photos(paths):
    """The photos and videos among files and folders: a file as it is, of a folder those named
    like images or videos.

    Raises:
        HamrError: for a path that does not exist, a folder without photos, and two photos whose
            results could have the same name.
    """
    photos = []
    for path in paths:
        if not path.exists():
            raise HamrError(f"{path} does not exist")
        if path.is_dir():
            named = PHOTOS + VIDEOS
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in named and p.is_file())
            if not found:
                raise HamrError(f"{path} is a folder without photos ({', '.join(named)})")
            photos += found
        else:
            photos.append(path)
    # What results are called without the number of a further hand, and of a video's frame.
    stems = {}
    for photo in photos:
        stems.setdefault(photo.stem, []).append(photo)
    for stem, same in list(stems.items()):
        shorter = re.sub(r"_hand\d+$", "", stem)
        of_video = re.sub(r"-\d{6,}$", "", shorter)
        if shorter != stem:
            same += stems.get(shorter, [])
        if of_video != shorter:
            same += [path for path in stems.get(of_video, []) if _is_video(path)]
        if len(same) > 1:
            named = ", ".join(map(str, same))
            raise HamrError(f"the results of {named} would overwrite one another: rename them")
    return photos


def _check_out(folder):
    """Find out before the work, not after it, that nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise HamrError(f"cannot write into {folder}: {error.strerror or error}") from error
