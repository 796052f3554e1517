"""The command `hamr` (also `python -m hamr_lib`): meshes from photos and videos."""

import argparse
import re
import signal
import stat
import sys
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from hamr_lib.errors import HamrError
from hamr_lib.joints import NAMES
from hamr_lib.recovery.output import check_folder, shown, whole_set
from hamr_lib.recovery.photo import SUFFIXES as PHOTOS

DONE, FAILED, USAGE, PARTLY, NO_HAND, INTERRUPTED = 0, 1, 2, 3, 4, 130
VIDEOS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
MOST_NAMED = 20  # skipped files that are named

RECOVER = f"""\
Recover the hands in photos and videos: their meshes, joints and poses.

For every photo NAME.* these files are written into --out, all of them or none:
  NAME_overlay.png  meshes and joints of all hands drawn over the photo
  NAME.glb          the first hand's mesh for 3-D viewers, upright
  NAME.obj          its mesh in metres, camera frame (x right, y down, z away), wrist at the origin
  NAME.json         joints_2d (21 x 2, pixels of the photo), joints_3d (21 x 3, metres, as the
                    OBJ), confidence (21, from 0 to 1), camera (s, tx, ty: joints_2d =
                    s * joints_3d[:, :2] + (tx, ty)), betas, global_orient, hand_pose, box, side,
                    score, evidence, hand, checkpoint, joint_names, photo_size, pixel_convention
  NAME.html         its mesh, to be turned with the mouse in any browser, without a network
A second hand's files are called NAME_hand2.*, and so on.

For every video NAME.* an overlay video and one file a hand are written:
  NAME_overlay.mp4  meshes and joints drawn over each frame
  NAME_hand1.npz    arrays with a row for each frame that shows the hand: frame, time (seconds) and
                    the numbers of a photo's JSON
Hands keep their number from frame to frame, and their motion is smoothed unless --no-smoothing
says otherwise. --frames also writes the files of each frame, called NAME-000000 and so on.

The hands and their sides are found by MediaPipe unless --box and --side say them. With --side and
no --box only the hands of that side are recovered; if all found are of the other side, the most
certain one, as a hand of the side that was said.

Joints, in the order of all files:
  {", ".join(NAMES[:5])},
  {", ".join(NAMES[5:13])},
  {", ".join(NAMES[13:])}
"""

CODES = f"""\
exit codes:
  {DONE}    every photo and video is done
  {FAILED}    an argument is wrong (a folder without photos, an unknown checkpoint, an unwritable
       --out, ...), or not one of the photos could be done; the reason is printed
  {USAGE}    the command line itself is wrong
  {PARTLY}    some photos are done; each of the others is named with its reason
  {NO_HAND}    no photo is done, since no hand was found in any of them
  {INTERRUPTED}  interrupted from the keyboard, or by the end of the session

A video is done if a hand was found in at least one of its frames.
"""


def main(argv=None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):  # names may hold what a terminal cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    for name in ("SIGHUP", "SIGTERM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _interrupt)
    try:
        return _recover(args)
    except HamrError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _interrupt(*_):
    raise KeyboardInterrupt


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
    add(
        "--box",
        type=_box,
        metavar="x0,y0,x1,y1",
        help="around the hand, pixels of the upright photo; the same for all photos "
        "(write --box=-5,... where the first number is negative); default: hands are found",
    )
    add("--side", choices=("left", "right", "auto"), default="auto", help="default: auto")
    add(
        "--evidence",
        choices=("network", "landmarks", "both"),
        default="both",
        help="what the mesh is laid onto: the network's heat maps, MediaPipe's landmarks, or both "
        "(default)",
    )
    add(
        "--overlay",
        choices=("none", "each", "all"),
        default="all",
        help="no overlays; one of all hands (default); or that and one of each hand, "
        "NAME_hand1_overlay.png and so on",
    )
    add("--frames", action="store_true", help="write the files of each frame of a video, too")
    add("--no-smoothing", action="store_true", help="leave the motion in videos as it is found")
    add(
        "--checkpoint",
        type=Path,
        metavar="F",
        help="default: your own latest training run, else the one that is shipped",
    )
    add("--device", metavar="D", help="default: a GPU if there is one, else cpu")  # fmt: skip
    return parser


def _box(text):
    try:
        x0, y0, x1, y1 = (float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected four numbers x0,y0,x1,y1, got {text[:100]!r}"
        ) from None
    return x0, y0, x1, y1


