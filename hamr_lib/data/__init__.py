"""Data sets: a reader and a writer for each file format, crops, and augmentation.

frame           `Frame`, `Frames`: one image with its labels
rhd, stb, dexter, photographs    `RHD`, `STB`, `Dexter`, `Photographs`: the readers
registry        `find_sets`, `training_crops`, `evaluation_crops`: the sets that a profile uses
check           `check_set`, `report_table`: the files, compared with what is published
crops           `Crops`, `load_crops`: frames cut to network inputs, cached
augment         `augment`: random changes of a batch of crops
statistics      `statistics`: the distribution of a set's labels
"""
