"""From bytes to an upright RGB array: fetching, format detection, decoding, colour, orientation, letterboxing."""
