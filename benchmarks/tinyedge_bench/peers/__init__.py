"""Other programs measured beside tinyedge, in turn with it: one file each."""
