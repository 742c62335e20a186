"""A folder shared by workers: its layout, atomic writes, and a lease. Standard library only."""
