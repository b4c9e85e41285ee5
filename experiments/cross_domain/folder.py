"""A folder of pictures such as somebody may have: python experiments/cross_domain/folder.py symbols|shapes FOLDER

Writes FOLDER/CLASS/NN.png, 30 classes of 20 pictures of 84x84 pixels, of the kinds in own_pictures/pictures.py.
"""

from __future__ import annotations

import random
import runpy
import sys
from pathlib import Path

from PIL import Image

PICTURES, SIDE = 20, 84


def main(kind: str, target: str, seed: int = 0) -> None:
    """Write the folder."""
    rng = random.Random(seed)
    classes = runpy.run_path(str(Path(__file__).parents[1] / "own_pictures" / "pictures.py"))[kind]()
    for name, draw in classes.items():
        (Path(target) / name).mkdir(parents=True, exist_ok=True)
        for i in range(PICTURES):
            draw(rng, i).resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(Path(target) / name / f"{i:02}.png")
    print(f"Wrote {len(classes)} classes of {PICTURES} pictures to {target}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
