"""Text generation: options, score processors, stopping rules, streamers and decoding loops.

Public names can be imported from here as from `gptrio` (see `gptrio.import_paths`); the older names of results are here
only.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...  # for type checkers, which do not know the finder
