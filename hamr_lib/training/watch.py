"""Look at a run while it trains: its losses, and how long it will take."""

import math
import sys
import time
from datetime import timedelta

import torch

from hamr_lib.errors import HamrError

EXPLODED = 1000.0  # times the running mean of the loss
SETTLED = 100  # steps before that mean is trusted


class Diverged(HamrError):
    """A loss or an error that is not finite or explodes."""


class Stopped(HamrError):
    """A run that was asked to stop, and did."""


class Watch:
    """Stops a run whose loss is not finite or explodes; `keys` name the training samples.

    Each loss is looked at one step late, so that the device never waits. `state` is that of an
    earlier run: the running mean of the loss, and of how many steps.
    """

    def __init__(self, keys, state=(0.0, 0)):
        self.keys, self.pending, self.earlier = keys, None, ()
        self.mean, self.count = state

    def put(self, step, indices, loss):
        """Remember the loss of a step and the samples (B,) of its batch."""
        ready, loss = None, loss.detach()
        if loss.is_cuda:
            loss, ready = loss.to("cpu", non_blocking=True), torch.cuda.Event()
            ready.record()
        self.pending = step, indices, loss, ready

    def check(self):
        """Raise a `Diverged` that names the samples if the last loss was bad."""
        if self.pending is None:
            return
        step, indices, loss, ready = self.pending
        if ready:
            ready.synchronize()
        loss, settled = loss.item(), self.count >= SETTLED
        if not math.isfinite(loss) or (settled and loss > EXPLODED * self.mean):
            last, before = (
                ", ".join(f"{i} ({self.keys[i]})" for i in map(int, batch)) or "none"
                for batch in (indices, self.earlier)
            )
            raise Diverged(
                f"training stopped at step {step}: the loss is {loss:g}, expected a finite value "
                f"near its running mean {self.mean:g}. Samples of this batch: {last}; of the batch "
                f"before: {before}"
            )
        self.count += 1
        self.mean += (loss - self.mean) * max(0.01, 1 / self.count)
        self.pending, self.earlier = None, indices


class Progress:
    """Prints a line now and then, at most fifty in a run besides those with a message."""

    def __init__(self, steps, first=0):
        self.steps, self.first = steps, first
        self.started = self.shown = time.monotonic()

    def show(self, done, message=""):
        """Tell that `done` of the steps are done, and how long the others will take."""
        now = time.monotonic()
        elapsed = now - self.started
        left = elapsed * (self.steps - done) / max(1, done - self.first)
        if message or now - self.shown >= max(30, (elapsed + left) / 50):
            self.shown = now
            passed, left = (timedelta(seconds=int(seconds)) for seconds in (elapsed, left))
            line = f"step {done} of {self.steps}, {passed} passed, {left} left{message}"
            print(line, file=sys.stderr, flush=True)
