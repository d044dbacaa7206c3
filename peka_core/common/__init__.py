"""What every part stands on: the one error, whole files, checks of values, devices.

Nothing here knows of tissue, encoders or scores, and nothing here imports another part."""
