"""Widgets of the notebooks.

explorer  `Explorer`: a hand with sliders; its targets and losses are in `target`
browser   `Browser`: the predictions of a run, sample by sample
upload    `Upload`: a photograph from disk or webcam
pictures  what the widgets hand to the browser
"""
