"""Random states of a search, for the kernels of one step."""

import torch

from parakeet_worker.engine.native.kernels.search_rows import SearchRows


def random_rows(lengths: list[int], seed: int = 0, slots: int = 1) -> SearchRows:
    """Rows of these lengths, packed end to end; some are finished, all are in mid-search."""
    generator = torch.Generator().manual_seed(seed)
    count = len(lengths)

    def random(limit: int) -> torch.Tensor:
        return torch.randint(0, limit, (count,), dtype=torch.int32, generator=generator)

    lengths_tensor = torch.tensor(lengths, dtype=torch.int32)
    return SearchRows(
        offsets=(lengths_tensor.cumsum(0) - lengths_tensor).int(),
        lengths=lengths_tensor,
        slots=random(slots),
        frames=(random(1000) * (lengths_tensor + 2) // 1000).int(),
        counts=(random(1000) * (lengths_tensor + 2) // 1000).int(),
        repeats=random(3),
        tokens=random(5),
        emitted=random(2),
    )


def clone(rows: SearchRows) -> SearchRows:
    return SearchRows(*(getattr(rows, name).clone() for name in SearchRows.__slots__))
