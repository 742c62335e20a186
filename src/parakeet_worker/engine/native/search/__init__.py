"""Greedy TDT search on packed rows, in CUDA graphs of several steps each."""

from parakeet_worker.engine.native.search.emissions import Emissions, SearchResult
from parakeet_worker.engine.native.search.graph_search import GraphSearch
from parakeet_worker.engine.native.search.operations import SearchKernels
from parakeet_worker.engine.native.search.weights import SearchModel
from parakeet_worker.engine.native.search.workspace import Limits

__all__ = ["Emissions", "GraphSearch", "Limits", "SearchKernels", "SearchModel", "SearchResult"]
