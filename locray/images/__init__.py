"""From bytes to an upright RGB array: format by content, decoding, colour, orientation, letterboxing."""
