"""The command `hamr` (also `python -m hamr_lib`): meshes from photos and videos."""

import argparse
import gc
import os
import signal
import sys
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from hamr_lib.errors import HamrError
from hamr_lib.imports import in_place_of
from hamr_lib.joints import NAMES
from hamr_lib.recovery.output import check_folder, reason, shown
from hamr_lib.recovery.photo import SUFFIXES as PHOTOS

DONE, FAILED, USAGE, PARTLY, NO_HAND, INTERRUPTED = 0, 1, 2, 3, 4, 130
VIDEOS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")

RECOVER = f"""\
Recover the hands in photos and videos: their meshes, joints and poses.

For every photo NAME.* these files are written into --out, all of them or none:
  NAME_overlay.png  meshes and joints of all hands drawn over the photo
  NAME.glb          the first hand's mesh for 3-D viewers, upright
  NAME.obj          its mesh in metres, camera frame (x right, y down, z away), wrist at the origin
  NAME.json         joints_2d (21 x 2, pixels of the photo), joints_3d (21 x 3, metres, as the
                    OBJ), confidence (21, 0 to 1), camera (s, tx, ty: joints_2d =
                    s * joints_3d[:, :2] + (tx, ty)), pose, shape, box, side, score and more
  NAME.html         its mesh in any browser, without a network
A second hand's files are called NAME_hand2.*, and so on. For every video NAME.*:
  NAME_overlay.mp4  meshes and joints drawn over each frame
  NAME_hand1.npz    a row for each frame that shows the hand: frame, time in seconds, and the
                    numbers of a photo's JSON

MediaPipe finds the hands and their sides unless --box and --side say them. With --side alone the
hands of that side are recovered; if all are of the other side, the most certain one as of that
side. The mesh is fitted to the --evidence: the network's heat maps, MediaPipe's landmarks, or both.

Joints, in the order of all files:
  {", ".join(NAMES[:5])},
  {", ".join(NAMES[5:13])},
  {", ".join(NAMES[13:])}
Formats: {" ".join(PHOTOS)}
  {" ".join(VIDEOS)}
"""

