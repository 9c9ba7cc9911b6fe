"""How good a checkpoint is: the trajectory-preference probe, naming, similarity and AURORA-Bench."""
