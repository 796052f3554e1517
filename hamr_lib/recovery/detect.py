"""Finding hands: MediaPipe Hands (Zhang et al. 2020), whose models come with its package.

A palm detector looks at the whole photo; a second network places 21 landmarks in each region that
it names, and says how likely a hand is there. `mediapipe.solutions` does not tell that likelihood,
so its graph is run here directly.
"""

import contextlib
import functools
import os
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

SIDES = ("left", "right")
# Chosen with the photographs of BSDS500 in sight, by eye.
PALM, SCORE = 0.1, 0.6  # least probability of a palm, and of a hand
SAME = 0.5  # intersection over union from which two finds are of the same hand
MOST = 16  # hands in a photo
LONGEST = 1600  # pixels of a photo's longer side: what is larger is shrunk before the search
AROUND = 1.0  # margin of the search in a box, of its longer side

GRAPH = "modules/hand_landmark/hand_landmark_tracking_cpu.binarypb"
REGION, DETECTIONS = "hand_rects", "hand_rects_from_palm_detections"
PARTS = ("handlandmarkcpu__hand_presence_score", "single_hand_landmarks",
         "single_hand_world_landmarks", "single_handedness")  # fmt: skip


class Find(NamedTuple):
    """A hand found in a photo. Landmarks are in the order of `joints.NAMES`."""

    box: tuple[float, float, float, float]  # (x0, y0, x1, y1) pixels, of the landmarks
    side: str  # "left" or "right"
    score: float  # probability of a hand
    landmarks: np.ndarray  # (21, 2) pixels
    world: np.ndarray  # (21, 3) metres, camera frame, about the hand's centre


class Detector:
    """MediaPipe's hand detector.

    Args:
        track: whether images are successive frames of a video. Then a hand of the last frame is
            looked for near its place there.
    """

    def __init__(self, track=False):
        self.outputs, self.time = [], 0
        with _quiet():
            self.graph = _start(track, lambda *output: self.outputs.append(output))

    def __call__(self, photo):
        """Find the hands of a photo (H, W, 3) uint8 RGB: list of `Find`, the best scores first."""
        scale = min(1.0, LONGEST / max(photo.shape[:2]))
        if scale < 1:
            photo = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        size = np.array(photo.shape[1::-1])
        finds = []
        for score, flat, world, handedness in self._run(photo):
            points = np.array([(point.x, point.y) for point in flat.landmark]) * size / scale - 0.5
            [label] = handedness.classification
            finds.append(
                Find(
                    (*points.min(0).tolist(), *points.max(0).tolist()),
                    # MediaPipe takes each image for that of a mirror.
                    {"Left": "right", "Right": "left"}[label.label],
                    score,
                    points,
                    np.array([(point.x, point.y, point.z) for point in world.landmark]),
                )
            )
        return distinct(finds)

    def _run(self, photo):
        """For each hand: its score, and MediaPipe's messages of landmarks, world and side."""
        from mediapipe.python import packet_creator, packet_getter
        from mediapipe.python._framework_bindings import image_frame

        self.outputs.clear()
        self.time += 33_333  # microseconds; they must grow
        image = packet_creator.create_image_frame(
            photo, image_format=image_frame.ImageFormat.SRGB
        ).at(self.time)
        self.graph.add_packet_to_input_stream("image", image)
        self.graph.wait_until_idle()
        hands = {}  # the packets of a hand have a time of their own
        for name, packet in self.outputs:
            hands.setdefault(packet.timestamp.value, {})[name] = packet
        with warnings.catch_warnings():  # MediaPipe's, of protobuf
            warnings.simplefilter("ignore", UserWarning)
            return [
                (
                    packet_getter.get_float(parts[PARTS[0]]),
                    *(packet_getter.get_proto(parts[name]) for name in PARTS[1:]),
                )
                for parts in hands.values()
                if len(parts) == len(PARTS)  # a region without a hand has a score alone
            ]


def distinct(finds):
    """Of finds that overlap by `SAME` or more the one with the best score; best scores first."""
    kept = []
    for found in sorted(finds, key=lambda found: -found.score):
        if all(overlap(found.box, other.box) < SAME for other in kept):
            kept.append(found)
    return kept


def overlap(a, b):
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    inner = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0).prod()
    return inner / max((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inner, 1e-12)


def find_hands(photo):
    """The hands of a photo (H, W, 3) uint8 RGB: list of `Find`, the best scores first."""
    return _detector()(photo)


def find_in_box(photo, box):
    """The `Find` that overlaps most with a box (x0, y0, x1, y1), pixels; None where none does."""
    height, width = photo.shape[:2]
    x0, y0, x1, y1 = box
    margin = AROUND * max(x1 - x0, y1 - y0)
    left, top = (max(0, int(low - margin)) for low in (x0, y0))
    right, bottom = int(min(width, x1 + margin + 2)), int(min(height, y1 + margin + 2))
    offset = np.array([left, top])
    found = [
        found._replace(
            box=tuple(np.add(found.box, np.tile(offset, 2)).tolist()),
            landmarks=found.landmarks + offset,
        )
        for found in find_hands(np.ascontiguousarray(photo[top:bottom, left:right]))
    ]
    best = max(found, key=lambda found: overlap(found.box, box), default=None)
    return best if best and overlap(best.box, box) > 0.1 else None


@functools.cache
def _detector():
    return Detector()


def _start(track, tell):
    """A running graph that calls tell(name, packet) for each of `PARTS`."""
    import mediapipe
    from mediapipe.calculators.tensor import tensors_to_detections_calculator_pb2 as palms
    from mediapipe.calculators.util import thresholding_calculator_pb2 as presence
    from mediapipe.framework import calculator_pb2
    from mediapipe.python import packet_creator
    from mediapipe.python._framework_bindings import (
        calculator_graph,
        resource_util,
        validated_graph_config,
    )

    package = Path(mediapipe.__file__).parent
    resource_util.set_resource_dir(str(package.parent))
    graph = validated_graph_config.ValidatedGraphConfig()
    graph.initialize(binary_graph_path=str(package / GRAPH))
    config = calculator_pb2.CalculatorGraphConfig.FromString(graph.binary_config)
    for node, kind, option, value in (
        ("palmdetectioncpu__TensorsToDetectionsCalculator",
         palms.TensorsToDetectionsCalculatorOptions, "min_score_thresh", PALM),
        ("handlandmarkcpu__ThresholdingCalculator",
         presence.ThresholdingCalculatorOptions, "threshold", SCORE),
    ):  # fmt: skip
        [found] = [other for other in config.node if other.name == node]
        setattr(found.options.Extensions[kind.ext], option, value)
    running = calculator_graph.CalculatorGraph(graph_config=config)
    for name in PARTS:
        running.observe_output_stream(name, tell, False)
    running.start_run(
        {
            "model_complexity": packet_creator.create_int(1),
            "num_hands": packet_creator.create_int(MOST),
            "use_prev_landmarks": packet_creator.create_bool(track),
        }
    )
    running.wait_until_idle()
    return running


@contextlib.contextmanager
def _quiet():
    """Keep what MediaPipe's C++ code says at its start off the standard error stream."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
