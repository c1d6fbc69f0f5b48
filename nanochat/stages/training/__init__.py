"""The common parts of the stages that train: the loop in its folder, rows of a step, rates, validation and samples."""
