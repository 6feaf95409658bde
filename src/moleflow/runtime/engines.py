"""What runs a network on the processor: ONNX Runtime or OpenVINO, behind one function."""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
from collections.abc import Callable, Mapping
from types import ModuleType

import numpy as np

ENGINES = ("onnxruntime", "openvino")  # the faster one first
AT_ONCE = 8  # images: what an engine needs for more it keeps for as long as it lives

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


def open_network(engine: str, network: Network, threads: int) -> Run:
    """A network to be run on arrays by the names of its inputs; others are ignored. Threads may share it.

    Args:
        engine: one of `ENGINES`.
        network: as bytes: of a file OpenVINO would take weights as they lie there whenever it needs them.
        threads: of the processor.

    Raises whatever the engine raises.
    """
    return _OPENERS[engine](network, threads)


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
