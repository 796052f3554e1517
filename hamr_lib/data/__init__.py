"""Data sets: one reader (and writer) per file format, all giving `Frame`s; and their checker."""
