"""What the backbone sees of a lesson's pictures, kept on disk until the lesson is over.

A lesson that is killed, or that fails on the way, leaves what was seen behind; the next one that shows the
backbone the same batches takes it from there. What was seen depends on nothing else, so both lessons end in
the same bits.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ..compiling import cache_folder
from ..features.extractor import Extractor, Features
from ..intake import Picture, without_border

KEPT_DAYS = 7  # of a lesson that nobody took up again
LEAST_FREE = 2**31  # bytes that stay free on the disk: the line itself has to be saved there as well
SUFFIX = ".features"
_DIGEST = hashlib.sha256().digest_size


class Sight:
    """A backbone that is shown the pictures of one lesson.

    Files lie in the user's folder for caches, each named by a hash of all that its features depend on: the
    pixels, the backbone, and what runs it. Where they cannot be written nothing is kept, and nothing is
    missing. What earlier lessons left behind, and nobody took up again, goes when the next one begins.

    Attributes:
        extractor: the backbone.
    """

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self._folder = cache_folder("lessons")
        self._kept: set[Path] = set()
        _clear(self._folder)

    def see(self, pictures: Sequence[Picture]) -> Features:
        """Features of a batch as every step of a line takes them, patches in 16 bits."""
        path = self._folder / f"{self._key(pictures)}{SUFFIX}"
        seen = _read(path)
        if seen is None:
            seen = self.extractor.see(self.extractor.stack([picture.pixels for picture in pictures]))
            seen = replace(seen, patches=seen.patches.half())
            self._keep(path, seen)
        self._kept.add(path)
        seen = seen.to(self.extractor.device)
        return replace(seen, patches=without_border(in_32_bits(seen).patches, pictures).half())

    def see_each(self, pictures: Sequence[Picture]) -> list[Features]:
        """The same picture by picture, in 32 bits, as an inspection takes it."""
        return in_32_bits(self.see(pictures)).split()

    def forget(self) -> None:
        """The lesson is over: deletes what is kept of it."""
        for path in self._kept:
            with suppress(OSError):
                path.unlink()
        self._kept.clear()

    def _key(self, pictures: Sequence[Picture]) -> str:
        extractor = self.extractor
        runs = [extractor.runtime, str(extractor.device), torch.get_num_threads()]
        told = hashlib.sha256(json.dumps([extractor.describe(), runs], sort_keys=True).encode())
        for picture in pictures:
            told.update(np.ascontiguousarray(picture.pixels).data)
        return told.hexdigest()[:32]

    def _keep(self, path: Path, seen: Features) -> None:
        data = save({"patches": seen.patches.cpu(), "pooled": seen.pooled.cpu()})
        beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # they are of somebody's products
            if shutil.disk_usage(path.parent).free - len(data) < LEAST_FREE:
                return
            with open(beside, "wb") as file:
                file.write(hashlib.sha256(data).digest())
                file.write(data)
            beside.replace(path)
        except OSError:
            with suppress(OSError):
                beside.unlink()


def in_32_bits(seen: Features) -> Features:
    """The same numbers, wider."""
    return replace(seen, patches=seen.patches.float())


def _read(path: Path) -> Features | None:
    """What is kept there; None for nothing, and for what is damaged."""
    try:
        with open(path, "rb") as file:
            digest, data = file.read(_DIGEST), file.read()
        if hashlib.sha256(data).digest() != digest:
            return None
        tensors = load(data)
        return Features(tensors["patches"], tensors["pooled"])
    except (OSError, SafetensorError, KeyError):
        return None


def _clear(folder: Path) -> None:
    """Deletes what has been kept for too long."""
    oldest = time.time() - KEPT_DAYS * 24 * 3600
    with suppress(OSError):
        for path in folder.glob(f"*{SUFFIX}*"):
            with suppress(OSError):  # another process was faster
                if path.stat().st_mtime < oldest:
                    path.unlink()
