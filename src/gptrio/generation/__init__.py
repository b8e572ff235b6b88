"""Text generation: options, score processors, stopping rules, streamers and decoding loops.

Public names can be imported from here as from `gptrio`; the older names of results are here only.
"""
