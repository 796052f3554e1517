"""The open stand-ins for RHD, STB and Dexter+Object: rendered by us, free of any licence."""

from hamr_lib.synth.sets import render_open_sets

__all__ = ["render_open_sets"]
