"""CUB-200-2011 (Wah et al. 2011): 11 788 photographs of 200 species of birds, split 100/50/50 as Chen et al. 2019 do.

Under the root lies `CUB_200_2011/images/` as the archive unpacks, or `images/`, or the 200 class folders themselves.
Whole photographs are used: the shorter side is scaled to the image size and the centre is cut out.
"""

from __future__ import annotations

from pyro_vsm.data.class_files import existing_folder, find_classes
from pyro_vsm.data.folder import load_class_files
from pyro_vsm.data.images import Splits
from pyro_vsm.data.sources import SOURCES, DataConfig
from pyro_vsm.data.split_lists import split_names
from pyro_vsm.errors import UserError

_NAME = "cub"
_SIZE = 84


def load_cub(config: DataConfig) -> Splits:
    """Loads CUB-200-2011.

    Raises:
        UserError: if the folder or a class is missing, or an image is bad.
    """
    root = existing_folder(config.root, f"data set {_NAME!r}")
    splits = split_names(_NAME)
    for folder in (root / "CUB_200_2011" / "images", root / "images", root):
        classes = find_classes(folder) if folder.is_dir() else {}
        missing = sorted(c for names in splits.values() for c in names if c not in classes)
        if len(missing) == sum(map(len, splits.values())):
            continue
        if missing:
            raise UserError(
                f"{folder} lacks {len(missing)} of the 200 classes, {missing[0]} for one: unpack it again"
            )
        files = {part: {c: classes[c] for c in names} for part, names in splits.items()}
        return load_class_files(_NAME, root, files, config, config.image_size or _SIZE)
    raise UserError(
        f"{root} holds no CUB-200-2011: looked for CUB_200_2011/images/ with 200 class folders; "
        "'pyro-vsm data prepare cub' says where to get it"
    )


SOURCES[_NAME] = load_cub
