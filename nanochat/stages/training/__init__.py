"""What the stages that train share: the loop in its folder, rows of a step, rates, validation and samples."""
