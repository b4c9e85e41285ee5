"""Where the data sets are to be had, with which checksums, and how large they are as published."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

_LAKE = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"


@dataclass(frozen=True)
class RemoteFile:
    """A published file.

    Attributes:
        name: under the root.
        md5: of the file.
        url: where it can be downloaded from; None if it cannot by a program.
    """

    name: str
    md5: str
    url: str | None = None


@dataclass(frozen=True)
class Entry:
    """What is known of a data set.

    Attributes:
        how: where to get it, for people.
        files: what is published; the root needs all that have a URL.
        unpack: folder in the (one) file that must be unpacked beside it.
        published: classes and images of each split; None if that is not fixed or not known.
        total: images of all splits.
    """

    how: str
    files: tuple[RemoteFile, ...] = ()
    unpack: str | None = None
    published: dict[str, tuple[int, int | None]] | None = None
    total: int | None = None

    @property
    def downloadable(self) -> bool:
        """Whether a program can fetch it."""
        return bool(self.files) and all(file.url for file in self.files)


def _splits(*sizes: tuple[int, int | None]) -> dict[str, tuple[int, int | None]]:
    return dict(zip(("train", "validation", "test"), sizes))


@lru_cache(maxsize=1)
def catalogue() -> dict[str, Entry]:
    """Entries by the name of the data set; the variants of Omniglot by "omniglot:VARIANT"."""
    from torchvision.datasets import CIFAR100, Omniglot

    lake = {name: RemoteFile(f"{name}.zip", md5, f"{_LAKE}/{name}.zip") for name, md5 in Omniglot.zips_md5.items()}
    both = (lake["images_background"], lake["images_evaluation"])
    omniglot = "Omniglot (Lake et al. 2015, MIT licence): github.com/brendenlake/omniglot, folder python."
    return {
        "mini-imagenet": Entry(
            "miniImageNet consists of ImageNet's pictures, whose terms forbid a plain download: apply at "
            "image-net.org. The archive mini-imagenet.tar.gz with its three pickles, linked from "
            "github.com/renmengye/few-shot-ssl-public, has md5 b38f1eb4251fb9459ecc8e7febf9b2eb. Unpack it into the "
            "root, or put images/ with train.csv, val.csv and test.csv "
            "(github.com/twitter-research/meta-learning-lstm, data/miniImagenet) there.",
            (
                RemoteFile("mini-imagenet.tar.gz", "b38f1eb4251fb9459ecc8e7febf9b2eb"),
                RemoteFile("mini-imagenet-cache-train.pkl", "069993a77e65a83bbf8f8de4c9dcca68"),
                RemoteFile("mini-imagenet-cache-val.pkl", "f87ddf9b5211920dd73520274371eb6a"),
                RemoteFile("mini-imagenet-cache-test.pkl", "12158d649fd08945294de4ad38cda81d"),
            ),
            published=_splits((64, 38_400), (16, 9_600), (20, 12_000)),
        ),
        "tiered-imagenet": Entry(
            "tieredImageNet consists of ImageNet's pictures, whose terms forbid a plain download: apply at "
            "image-net.org. The archive tiered-imagenet.tar (12.9 GB, linked from "
            "github.com/renmengye/few-shot-ssl-public, on Google Drive under 1g1aIDy2Ar_MViF2gDXFYDBTR-HYecV07) has "
            "md5 e07e811b9f29362d159a9edd0d838c62. Unpack it into the root; or set the root to ImageNet's folder "
            "with train/ and one folder a class.",
            (RemoteFile("tiered-imagenet.tar", "e07e811b9f29362d159a9edd0d838c62"),),
            published=_splits((351, 448_695), (97, 124_261), (160, 206_209)),
        ),
        "cifar-fs": Entry(
            "CIFAR-FS is CIFAR-100 (169 MB) with another split: cs.toronto.edu/~kriz/cifar.html, the version for "
            "Python.",
            (RemoteFile(CIFAR100.filename, CIFAR100.tgz_md5, CIFAR100.url),),
            published=_splits((64, 38_400), (16, 9_600), (20, 12_000)),
        ),
        "cub": Entry(
            "CUB-200-2011 (1.2 GB; for research): data.caltech.edu/records/65de6-vp158, file CUB_200_2011.tgz.",
            (
                RemoteFile(
                    "CUB_200_2011.tgz",
                    "97eceeb196236b17998738112f37df78",
                    "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1",
                ),
            ),
            unpack="CUB_200_2011",
            published=_splits((100, None), (50, None), (50, None)),
            total=11_788,
        ),
        "omniglot:alphabets": Entry(omniglot, both, published=_splits((792, 15_840), (172, 3_440), (659, 13_180))),
        "omniglot:vinyals": Entry(omniglot, both, published=_splits((4112, 82_240), (688, 13_760), (1692, 33_840))),
        # checksums of the copies that were at hand; torchvision does not know these two
        "omniglot:small": Entry(
            omniglot,
            tuple(
                RemoteFile(f"images_background_{name}.zip", md5, f"{_LAKE}/images_background_{name}.zip")
                for name, md5 in (
                    ("small1", "e704a628b5459e08445c13499850abc4"),
                    ("small2", "b75a71a51d3b13f821f212756fe481fd"),
                )
            ),
            published=_splits((136, 2_720), (42, 840), (64, 1_280)),
        ),
        "folder": Entry("Your own pictures: set the root to a folder with one folder of pictures a class."),
        "glyphs": Entry("Rendered from fonts that come along: nothing to get."),
        "colour-glyphs": Entry("Rendered from fonts that come along: nothing to get."),
    }


def entry(name: str, variant: str | None = None) -> Entry | None:
    """What is known of a data set, if anything is."""
    if name == "omniglot":
        name = f"{name}:{variant or 'alphabets'}"
    return catalogue().get(name)
