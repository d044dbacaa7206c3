"""Pictures of whole slides: reading them, where tissue is, and where tiles are cut.

This wing knows nothing of counts, cohorts and runs. Tiles are those of `tiles.cut_tile`, so a model
sees a new slide as it saw the slides that it was trained on.
"""
