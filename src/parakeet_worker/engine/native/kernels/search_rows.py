"""Where every row of a search stands: what the kernels of one step pass to each other."""

from dataclasses import dataclass, fields

from torch import Tensor

FAILED = -1
"""The count of a row whose scores are not finite: it is not decoded any further."""


@dataclass(frozen=True, slots=True, eq=False)
class SearchRows:
    """R rows, each a chunk whose frames lie packed in one buffer; all tensors are (R,) int32."""

    offsets: Tensor
    """First frame of the row in the buffer."""
    lengths: Tensor
    """Frames of the row, which is also how many tokens it has room for."""
    slots: Tensor
    """The row's line in the table of additive scores."""
    frames: Tensor
    """The frame that is scored next; from `lengths` on the row has ended."""
    counts: Tensor
    """Tokens emitted, also those beyond the room; or `FAILED`."""
    repeats: Tensor
    """Tokens emitted at this frame without moving."""
    tokens: Tensor
    """The token of the last step."""
    emitted: Tensor
    """1 where the last step emitted it, 0 where the predictor keeps its state."""

    @classmethod
    def of(cls, whole: Tensor, rows: int) -> "SearchRows":
        """Views of the first `rows` columns of an int32 tensor with one line for each field."""
        return cls(*(line[:rows] for line in whole))

    @classmethod
    def lines(cls) -> int:
        """Lines that `of` needs."""
        return len(fields(cls))