CODES = f"""\
exit codes:
  {DONE}    every photo is done, and every video with a hand in at least one frame
  {FAILED}    an argument is wrong, or no photo could be done; the reason is printed
  {USAGE}    the command line itself is wrong
  {PARTLY}    some photos are done; each of the others is named with its reason
  {NO_HAND}    no photo is done, since no hand was found in any of them
  {INTERRUPTED}  interrupted from the keyboard, or by the end of the session
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):  # names may hold what a terminal cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    for name in ("SIGHUP", "SIGTERM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
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
        "recover", help="meshes from photos and videos", description=RECOVER, epilog=CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = command.add_argument
    add("photos", nargs="+", type=Path, metavar="PHOTO", help="an image, a video, or a folder")
    add("--out", type=Path, required=True, metavar="DIR", help="made if missing")
    box = "around the hand in every photo, upright, in pixels (--box=-5,... if negative)"
    add("--box", type=_box, metavar="x0,y0,x1,y1", help=box)
    add("--side", choices=("left", "right", "auto"), default="auto", help="default: auto")
    kinds = ("network", "landmarks", "both")
    add("--evidence", choices=kinds, default="both", help="default: both")
    overlay = "default: all hands in one; each adds one of each hand, NAME_hand1_overlay.png, ..."
    add("--overlay", choices=("none", "each", "all"), default="all", help=overlay)
    add("--frames", action="store_true", help="also write each frame's files, NAME-000000.*, ...")
    add("--no-smoothing", action="store_true", help="leave the motion in videos as it is found")
    own = "default: your own latest training run, else the one that is shipped"
    add("--checkpoint", type=Path, metavar="F", help=own)
    add("--device", metavar="D", help="default: a GPU if there is one, else cpu")
    return parser


def _box(text):
    try:
        x0, y0, x1, y1 = map(float, text.split(","))
    except ValueError as error:
        message = f"expected four numbers x0,y0,x1,y1, got {text[:100]!r}"
        raise argparse.ArgumentTypeError(message) from error
    return x0, y0, x1, y1


def _recover(args):
    photos, skipped = list_photos(args.photos)
    check_folder(args.out)
    args.keep = {os.path.realpath(path) for path in (*args.photos, *photos)}
    if os.path.realpath(args.out) in args.keep:
        raise HamrError(f"--out {shown(args.out)} is a folder of photos: expected another one")
    for path in skipped:
        print(f"skipped, neither image nor video: {shown(path)}", file=sys.stderr)

    # Here, so that --help and a mistyped option do not wait for torch. Its modules are no garbage:
    # to look through them again and again would take a second.
    gc.disable()
    with in_place_of("torch._dynamo", disable=lambda function: function):
        import roma  # noqa: F401  it asks for torch's compiler, which it does not need
    from hamr_lib.recovery.pipeline import NoHandError, checked_box, load_network

    gc.freeze()
    gc.enable()
    args.box = checked_box(args.box)
    network = load_network(args.checkpoint, args.device).path
    console, quiet = Console(stderr=True), len(photos) == 1 and not is_video(photos[0])
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    hands, failures = Counter(), []
    # An interrupt ends the writer last: what it has begun it completes.
    with Progress(*columns, console=console, disable=quiet) as bar, ThreadPoolExecutor(1) as writer:
        args.tell = lambda text: bar.update(bar.task_ids[0], description=text)
        for photo, result in _results(bar.track(photos, description="recovering"), args, writer):
            name = shown(photo)
            try:
                sides, paths = result()
            except HamrError as error:
                text = str(error) if name in str(error) else f"{name}: {error}"
                console.print(f"error: {text}", markup=False, highlight=False, soft_wrap=True)
                failures.append(error)
                continue
            hands.update(sides)
            found = f"{len(sides)} hand{'s' if len(sides) > 1 else ''} ({', '.join(sides)})"
            where = f"{shown(args.out / photo.stem)}* ({len(paths)} files)"
            print(f"{name}: {found} -> {where}", flush=True)
    done, kinds = len(photos) - len(failures), f"{hands['left']} left and {hands['right']} right"
    print(f"{done} of {len(photos)} done, {kinds} hands, by {network}: {shown(args.out)}")
    if done:
        return PARTLY if failures else DONE
    return NO_HAND if all(isinstance(error, NoHandError) for error in failures) else FAILED


def _results(photos, args, writer):
    """Yield each path and a function that returns the sides of its hands and its files.

    The files of a photo are written while the next one is looked at.
    """
    before = []
    for photo in photos:
        now = [] if is_video(photo) else [(photo, _recover_photo(photo, args, writer))]
        yield from before
        before = now
        if is_video(photo):
            yield photo, partial(_recover_video, photo, args)
    yield from before


def _recover_photo(path, args, writer):
    """Recover the hands of one photo, and have them saved; see `_results`."""
    from hamr_lib.recovery.pipeline import recover
    from hamr_lib.recovery.result import save_photo

    result = Future()
    try:
        hands = recover(path, args.box, args.side, args.checkpoint, args.device, args.evidence)
    except HamrError as error:
        result.set_exception(error)
        return result.result
    sides = [hand.side for hand in hands]
    saved = writer.submit(save_photo, hands, args.out, path.stem, args.overlay, keep=args.keep)
    return lambda: (sides, saved.result())


def _recover_video(path, args):
    """Recover the hands of a video and save them; returns their sides and the files."""
    from hamr_lib.recovery.pipeline import load_network
    from hamr_lib.recovery.result import save_photo
    from hamr_lib.recovery.video import recover_video, save_video

    def frames():
        model = load_network(args.checkpoint, args.device)
        options = args.box, args.side, args.evidence, not args.no_smoothing
        for frame in recover_video(path, model, *options):
            args.tell(f"frame {frame.index}")
            if args.frames and frame.hands:
                hands, stem = list(frame.hands.values()), f"{path.stem}-{frame.index:06d}"
                save_photo(hands, args.out, stem, args.overlay, html=False, keep=args.keep)
            yield frame

    return save_video(frames(), args.out, path.stem, args.overlay != "none", keep=args.keep)


def is_video(path: Path) -> bool:
    """Tell a video by its name's ending."""
    return path.suffix.lower() in VIDEOS


def list_photos(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """List files as they are, and of folders the files that are named like images or videos.

    Returns:
        The photos and videos, and the other files of the folders.

    Raises:
        HamrError: for a path that does not exist, and a folder without photos.
    """
    photos, skipped = [], []
    for path in paths:
        try:
            path.stat()
            folder = path.is_dir()
            files = sorted(p for p in path.iterdir() if not p.is_dir()) if folder else [path]
        except OSError as error:
            raise HamrError(f"cannot read {shown(path)}: {reason(error)}") from error
        files = [file for file in files if not folder or file.name[0] != "."]
        found = [file for file in files if not folder or file.suffix.lower() in PHOTOS + VIDEOS]
        if not found:
            raise HamrError(f"{shown(path)} is a folder without photos or videos")
        photos += found
        skipped += sorted(set(files) - set(found))
    return photos, skipped
