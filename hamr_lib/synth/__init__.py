"""The open stand-ins for RHD, STB and Dexter+Object, rendered without licensed data.

sets         `render_open_sets`: whole sets in the real file formats, block by block
scene        one image and its labels: people and objects, rasterised and shaded
people       posed bodies;  skin  their appearance
lights       panoramas, lamps, shadows;  backgrounds  what is behind the hand
camera       from where a hand is photographed, and through what lens
"""

from hamr_lib.synth.sets import render_open_sets

__all__ = ["render_open_sets"]
