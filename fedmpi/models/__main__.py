"""Pre-trained networks on disk: `python -m fedmpi.models fetch NAME --root DIR`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import NoReturn

from fedmpi.errors import BadInput

#: The files of a network and its tokenizer; others are weights for other programs.
FILES = ("*.json", "*.txt", "*.model", "*.safetensors")


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(message)


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit status."""
    about = "Download a pre-trained network, for --model HuggingFace --model.path DIR/NAME. Needs internet access."
    parser = _Parser(prog="python -m fedmpi.models", description=about, allow_abbrev=False)
    fetch = parser.add_subparsers(dest="command", required=True).add_parser("fetch", help=about, description=about)
    fetch.add_argument("name", help="name on the Hub, for example sentence-transformers/all-MiniLM-L6-v2")
    fetch.add_argument("--root", type=Path, required=True, help="folder in which a folder NAME is made")
    try:
        options = parser.parse_args(arguments)
        print(f"{options.name}: in {_fetch(options.name, options.root)}")
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _fetch(name: str, root: Path) -> Path:
    """Download a network and its tokenizer; returns the folder.

    Raises:
        BadInput: the library is not installed, or the network cannot be downloaded.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise BadInput("huggingface_hub is not installed: pip install 'fedmpi[llm]'") from None
    folder = root / name
    try:
        snapshot_download(name, local_dir=folder, allow_patterns=list(FILES))
    except Exception as error:  # of the network, of the disk, or an unknown name
        reason = " ".join(str(error).split()).split(". ")[0][:160] or type(error).__name__
        raise BadInput(f"{name}: cannot be downloaded ({reason})") from None
    return folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
