"""Features on disk: the backbone sees every image once, whatever is learned from it afterwards."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from filelock import FileLock

from ..errors import ImageError
from .extractor import Extractor, Features

BATCH = 8
Progress = Callable[[int, int], None]  # images done, images in all


class FeatureCache:
    """Features of lists of images: patches in float16, a memory-mapped file for each list, and pooled ones.

    A file's name is a hash over the backbone (weights, layers, image size) and the images' names, contents
    and alterations: other images or another backbone never meet old features, and images that were moved or
    copied find theirs. Files are written beside their place and renamed, so that a killed run leaves none
    half done.

    Args:
        folder: where the files lie; made when it is missing.
        extractor: the backbone. Its 32-bit features are rounded to 16 bits for every reader alike.
    """

    def __init__(self, folder: str | Path, extractor: Extractor) -> None:
        self.folder, self.extractor = Path(folder), extractor
        self.folder.mkdir(parents=True, exist_ok=True)

    def features(
        self,
        sources: Sequence[tuple[Path, str]],
        read: Callable[[int], np.ndarray],
        *,
        progress: Progress | None = None,
    ) -> Features:
        """Features of N images, patches (N, h, w, D) float16; written first where they are not on disk yet.

        Args:
            sources: path and alteration ("" for none) of every image, for the file's name. An alteration may
                depend on the image's own name.
            read: image i, uint8 (h, w, 3) RGB at the extractor's size.
            progress: told while features are computed.

        Raises:
            ImageError: from `read`, or a feature that 16 bits cannot hold.
        """
        path = self.folder / f"{self._key(sources)}.npy"
        if not path.exists():
            with FileLock(f"{path}.lock"):
                if not path.exists():
                    for left in path.parent.glob(f"{path.stem}.*.part"):  # of a process that was killed
                        left.unlink()
                    self._write(path, len(sources), read, progress)
        pooled = np.load(_pooled_path(path), allow_pickle=False)
        return Features(
            torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False)), torch.from_numpy(pooled)
        )

    def _key(self, sources: Sequence[tuple[Path, str]]) -> str:
        told = hashlib.sha256(json.dumps(self.extractor.describe(), sort_keys=True).encode())
        for path, alteration in sources:
            found = path.stat()
            content = _content(path.absolute(), found.st_size, found.st_mtime_ns)
            told.update(json.dumps([path.name, content, alteration]).encode())
        return told.hexdigest()[:32]

    def _write(
        self, path: Path, count: int, read: Callable[[int], np.ndarray], progress: Progress | None
    ) -> None:
        extractor = self.extractor
        part, beside = (path.with_suffix(f".{os.getpid()}.{kind}") for kind in ("part", "pooled.part"))
        try:
            shape = (count, *extractor.grid, extractor.dim)
            pooled = np.empty((count, extractor.pooled_dim), np.float32)
            with open(part, "wb") as file:  # not mapped: a full disk would end the process without a word
                _write_header(file, shape)
                for start in range(0, count, BATCH):
                    images = [read(i) for i in range(start, min(start + BATCH, count))]
                    seen = extractor.see(extractor.stack(images))
                    found = seen.patches.cpu().half()
                    if not torch.isfinite(found).all():
                        raise ImageError(
                            f"images {start} to {start + len(images) - 1}: expected features that 16 bits "
                            "can hold, found larger ones or none"
                        )
                    file.write(found.contiguous().numpy().data)
                    pooled[start : start + len(images)] = seen.pooled.cpu().numpy()
                    if progress:
                        progress(start + len(images), count)
            with open(beside, "wb") as file:
                np.save(file, pooled, allow_pickle=False)
            os.replace(beside, _pooled_path(path))
            os.replace(part, path)  # last: where it is, both are
        finally:
            part.unlink(missing_ok=True)
            beside.unlink(missing_ok=True)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Of an array of that shape in 16 bits, as `np.save` writes it."""
    described = np.lib.format.dtype_to_descr(np.dtype(np.float16))
    np.lib.format.write_array_header_1_0(file, {"descr": described, "fortran_order": False, "shape": shape})


@lru_cache(maxsize=100_000)
def _content(path: Path, size: int, changed: int) -> str:
    """A hash of a file's bytes; read once in a process while size and time of change stay."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _pooled_path(path: Path) -> Path:
    return path.with_suffix(".pooled.npy")
