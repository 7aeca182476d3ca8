"""A process that has part of a model: `python -m effllm.models.follower CHECKPOINT RANK PORT DEVICE...`."""

import sys
from pathlib import Path

from effllm.models.together import follow, part_of


def main() -> None:
    """Join the others, load this process's part, and generate with them."""
    checkpoint, rank, port, *devices = sys.argv[1:]
    with part_of(Path(checkpoint), int(rank), int(port), devices) as model:
        follow(model, devices[int(rank)])


if __name__ == "__main__":
    main()
