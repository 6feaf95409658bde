"""What runs a network on the processor: ONNX Runtime or OpenVINO, behind one function."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

ENGINES = ("onnxruntime", "openvino")  # the faster one first

Run = Callable[[Mapping[str, np.ndarray]], "list[np.ndarray]"]


def installed(engine: str) -> bool:
    """Whether an engine could be imported."""
    return importlib.util.find_spec(engine) is not None


def open_network(engine: str, network: bytes | Path, threads: int) -> Run:
    """A network to be run on arrays by the names of its inputs; others are ignored. Threads may share it.

    Args:
        engine: one of `ENGINES`.
        network: ONNX, or a file of OpenVINO's own form.
        threads: of the processor.

    Raises whatever the engine raises.
    """
    return _OPENERS[engine](network, threads)


def _open_onnxruntime(network: bytes | Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    # Threads that go on turning after a pass take the processor from what is computed next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    given = network if isinstance(network, bytes) else str(network)
    session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return lambda inputs: session.run(None, {name: inputs[name] for name in names})


def _open_openvino(network: bytes | Path, threads: int) -> Run:
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(network), "CPU", settings)
    ports = [one.names for one in compiled.inputs]  # each may have further names, of its own making
    requests = threading.local()  # a request serves one caller at a time

    def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        given = {i: inputs[next(iter(names & inputs.keys()))] for i, names in enumerate(ports)}
        return list(requests.own.infer(given).values())

    return run


_OPENERS: dict[str, Callable[[bytes | Path, int], Run]] = {
    "onnxruntime": _open_onnxruntime,
    "openvino": _open_openvino,
}