def _recover(args):
    photos, skipped = list_photos(args.photos)
    _check_names(photos, args)
    check_folder(args.out)
    for path in skipped[:MOST_NAMED]:
        print(f"skipped, neither image nor video: {shown(path)}", file=sys.stderr)
    if len(skipped) > MOST_NAMED:
        print(f"skipped: {len(skipped) - MOST_NAMED} more files", file=sys.stderr)

    # Here, so that --help and a mistyped option do not wait for torch.
    from hamr_lib.recovery.pipeline import NoHandError, checked_box, load_network
    from hamr_lib.recovery.video import count_frames

    args.box = checked_box(args.box)
    args.network = load_network(args.checkpoint, args.device)
    done, hands, failures = 0, Counter(), []
    console = Console(stderr=True)
    total = sum(count_frames(path) if _is_video(path) else 1 for path in photos)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=total == 1) as progress:
        task = progress.add_task("recovering", total=total)
        for photo in photos:
            try:
                recover_file = _recover_video if _is_video(photo) else _recover_photo
                sides, paths = recover_file(photo, args, lambda: progress.advance(task))
            except HamrError as error:
                text, name = str(error), shown(photo)
                text = text if name in text else f"{name}: {text}"
                console.print(f"error: {text}", markup=False, highlight=False, soft_wrap=True)
                failures.append(error)
                continue
            done += 1
            hands.update(sides)
            where = f"{shown(args.out / photo.stem)}* ({len(paths)} files)"
            print(f"{shown(photo)}: {_told(sides)} -> {where}", flush=True)
    kinds = f"{hands['left']} left and {hands['right']} right hands"
    print(f"{done} of {len(photos)} done, {kinds}, by {args.network[1]}: {shown(args.out)}")
    if done:
        return PARTLY if failures else DONE
    return NO_HAND if all(isinstance(error, NoHandError) for error in failures) else FAILED


def _told(sides):
    return f"{len(sides)} hand{'s' if len(sides) > 1 else ''} ({', '.join(sides)})"


def _recover_photo(path, args, advance):
    """Recover the hands of one photo and save them; returns their sides and the files."""
    from hamr_lib.recovery.pipeline import recover
    from hamr_lib.recovery.result import save_photo

    try:
        hands = recover(
            path, args.box, args.side, args.checkpoint, args.device, args.evidence
        )  # fmt: skip
        return [hand.side for hand in hands], save_photo(hands, args.out, path.stem, args.overlay)
    finally:
        advance()


def _recover_video(path, args, advance):
    """Recover the hands of a video and save them; returns their sides and the files."""
    from hamr_lib.recovery.pipeline import NoHandError
    from hamr_lib.recovery.result import save_photo
    from hamr_lib.recovery.video import VideoWriter, recover_video

    count = 0
    with whole_set(args.out) as (aside, paths):
        writer = VideoWriter(aside, path.stem, args.overlay != "none")
        try:
            for frame in recover_video(
                path, args.network, args.box, args.side, args.evidence, not args.no_smoothing
            ):
                count += 1
                writer.add(frame)
                if args.frames and frame.hands:
                    hands, name = list(frame.hands.values()), f"{path.stem}-{frame.index:06d}"
                    save_photo(hands, args.out, name, args.overlay, html=False)
                advance()
        finally:
            writer.close()
        if not writer.hands:
            raise NoHandError(f"no hand was found in any of its {count} frames")
    return [track[-1][2].side for track in writer.hands.values()], paths


def _is_video(path):
    return path.suffix.lower() in VIDEOS


def list_photos(paths):
    """The photos and videos among files and folders: a file as it is, of a folder those named
    like images or videos.

    Returns:
        list of paths, and the other files of the folders.

    Raises:
        HamrError: for a path that does not exist, a folder without photos, and two photos whose
            results could have the same name.
    """
    photos, skipped, named = [], [], PHOTOS + VIDEOS
    for path in paths:
        try:
            if not stat.S_ISDIR(path.stat().st_mode):
                photos.append(path)
                continue
            files = sorted(p for p in path.iterdir() if not p.is_dir() and p.name[0] != ".")
        except FileNotFoundError as error:
            raise HamrError(f"{shown(path)} does not exist") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise HamrError(f"{shown(path)} cannot be read: {reason}") from error
        found = [file for file in files if file.suffix.lower() in named]
        if not found:
            raise HamrError(f"{shown(path)} is a folder without photos ({', '.join(named)})")
        photos += found
        skipped += [file for file in files if file.suffix.lower() not in named]
    return photos, skipped


def _check_names(photos, args):
    """Refuse photos whose results would overwrite one another, or a photo.

    Raises:
        HamrError: naming them.
    """
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
            listed = ", ".join(map(shown, same))
            raise HamrError(f"the results of {listed} would overwrite one another: rename them")
    try:
        out = args.out.resolve()
        if out in {path.resolve() for path in args.photos}:
            raise HamrError(
                f"--out {shown(args.out)} is a folder of photos: results would be mixed with them"
            )
        written = {
            out / f"{photo.stem}_overlay{end}" for photo in photos for end in (".png", ".mp4")
        }
        for photo in written & {photo.resolve() for photo in photos}:
            raise HamrError(f"a result would overwrite {shown(photo)}: choose another --out")
    except (OSError, RuntimeError, ValueError) as error:
        raise HamrError(f"--out {shown(args.out)} cannot be used: {error}") from error
