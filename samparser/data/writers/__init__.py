"""Writers, one file for each format: samples to the files that a labelling tool or a trainer takes."""
