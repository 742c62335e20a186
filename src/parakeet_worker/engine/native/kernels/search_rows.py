"""State of every row of a search, which the kernels of one step pass to each other."""

from dataclasses import dataclass, fields

from torch import Tensor

FAILED = -1
"""Count of a row with non-finite scores: its decoding has stopped."""


@dataclass(frozen=True, slots=True, eq=False)
class SearchRows:
    """R rows, each a chunk whose frames are packed in one buffer; all tensors are (R,) int32."""

    offsets: Tensor
    """First frame of the row in the buffer."""
    lengths: Tensor
    """Frames of the row, which is also its capacity in tokens."""
    slots: Tensor
    """The row's slot in the table of logit biases."""
    frames: Tensor
    """Frame to be scored next; the row is finished at `lengths`."""
    counts: Tensor
    """Tokens emitted, including those beyond the capacity; or `FAILED`."""
    repeats: Tensor
    """Tokens emitted at the current frame without advancing."""
    tokens: Tensor
    """Token of the last step."""
    emitted: Tensor
    """1 if the last step emitted the token, 0 if the prediction network keeps its state."""

    @classmethod
    def of(cls, table: Tensor, rows: int) -> "SearchRows":
        """Views of the first `rows` columns of an int32 tensor with one row for each field."""
        return cls(*(values[:rows] for values in table))

    @classmethod
    def field_count(cls) -> int:
        """Rows of the tensor that `of` requires."""
        return len(fields(cls))
