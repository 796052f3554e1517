"""Recovery: from a photograph to the mesh of each hand in it.

result   `recover`, `recover_frame`, `Recovery`: one image in, one recovery a hand out
refine   `fit`: lay the mesh onto the heat maps
views    `add_views`: turned and scaled copies of a crop, averaged
command  the command `hamr`
"""
