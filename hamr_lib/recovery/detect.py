"""Find hands by MediaPipe Hands (Zhang et al. 2020), whose models come with its package.

A palm detector looks at the whole photo. A second network places 21 landmarks in each region that
the first one names, and says how likely a hand is there. `mediapipe.solutions` does not tell that
likelihood, so its graph is run here directly.
"""

import functools
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from hamr_lib.files import silent
from hamr_lib.imports import bare_package

SIDES = ("left", "right")
# Chosen with the photographs of BSDS500 in sight, by eye.
PALM, SCORE = 0.1, 0.6  # least probability of a palm, and of a hand
SAME = 0.5  # intersection over union from which two detections are of the same hand
MOST = 16  # hands in a photo
LONGEST = 1600  # pixels of a photo's longer side: what is larger is shrunk before the search

GRAPH = "modules/hand_landmark/hand_landmark_tracking_cpu.binarypb"
PARTS = ("handlandmarkcpu__hand_presence_score", "single_hand_landmarks",
         "single_hand_world_landmarks", "single_handedness")  # fmt: skip

Box = tuple[float, float, float, float]  # (x0, y0, x1, y1) pixels


class Detection(NamedTuple):
    """A hand found in a photo; where only its box and side are given, the rest is None."""

    box: Box
    side: str  # "left" or "right"
    score: float | None = None  # probability of a hand
    landmarks: np.ndarray | None = None  # (21, 2) pixels, in the order of `joints.NAMES`
    world: np.ndarray | None = None  # (21, 3) metres, camera frame, about the hand's centre

    def as_side(self, side: str) -> "Detection":
        """Take it for a hand of a side, or "auto". The other side's depths are no evidence."""
        return self if side in ("auto", self.side) else self._replace(side=side, world=None)

    def moved(self, offset) -> "Detection":
        """Move it by an offset (2,), pixels."""
        points = self.landmarks + offset
        return self._replace(box=_around(points), landmarks=points)


