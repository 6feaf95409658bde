"""What a line says, what it is made of and what lies in its folder, comparable to the bit."""

import dataclasses
import json

import torch

from moleflow.store.index import OWN_HASH, hash_of

THREE = ("gear", "wood", "bottle_cap")
ALTERED = (6, 6)  # in so many ways are two images of a lesson taken again
TWINS = ("\u0390", "\u03aa\u0301")  # iota with two marks, small and capital, which has no letter of its own


def said(predictions):
    """All that predictions say, comparable to the bit."""
    return [
        (
            p.task,
            p.known,
            p.pred_score,
            p.p_value,
            p.threshold,
            p.pred_label,
            p.image_size,
            p.routing,
            *maps(p),
        )
        for p in predictions
    ]


def maps(prediction):
    return prediction.patch_map.dtype, prediction.patch_map.tobytes(), prediction.anomaly_map.tobytes()


def base_tensors(detector):
    return {name: tensor.clone() for name, tensor in detector._line.base.state_dict().items()}


def tensors(detector, name):
    return {key: tensor.clone() for key, tensor in detector._line.products[name].tensors().items()}


def same(some, others):
    return some.keys() == others.keys() and all(torch.equal(some[key], others[key]) for key in some)


def by_task(detector, images, names=THREE):
    return {name: said(detector.predict(images, task=name)) for name in names}


def snapshot(detector, images):
    """What must not move while nothing is learned."""
    return (
        detector.tasks,
        {n: dataclasses.replace(detector.info(n), version=None) for n in detector.tasks},
        [
            by_task(detector, images, detector.tasks),
            said(detector.predict(images)) if detector.tasks else None,
        ],
    )


def files(folder):
    """Inode, time and bytes of every file, so that writing the same again shows."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def write_index(path, document):
    """An index with a hash of what it says now, as if the library had written it so."""
    path.write_text(json.dumps(document | {OWN_HASH: hash_of(document)}))
