"""Random states of a search, for the kernels of one step."""

import torch

from parakeet_worker.engine.native.kernels.search_rows import SearchRows


def rows_at_random(lengths: list[int], seed: int = 0, slots: int = 1) -> SearchRows:
    """Rows of these lengths, packed end to end, some of them ended, all with some history."""
    generator = torch.Generator().manual_seed(seed)
    count = len(lengths)

    def below(limit: int) -> torch.Tensor:
        return torch.randint(0, limit, (count,), dtype=torch.int32, generator=generator)

    long = torch.tensor(lengths, dtype=torch.int32)
    return SearchRows(
        offsets=(long.cumsum(0) - long).int(),
        lengths=long,
        slots=below(slots),
        frames=(below(1000) * (long + 2) // 1000).int(),
        counts=(below(1000) * (long + 2) // 1000).int(),
        repeats=below(3),
        tokens=below(5),
        emitted=below(2),
    )


def copied(rows: SearchRows) -> SearchRows:
    return SearchRows(*(getattr(rows, name).clone() for name in SearchRows.__slots__))
