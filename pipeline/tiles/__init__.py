"""How scenes are cut into tiles: the grid, the rules and the reading of tiles. No Ray."""
