"""The report: figures, tables and a page of pictures, drawn from the files of a run.

figures     one function a figure of the paper; network, meshes  those that are no curves
tables      one function a table
results     saved predictions by method, set and seed, and their differences
gallery     `write_gallery`: a page of test images with their meshes
finder      how well hands are found in photographs
deviations  docs/deviations.md: where each profile departs from the paper
"""
