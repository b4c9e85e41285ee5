"""Few-shot classification in the manner of scikit-learn (optional: ``pip install 'pyro-vsm[sklearn]'``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from pyro_vsm.choosing import AUTO, choose
from pyro_vsm.data.decode import fit_image, read_image
from pyro_vsm.data.images import ClassImages
from pyro_vsm.errors import UserError
from pyro_vsm.loading import load_model
from pyro_vsm.prediction import believe, encode

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import assert_all_finite, check_is_fitted, column_or_1d
except ImportError as error:
    raise UserError(
        "FewShotClassifier needs scikit-learn; install it with: pip install 'pyro-vsm[sklearn]'"
    ) from error


@dataclass(frozen=True)
class Uncertainty:
    """How unsure a prediction is, in nats, ``[n_images]`` each: ``total = removable + remaining``.

    Attributes:
        total: entropy of the class probabilities.
        removable: mutual information of label and prototypes, what more examples would remove.
        remaining: expected entropy, what would stay if the prototypes were known exactly.
    """

    total: NDArray[np.float64]
    removable: NDArray[np.float64]
    remaining: NDArray[np.float64]


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """Recognises classes from a few examples each, with a trained model that is not trained any further.

    Images are a sequence of paths, of PIL images or of arrays of any sizes, or one array: ``[n, H, W]``,
    ``[n, H, W, 1]``, ``[n, H, W, 3]``, ``[n, H, W, 4]`` (alpha over white), or ``[n, pixels]`` with ``image_shape``.
    Other sizes than the model's are scaled and cropped around the centre.

    Args:
        checkpoint: run folder, model file, pretrained name, or ``"auto"``: the pretrained model that tells the
            examples of the first call of ``fit`` or ``partial_fit`` apart best.
        samples: posterior samples that probabilities are averaged over.
        random_state: seed of the samples, a whole number; the same gives the same probabilities.
        device: auto, cpu or cuda.
        image_shape: height and width (and channels, last) of rows of pixels; None for the smallest
            square that holds them.
        pixel_range: values of black and white in arrays of floating-point numbers; those of whole numbers are 0, 255.

    Attributes:
        classes_: labels, sorted.
        n_examples_: number of examples of each class.
        n_features_in_: pixels of a row, where rows were given.
        model_: the few-shot model.
    """

    def __init__(
        self,
        checkpoint: str = AUTO,
        *,
        samples: int = 200,
        random_state: int = 0,
        device: str = "auto",
        image_shape: tuple[int, ...] | None = None,
        pixel_range: tuple[float, float] = (0.0, 1.0),
    ):
        self.checkpoint = checkpoint
        self.samples = samples
        self.random_state = random_state
        self.device = device
        self.image_shape = image_shape
        self.pixel_range = pixel_range

    def fit(self, X: Any, y: ArrayLike) -> FewShotClassifier:
        """Take in examples, in place of earlier ones.

        Args:
            X: images.
            y: their labels, numbers or strings.

        Raises:
            ValueError: images and labels that do not fit together, or values out of range or not finite.
            UserError: an image file that cannot be read, or a damaged checkpoint.
        """
        for name in ("classes_", "model_", "n_features_in_", "n_examples_", "_features"):
            self.__dict__.pop(name, None)
        labels = self._labels(X, y)
        return self._take(X, labels, np.unique(labels))

    def partial_fit(self, X: Any, y: ArrayLike, classes: ArrayLike | None = None) -> FewShotClassifier:
        """Add examples to those of earlier calls; labels may be new.

        Args:
            X, y: as in :meth:`fit`.
            classes: labels that y must be among; not needed.

        Raises:
            ValueError: as in :meth:`fit`, or a label that is not among ``classes``.
        """
        labels = self._labels(X, y)
        if classes is not None and not np.isin(labels, np.asarray(classes)).all():
            raise ValueError("y has labels that are not among classes; name all of them")
        return self._take(X, labels, np.union1d(getattr(self, "classes_", labels[:0]), labels))

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Class probabilities ``[n_images, n_classes]``, columns as in ``classes_``."""
        return self._believe(X)[0]

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable label of each image."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(1)]

    def predict_uncertainty(self, X: Any) -> Uncertainty:
        """How unsure the prediction of each image is, and how much of it more examples would remove."""
        p, information = self._believe(X)
        total = -np.sum(np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0), 1)
        removable = np.minimum(information, total)
        return Uncertainty(total, removable, total - removable)

    def _labels(self, X: Any, y: ArrayLike) -> NDArray[Any]:
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        labels = column_or_1d(y, warn=True)
        if labels.dtype.kind == "f":
            assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
        if len(labels) != _number(X):
            raise ValueError(f"X holds {_number(X)} images, but y {len(labels)} labels; give one label an image")
        return labels

    def _take(self, X: Any, labels: NDArray[Any], classes: NDArray[Any]) -> FewShotClassifier:
        pictures = self._pictures(X, first=not hasattr(self, "model_"))
        if not hasattr(self, "model_"):
            self._load(pictures, labels)
        features = encode(self.model_, self._sized(pictures)).cpu()
        earlier = dict(zip(getattr(self, "classes_", ()), getattr(self, "_features", ())))
        parts = []
        for label in classes:
            found = [earlier[label]] if label in earlier else []
            parts.append(torch.cat([*found, features[torch.from_numpy(labels == label)]]))
        self._features = parts
        self.classes_ = classes
        self.n_examples_ = np.array([len(p) for p in parts])
        return self

    def _load(self, pictures: Sequence[Any], labels: NDArray[Any]) -> None:
        checkpoint = self.checkpoint
        if checkpoint == AUTO:
            found, number = np.unique(labels, return_inverse=True)
            order = np.argsort(number, kind="stable")
            counts = torch.from_numpy(np.bincount(number))

            def examples_for(size: int, channels: int) -> ClassImages:
                images = _stack([pictures[i] for i in order], size, channels)
                return ClassImages(images, counts, tuple(map(str, range(len(found)))))

            checkpoint, _ = choose(examples_for, device=self.device)
        self.model_, _ = load_model(checkpoint, device=self.device)

    def _believe(self, X: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        check_is_fitted(self, "classes_")
        query = encode(self.model_, self._sized(self._pictures(X, first=False)))
        support = [f.to(query.device) for f in self._features]
        p, information = believe(self.model_, support, query, samples=self.samples, seed=self.random_state)
        p = p.double() / p.double().sum(1, keepdim=True)
        return p.numpy(), information.double().numpy()

    def _sized(self, pictures: Sequence[Any]) -> Tensor:
        backbone = self.model_.encoder.backbone
        return _stack(pictures, backbone.image_size, backbone.channels)

    def _pictures(self, X: Any, *, first: bool) -> Sequence[Any]:
        """Paths, PIL images, or uint8 arrays ``[H, W]`` or ``[H, W, 1, 3 or 4]``."""
        if isinstance(X, (str, Path)):
            raise ValueError("X is a single path; give a list of images")
        if isinstance(X, (list, tuple)) and X and all(isinstance(x, (str, Path, Image.Image)) for x in X):
            return X
        if isinstance(X, (list, tuple)) and X and all(np.ndim(x) >= 2 for x in X):
            return [self._bytes(np.asarray(x)) for x in X]  # of any sizes
        pixels = self._array(X, first)
        return list(self._bytes(pixels))

    def _array(self, X: Any, first: bool) -> NDArray[Any]:
        """``[n, H, W]`` or ``[n, H, W, channels]``; rows of pixels are put into their shape."""
        if hasattr(X, "iloc") or not hasattr(X, "dtype") or getattr(X, "ndim", 0) == 2 or hasattr(X, "toarray"):
            from sklearn.utils.validation import validate_data

            rows = validate_data(self, X, reset=first, dtype=None, ensure_min_samples=1)
            if rows.dtype == object:
                rows = rows.astype(np.float64)
            return self._shaped(rows)
        pixels = np.asarray(X)
        if pixels.ndim not in (3, 4) or len(pixels) == 0:
            raise ValueError(
                f"X has shape {list(pixels.shape)}; give [images, height, width], [images, height, width, channels] "
                "or rows of pixels. Reshape your data"
            )
        return pixels

    def _shaped(self, rows: NDArray[Any]) -> NDArray[Any]:
        n, pixels = rows.shape
        if self.image_shape is not None:
            if int(np.prod(self.image_shape)) != pixels or len(self.image_shape) not in (2, 3):
                raise ValueError(f"rows of {pixels} pixels do not fit image_shape={self.image_shape}")
            return rows.reshape(n, *self.image_shape)
        side = int(np.ceil(np.sqrt(pixels)))
        black = 0 if np.issubdtype(rows.dtype, np.integer) else self.pixel_range[0]
        full = np.full((n, side * side), black, dtype=rows.dtype)
        full[:, :pixels] = rows
        return full.reshape(n, side, side)

    def _bytes(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        """The values as uint8."""
        if np.iscomplexobj(pixels):
            raise ValueError("Complex data not supported: pixels are real numbers")
        if pixels.dtype == bool:
            return pixels.astype(np.uint8) * np.uint8(255)
        if np.issubdtype(pixels.dtype, np.integer):
            low, high, what = 0.0, 255.0, "whole numbers lie in 0 to 255"
        elif np.issubdtype(pixels.dtype, np.floating):
            (low, high), what = self.pixel_range, f"pixel_range is {self.pixel_range}"
        else:
            raise ValueError(f"X holds values of type {pixels.dtype}; give numbers, paths or PIL images")
        if not np.isfinite(pixels).all():
            raise ValueError("Input X contains NaN or infinity; pixels are finite numbers")
        if pixels.size and (pixels.min() < low or pixels.max() > high):
            raise ValueError(
                f"pixels run from {pixels.min()} to {pixels.max()}, but {what}; scale them or set pixel_range"
            )
        if (low, high) == (0.0, 255.0):
            return np.rint(pixels).astype(np.uint8)
        return np.rint((pixels - low) * (255 / (high - low))).astype(np.uint8)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags


def _number(X: Any) -> int:
    shape = getattr(X, "shape", None)
    if shape is None and not hasattr(X, "__len__"):
        shape = np.asarray(X).shape
    if shape is not None and len(shape) == 0:
        raise ValueError("X is a single value; Expected 2D array or more: a sequence of images")
    return int(shape[0]) if shape is not None else len(X)


def _stack(pictures: Sequence[Any], size: int, channels: int) -> Tensor:
    """Uint8 ``[n, channels, size, size]``."""
    return torch.stack([_tensor(p, size, channels) for p in pictures])


def _tensor(picture: Any, size: int, channels: int) -> Tensor:
    if isinstance(picture, (str, Path)):
        return read_image(picture, size, channels)
    if not isinstance(picture, Image.Image):
        if picture.ndim == 3 and picture.shape[-1] == 1:
            picture = picture[..., 0]
        if 0 in picture.shape or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,), (4,)):
            raise ValueError(
                f"an image has shape {list(picture.shape)}; give [height, width] or [height, width, channels] with "
                "1, 3 or 4 channels. Reshape your data"
            )
        picture = Image.fromarray(np.ascontiguousarray(picture))
    return fit_image(picture, size, channels)
