"""Text generation: options, score processors, stopping rules, streamers and decoding loops."""