class Detector:
    """MediaPipe's hand detector.

    Args:
        track: whether images are successive frames of a video. Then a hand of the last frame is
            looked for near its place there.
    """

    def __init__(self, track: bool = False):
        self.outputs, self.time = [], 0
        with silent():
            self.graph = _start(track, lambda *output: self.outputs.append(output))

    def __call__(self, photo: np.ndarray) -> list[Detection]:
        """Find the hands of a photo (H, W, 3) uint8 RGB, the best scores first."""
        from mediapipe.python import packet_creator, packet_getter
        from mediapipe.python._framework_bindings.image_frame import ImageFormat

        factor = -(-max(photo.shape[:2]) // LONGEST)
        photo = shrunk(photo, factor)
        size = np.array(photo.shape[1::-1])
        hands, detections = {}, []  # the packets of a hand have a time of their own
        self.outputs.clear()
        self.time += 33_333  # microseconds; they must grow
        image = packet_creator.create_image_frame(photo, image_format=ImageFormat.SRGB)
        self.graph.add_packet_to_input_stream("image", image.at(self.time))
        self.graph.wait_until_idle()
        for name, packet in self.outputs:
            hands.setdefault(packet.timestamp.value, {})[name] = packet
        for parts in hands.values():
            if len(parts) < len(PARTS):  # a region without a hand has a score alone
                continue
            score = packet_getter.get_float(parts[PARTS[0]])
            with warnings.catch_warnings():  # MediaPipe's, of protobuf
                warnings.simplefilter("ignore", UserWarning)
                flat, world, sides = (packet_getter.get_proto(parts[n]) for n in PARTS[1:])
            points = np.array([(point.x, point.y) for point in flat.landmark]) * size * factor - 0.5
            solid = np.array([(point.x, point.y, point.z) for point in world.landmark])
            # MediaPipe takes each image for that of a mirror.
            side = {"Left": "right", "Right": "left"}[sides.classification[0].label]
            detections.append(Detection(_around(points), side, score, points, solid))
        return distinct(detections)


@functools.cache
def _detector():
    return Detector()


def find_hands(photo: np.ndarray) -> list[Detection]:
    """Find the hands of a photo (H, W, 3) uint8 RGB, the best scores first."""
    return _detector()(photo)


def find_in_box(photo: np.ndarray, box: Box) -> Detection | None:
    """Find the hand that overlaps most with a box (x0, y0, x1, y1), pixels."""
    x0, y0, x1, y1 = box
    margin = max(x1 - x0, y1 - y0)
    left, top = (max(0, int(low - margin)) for low in (x0, y0))
    right, bottom = (max(0, int(high + margin + 2)) for high in (x1, y1))
    found = find_hands(np.ascontiguousarray(photo[top:bottom, left:right]))
    found = [one.moved([left, top]) for one in found]
    best = max(found, key=lambda one: overlap(one.box, box), default=None)
    return best if best and overlap(best.box, box) > 0.1 else None


def shrunk(photo: np.ndarray, factor: int) -> np.ndarray:
    """Average squares of `factor` pixels of a photo (H, W, 3) uint8; what is left over is cut off.

    OpenCV is several times as fast where the factor is a whole number.
    """
    height, width = (max(1, n // factor) for n in photo.shape[:2])
    photo = photo[: height * factor, : width * factor]
    return cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA) if factor > 1 else photo


def _around(points):
    return (*points.min(0).tolist(), *points.max(0).tolist())


def distinct(detections: list[Detection]) -> list[Detection]:
    """Keep the best of the detections that overlap by `SAME` or more; the best scores first."""
    kept = []
    for found in sorted(detections, key=lambda found: -found.score):
        if all(overlap(found.box, other.box) < SAME for other in kept):
            kept.append(found)
    return kept


def overlap(a: Box, b: Box) -> float:
    """Compute the intersection over union of two boxes."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    inner = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0).prod()
    return inner / max((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inner, 1e-12)


def _start(track: bool, tell: Callable):
    """A running graph that calls tell(name, packet) for each of `PARTS`."""
    package = bare_package("mediapipe")  # itself it imports solutions, which draw with matplotlib
    from mediapipe.calculators.tensor import tensors_to_detections_calculator_pb2 as palms
    from mediapipe.calculators.util import thresholding_calculator_pb2 as presence
    from mediapipe.framework.calculator_pb2 import CalculatorGraphConfig
    from mediapipe.framework.formats import classification_pb2, landmark_pb2  # noqa: F401
    from mediapipe.python import packet_creator
    from mediapipe.python._framework_bindings import resource_util
    from mediapipe.python._framework_bindings.calculator_graph import CalculatorGraph
    from mediapipe.python._framework_bindings.validated_graph_config import ValidatedGraphConfig

    resource_util.set_resource_dir(str(package.parent))
    graph = ValidatedGraphConfig()
    graph.initialize(binary_graph_path=str(package / GRAPH))
    config = CalculatorGraphConfig.FromString(graph.binary_config)
    nodes = {node.name: node.options.Extensions for node in config.node}
    palm = nodes["palmdetectioncpu__TensorsToDetectionsCalculator"]
    palm[palms.TensorsToDetectionsCalculatorOptions.ext].min_score_thresh = PALM
    hand = nodes["handlandmarkcpu__ThresholdingCalculator"]
    hand[presence.ThresholdingCalculatorOptions.ext].threshold = SCORE
    # By a file, as options of calculators that were not imported would be lost in a message.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "hands.binarypb")
        path.write_bytes(config.SerializeToString())
        running = CalculatorGraph(binary_graph_path=str(path))
    for name in PARTS:
        running.observe_output_stream(name, tell, False)
    running.start_run({
        "model_complexity": packet_creator.create_int(1),
        "num_hands": packet_creator.create_int(MOST),
        "use_prev_landmarks": packet_creator.create_bool(track),
    })  # fmt: skip
    running.wait_until_idle()
    return running
