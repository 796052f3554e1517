"""The report: figures, tables and a page of pictures, drawn from the files of a run.

figures     one function a figure of the paper
tables      one function a table
gallery     `write_gallery`: a page of test images with their meshes
finder      how well hands are found in photographs
pictures    published pictures made small
deviations  docs/deviations.md: where each profile departs from the paper
"""
