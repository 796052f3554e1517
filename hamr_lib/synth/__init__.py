"""The open stand-ins for RHD, STB and Dexter+Object, rendered without licensed data.

sets     `render_open_sets`: whole sets in the real file formats
blocks   a few samples of a set, rendered by one process
scene    one image and its labels: people, things, views, surfaces, lights, samples, lens
people   posed bodies;  skin  their appearance
backgrounds, environments   what is behind the hand, and its light
"""

from hamr_lib.synth.sets import render_open_sets

__all__ = ["render_open_sets"]
