"""Recovery: from a photograph to the mesh of each hand in it.

photo     `read_photo`: any common format as upright RGB
detect    `find_hands`: boxes, sides and landmarks, by MediaPipe
pipeline  `recover`, `recover_frame`: one image in, one `Recovery` a hand out
refine    `lay`: the hand model fitted to heat maps and landmarks
result    `Recovery`: a hand's mesh, its pictures and its files
meshfile  `write_mesh`: OBJ and GLB
video     `recover_video`: hands that keep their identity, smoothed over time
output    `whole_set`: files that are all there, or none
command   the command `hamr`
"""
