"""Writes the `.nemo` file: `python -m training.export --weights RUN/latest.pt --into demo.nemo`."""

import argparse
import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import yaml
from torch import Tensor

from parakeet_worker.engine.native.features import Features
from training import architecture
from training.network import Network
from training.pieces import Pieces
from training.words import lexicons

WORD_START = "\u2581"
DATA_SETS = ("train_ds", "validation_ds")


def vocabulary_files(model_path: Path) -> tuple[bytes, bytes]:
    """`tokenizer.vocab`, pieces and scores, and `vocab.txt`, spelled as wordpieces for NeMo."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model_path))
    ids = range(processor.get_piece_size())
    pieces = [processor.id_to_piece(index) for index in ids]
    scored = (f"{pieces[index]}\t{processor.get_score(index):g}\n" for index in ids)
    spelled = (
        f"{piece[1:]}\n" if piece.startswith(WORD_START) else f"##{piece}\n" for piece in pieces[1:]
    )
    return "".join(scored).encode(), "".join(spelled).encode()


def hashed(name: str, content: bytes) -> str:
    """NeMo names an artifact by a hash, an underscore and its own name."""
    return f"{hashlib.md5(content, usedforsecurity=False).hexdigest()}_{name}"


def configuration(pieces: Pieces, artifacts: dict[str, str]) -> dict[str, Any]:
    """`model_config.yaml` with the layout of Parakeet TDT 0.6B v3."""
    durations = list(architecture.DURATIONS)
    data_set = {
        "manifest_filepath": None,
        "sample_rate": 16000,
        "batch_size": 16,
        "shuffle": False,
        "use_start_end_token": False,
    }
    return {
        "sample_rate": 16000,
        "compute_eval_loss": False,
        "log_prediction": True,
        "rnnt_reduction": "mean_volume",
        "skip_nan_grad": False,
        "model_defaults": {
            "enc_hidden": architecture.ENCODER_WIDTH,
            "pred_hidden": architecture.PREDICTOR_WIDTH,
            "joint_hidden": architecture.JOINT_WIDTH,
            "tdt_durations": durations,
            "num_tdt_durations": len(durations),
        },
        **{name: dict(data_set) for name in DATA_SETS},
        "tokenizer": {
            "dir": "",
            "type": "bpe",
            "model_path": f"nemo:{artifacts['tokenizer.model']}",
            "vocab_path": f"nemo:{artifacts['vocab.txt']}",
            "spe_tokenizer_vocab": f"nemo:{artifacts['tokenizer.vocab']}",
        },
        "preprocessor": architecture.PREPROCESSOR,
        "encoder": architecture.ENCODER,
        "decoder": architecture.predictor(len(pieces)),
        "joint": architecture.joint(pieces.vocabulary()),
        **decoding(durations),
        "target": "nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel",
        "nemo_version": "2.4.0",
        "languages": list(lexicons()),
    }


def decoding(durations: list[int]) -> dict[str, Any]:
    """NeMo's `decoding` and `loss` sections."""
    return {
        "decoding": {
            "strategy": "greedy_batch",
            "model_type": "tdt",
            "durations": durations,
            "greedy": {"max_symbols": 2},
            "beam": {"beam_size": 2, "return_best_hypothesis": False, "score_norm": True},
        },
        "loss": {
            "loss_name": "tdt",
            "tdt_kwargs": {
                "fastemit_lambda": 0.0,
                "clamp": -1.0,
                "durations": durations,
                "sigma": 0.02,
                "omega": 0.1,
            },
        },
    }


def weights(network: Network) -> dict[str, Tensor]:
    """NeMo's state dict: the network without its training head, and the feature buffers."""
    features = Features.from_config(architecture.PREPROCESSOR)
    kept = {
        f"preprocessor.featurizer.{name}": value for name, value in features.state_dict().items()
    }
    for name, value in network.state_dict().items():
        if not name.startswith("words_head."):
            kept[name] = value.detach().clone().contiguous()
    return kept


def write_archive(path: Path, files: dict[str, bytes]) -> None:
    """Build an uncompressed tar without dates or owners, reproducible from the same files."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def export(network: Network, tokenizer: Path, path: Path) -> None:
    """Write the checkpoint."""
    scored, spelled = vocabulary_files(tokenizer)
    contents = {
        "tokenizer.model": tokenizer.read_bytes(),
        "tokenizer.vocab": scored,
        "vocab.txt": spelled,
    }
    artifacts = {name: hashed(name, content) for name, content in contents.items()}
    config = configuration(Pieces(tokenizer), artifacts)
    state = io.BytesIO()
    torch.save(weights(network), state)
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {artifacts[name]: content for name, content in contents.items()}
    files["model_config.yaml"] = yaml.safe_dump(
        config, allow_unicode=True, sort_keys=False
    ).encode()
    files["model_weights.ckpt"] = state.getvalue()
    write_archive(path, files)


def main() -> None:
    """Load the averaged weights of a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--into", type=Path, required=True)
    arguments = parser.parse_args()
    network = Network(Pieces(arguments.tokenizer))
    network.load_state_dict(torch.load(arguments.weights)["average"])
    export(network, arguments.tokenizer, arguments.into)
    print(f"{arguments.into}: {arguments.into.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
