"""Widgets of the notebooks.

explorer  `Explorer`, `Browser`: a hand to move, and test images to walk through
upload    `Upload`: a photograph from disk or webcam
"""
