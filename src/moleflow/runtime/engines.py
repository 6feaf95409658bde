"""What runs a network on the processor: ONNX Runtime or OpenVINO, behind one function."""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np

ENGINES = ("onnxruntime", "openvino")  # the faster one first
# Images of a pass: what an engine needs for more it keeps for as long as it lives. ONNX Runtime takes as long
# for each of eight as for one; OpenVINO takes less where they are small.
AT_ONCE = {"onnxruntime": 1, "openvino": 8}

Run = Callable[[Mapping[str, np.ndarray]], "list[np.ndarray]"]
Network = bytes | tuple[bytes, bytes]  # ONNX, or OpenVINO's own form: what it computes, and its weights

# ONNX Runtime reports to its maker as soon as it is imported, unless told before. What stands beside a belt
# talks to nobody; who wants it to sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def installed(engine: str) -> bool:
    """Whether an engine could be imported. A folder that an uninstalled one left behind is none."""
    found = importlib.util.find_spec(engine)
    return found is not None and found.origin is not None


def imported(engine: str) -> ModuleType:
    """An engine's package. Raises whatever importing it raises."""
    return importlib.import_module(engine)


class Running:
    """A network that runs; threads may share it.

    Args:
        engine: one of `ENGINES`.
        network: as bytes: of a file OpenVINO would take weights as they lie there whenever it needs them.
        threads: of the processor.

    Raises whatever the engine raises.
    """

    def __init__(self, engine: str, network: Network, threads: int) -> None:
        self._engine, self._network, self._threads = engine, network, threads
        self._run = _OPENERS[engine](network, threads)
        self._opening = threading.Lock()
        self._abreast: tuple[Run, ThreadPoolExecutor] | None = None

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """All outputs for arrays by the names of the network's inputs; others are ignored."""
        return self._run(inputs)

    def of_images(self, images: np.ndarray) -> list[np.ndarray]:
        """All outputs for the input "images" (B, …), at least one, of a network that sees each by itself.

        Where there are images for all threads each thread takes one after the other: a layer of one image is
        so little work that threads which share it mostly wait for each other. What comes out is the same.
        """
        at_once = AT_ONCE[self._engine]
        beside = len(images) - len(images) % self._threads if at_once == 1 and self._threads > 1 else 0
        parts: list[list[np.ndarray]] = []
        if beside:
            run, pool = self._side_by_side()
            parts += pool.map(lambda i: run({"images": images[i : i + 1]}), range(beside))
        for start in range(beside, len(images), at_once):
            parts.append(self._run({"images": images[start : start + at_once]}))
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def _side_by_side(self) -> tuple[Run, ThreadPoolExecutor]:
        """The network on one thread, and as many of them; opened when it is first needed."""
        with self._opening:
            if self._abreast is None:
                run = _OPENERS[self._engine](self._network, 1)
                self._abreast = run, ThreadPoolExecutor(self._threads, "images")
            return self._abreast


def _open_onnxruntime(network: Network, threads: int) -> Run:
    onnxruntime = imported("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    # Threads that go on turning after a pass take the processor from what is computed next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return lambda inputs: session.run(None, {name: inputs[name] for name in names})


def _open_openvino(network: Network, threads: int) -> Run:
    openvino = imported("openvino")
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    parts = network if isinstance(network, tuple) else (network,)
    compiled = core.compile_model(core.read_model(*parts), "CPU", settings)
    ports = [one.names for one in compiled.inputs]  # each may have further names, of its own making
    requests = threading.local()  # a request serves one caller at a time

    def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        given = {i: inputs[next(iter(names & inputs.keys()))] for i, names in enumerate(ports)}
        return list(requests.own.infer(given).values())

    return run


_OPENERS: dict[str, Callable[[Network, int], Run]] = {
    "onnxruntime": _open_onnxruntime,
    "openvino": _open_openvino,
}
