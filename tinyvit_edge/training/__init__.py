"""Training: presets as data, one loop, exact resumption, one process or many."""
