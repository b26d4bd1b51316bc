"""A network taken elsewhere: as ONNX, as a program of torch.export, or as one page that a browser opens.

Each takes raw images (N, 1, 28, 28) in [0, 1] and gives probabilities (N, 10); its answers to all test images are
compared with the network's before anybody gets the file.
"""

import base64
import hashlib
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_pl.data import to_float
from mnist_pl.data.digits import BOX, CENTRE, SIDE
from mnist_pl.models import DigitClassifier, Ensemble
from mnist_pl.models.looks import mean, say_mean
from mnist_pl.reading.ink import STROKE
from mnist_pl.storage import one_line

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "html": ".html"}  # by format
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime")}  # packages, by format
TOLERANCE = 1e-4  # in a probability: what the order of float32 sums may change, many times over
AT_ONCE = 250  # images
PAGE = Path(__file__).with_name("export.html")
INPUT, OUTPUT = "images", "probabilities"

Answer = Callable[[Tensor], Tensor]  # (N, 1, 28, 28) in [0, 1] -> (N, 10), by what is in the file
Writer = Callable[[DigitClassifier, dict[str, Any], Tensor, Tensor], tuple[bytes, Answer]]


def check_format(name: str) -> None:
    """Raises ValueError where it is none, or needs a package that is not installed."""
    if name not in SUFFIXES:
        raise ValueError(f"format={name}: must be one of {', '.join(SUFFIXES)}")
    missing = [package for package in NEEDED.get(name, ()) if find_spec(package) is None]
    if missing:
        raise ValueError(f'format={name}: needs {", ".join(missing)}; pip install -e ".[export]"')


def probabilities(model: nn.Module, images: Tensor) -> Tensor:  # (N, 28, 28) uint8 -> (N, 10) float32
    """Raises ValueError where the network's answer is of another shape."""
    with torch.inference_mode():
        answer = torch.cat([Probabilities(model)(to_float(batch)) for batch in images.split(AT_ONCE)])
    if answer.dim() != 2 or len(answer) != len(images):
        raise ValueError(f"the network answers {len(images)} images with the shape {tuple(answer.shape)}")
    return answer


def export(
    model: DigitClassifier, format: str, images: Tensor, expected: Tensor, facts: dict[str, Any]
) -> tuple[bytes, Tensor]:
    """The file's content, and its probabilities (N, 10), which are within TOLERANCE of `expected`, those of `model`.

    `images` (N, 28, 28) uint8; `facts`, plain values, are written into the file. Raises ValueError where the format
    cannot express the network, or the file's answers differ from the network's.
    """
    writers: dict[str, Writer] = {"onnx": _as_onnx, "torch": _as_program, "html": _as_page}
    content, answer = writers[format](model, facts, images, expected)
    with torch.inference_mode():
        parts = [answer(to_float(batch)) for batch in (*images.split(AT_ONCE), images[:1])]  # of any number of images
    answers, alone = torch.cat(parts[:-1]), parts[-1]
    difference = float(torch.cat([answers - expected, alone - expected[:1]]).abs().max())
    if not difference <= TOLERANCE:  # nor NaN
        raise ValueError(
            f"format={format}: its probabilities differ from the network's by {difference:.2g}; not written"
        )
    return content, answers


class Probabilities(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:  # (N, 1, 28, 28) in [0, 1] -> (N, 10)
        return self.model(images).float().softmax(dim=1)


def _program(model: DigitClassifier, format: str) -> torch.export.ExportedProgram:
    """For any number of images, without the paths of this machine, which PyTorch notes at each step."""
    contiguous = Probabilities(model).eval().to(memory_format=torch.contiguous_format)
    sizes = ({0: torch.export.Dim("N")},)
    try:
        with _quiet():
            program = torch.export.export(contiguous, (torch.zeros(2, 1, SIDE, SIDE),), dynamic_shapes=sizes)
    except Exception as error:  # what torch.export meets in somebody's code
        name, reason = type(model).__name__, _first_line(error)
        raise ValueError(f"format={format}: torch.export cannot follow {name} ({reason})") from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            for note in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn"):
                node.meta.pop(note, None)
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters tell of each step of theirs, and warn of what the comparison of the answers would find."""
    for name in ("onnxscript", "onnx_ir", "torch._export"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"), redirect_stderr(io.StringIO()):
        yield


def _first_line(error: BaseException) -> str:
    return shorten(one_line(str(error).strip().partition("\n")[0]) or type(error).__name__, 200, placeholder=" …")


def _as_onnx(model: DigitClassifier, facts: dict[str, Any], *_: Tensor) -> tuple[bytes, Answer]:
    import onnx
    import onnxruntime

    program = _program(model, "onnx")
    try:
        with _quiet():
            made = torch.onnx.export(program, input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False)
    except Exception as error:  # an operation that ONNX has not
        reason = _first_line(error.__cause__ or error)
        raise ValueError(f"format=onnx: cannot express {type(model).__name__} ({reason})") from error
    assert made is not None
    proto = made.model_proto
    values = [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]
    for part in (proto.graph, *proto.graph.node, *proto.graph.initializer, *values):
        del part.metadata_props[:]  # the exporter's notes to itself
    for value in values:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = "N"
    proto.producer_name, proto.producer_version = facts["made_by"].split()
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
    onnx.helper.set_model_props(proto, texts)
    onnx.checker.check_model(proto)
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _as_program(model: DigitClassifier, facts: dict[str, Any], *_: Tensor) -> tuple[bytes, Answer]:
    file = io.BytesIO()
    program = _program(model, "torch")
    with _quiet():
        torch.export.save(program, file, extra_files={"metadata.json": json.dumps(facts, indent=2)})
        file.seek(0)
        read_again = torch.export.load(file).module()
    return file.getvalue(), read_again


# The page. Its script knows the layers that are named here, by `kind`.


def _as_page(model: DigitClassifier, facts: dict[str, Any], images: Tensor, expected: Tensor) -> tuple[bytes, Answer]:
    together: list[Any] = [model]  # networks, whose mean the page takes
    if isinstance(model, Ensemble):
        if model.vote != "mean":
            raise ValueError(
                f"format=html: a page has the mean of what networks say, and this ensemble has vote={model.vote}; "
                "format=onnx may do"
            )
        together = list(model.net)
    weights: list[np.ndarray] = []
    members = []
    for one in together:
        shifts = [part.shifts for part in {id(part): part for part in (model, one)}.values() if part.shifts]
        members.append({"mean": one.mean, "std": one.std, "shifts": shifts, "layers": _layers(one, weights)})
    network = {
        **facts,
        "members": members,
        "weights": _base64(np.concatenate(weights).astype("<f4").tobytes()),
        # With which a browser finds out whether it computes what PyTorch does:
        "example": {"pixels": _base64(images[0].numpy().tobytes()), OUTPUT: expected[0].tolist()},
        # What MNIST's digits look like:
        "form": {"side": SIDE, "box": BOX, "centre": CENTRE, "stroke": sum(STROKE) / 2, "tolerance": TOLERANCE},
    }
    page = PAGE.read_text(encoding="utf-8")
    hashes = {}
    for tag in ("script", "style"):
        (inline,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        hashes[f"{tag}-hash"] = "sha256-" + _base64(hashlib.sha256(inline.encode()).digest())
    for name, value in {**hashes, "network": json.dumps(network).replace("<", "\\u003c")}.items():
        page = page.replace("{{" + name + "}}", value)
    (written,) = re.findall(r'<script type="application/json" id="network">(.*?)</script>', page, re.DOTALL)
    return page.encode(), lambda images: _run(json.loads(written), images)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _layers(model: DigitClassifier, weights: list[np.ndarray]) -> list[dict[str, Any]]:
    """What the page's script has to do, in order, with where each layer's weights begin, once added to `weights`."""
    name = type(model).__name__
    own = any(getattr(type(model), name) is not getattr(DigitClassifier, name) for name in ("forward", "look"))
    if own or type(model.net) is not nn.Sequential:
        raise ValueError(
            f"format=html: {name} is not a plain sequence of layers after the normalisation; format=onnx may do"
        )

    def keep(tensor: Tensor) -> int:
        start = sum(map(len, weights))
        weights.append(tensor.detach().float().contiguous().flatten().numpy())
        return start

    layers: list[dict[str, Any]] = []
    waiting = list(model.net)
    while waiting:
        layer = waiting.pop(0)
        if type(layer) is nn.Sequential:
            waiting[:0] = layer
        elif not isinstance(layer, nn.Identity | nn.Dropout | nn.Dropout2d):  # which do nothing when it answers
            flat = any(before["kind"] == "flatten" for before in layers)
            described = _describe(layer, flat, keep)
            if described is None:
                shown = one_line(layer) if not list(layer.children()) else type(layer).__name__
                raise ValueError(f"format=html: has no layer as {shown} of {name}; format=onnx may do")
            layers.append(described)
    return layers


def _describe(layer: nn.Module, flat: bool, keep: Callable[[Tensor], int]) -> dict[str, Any] | None:
    """None where the page's script has no such layer."""
    if type(layer) is nn.ReLU:
        return {"kind": "relu"}
    if type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
        return {"kind": "flatten"}
    if type(layer) is nn.Linear and flat:
        affine = {"outputs": layer.out_features, "weight": keep(layer.weight), "bias": keep(_bias(layer))}
        return {"kind": "linear", **affine}
    if type(layer) is nn.Conv2d and (layer.groups, layer.dilation, layer.padding_mode) == (1, (1, 1), "zeros"):
        if isinstance(layer.padding, str):
            return None
        sizes = {"kernel": layer.kernel_size, "stride": layer.stride, "padding": layer.padding}
        affine = {"weight": keep(layer.weight), "bias": keep(_bias(layer))}
        return {"kind": "conv", "outputs": layer.out_channels, **sizes, **affine}
    if type(layer) is nn.MaxPool2d and _pair(layer.dilation) == (1, 1) and not layer.ceil_mode:
        sizes = {"kernel": _pair(layer.kernel_size), "stride": _pair(layer.stride), "padding": _pair(layer.padding)}
        return {"kind": "maxpool", **sizes}
    if type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d) and layer.running_var is not None:
        # Not folded into the convolution: a maximum lies between the two, and the factor may be negative.
        known = {name: tensor.double() for name, tensor in layer.state_dict().items()}
        factor = (known["running_var"] + layer.eps).rsqrt() * known.get("weight", 1.0)
        shift = known.get("bias", 0.0) - known["running_mean"] * factor
        return {"kind": "scale", "outputs": layer.num_features, "weight": keep(factor), "bias": keep(shift)}
    return None


def _bias(layer: nn.Linear | nn.Conv2d) -> Tensor:
    return torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias


def _pair(size: int | tuple[int, ...]) -> tuple[int, ...]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _run(network: dict[str, Any], images: Tensor) -> Tensor:  # (N, 1, 28, 28) in [0, 1] -> (N, 10)
    """What the page's script does, from what is written in the page."""
    weights = torch.frombuffer(bytearray(base64.b64decode(network["weights"])), dtype=torch.float32)

    def kept(layer: dict[str, Any], name: str, *shape: int) -> Tensor:
        return weights[layer[name] :][: int(np.prod(shape))].view(shape)

    def say(member: dict[str, Any], shifts: list[int], images: Tensor) -> Tensor:  # -> (N, 10) log probabilities
        if shifts:
            return say_mean(partial(say, member, shifts[1:]), images, shifts[0])
        return _logits(member, kept, images).log_softmax(dim=1)

    return mean(say(member, member["shifts"], images) for member in network["members"]).exp()


def _logits(member: dict[str, Any], kept: Callable[..., Tensor], images: Tensor) -> Tensor:
    values = (images - member["mean"]) / member["std"]
    for layer in member["layers"]:
        outputs = layer.get("outputs", 0)
        match layer["kind"]:
            case "relu":
                values = values.relu()
            case "flatten":
                values = values.flatten(1)
            case "linear":
                weight = kept(layer, "weight", outputs, values.shape[1])
                values = F.linear(values, weight, kept(layer, "bias", outputs))
            case "conv":
                weight = kept(layer, "weight", outputs, values.shape[1], *layer["kernel"])
                values = F.conv2d(values, weight, kept(layer, "bias", outputs), layer["stride"], layer["padding"])
            case "maxpool":
                values = F.max_pool2d(values, layer["kernel"], layer["stride"], layer["padding"])
            case "scale":
                shape = (outputs, *[1] * (values.dim() - 2))
                values = values * kept(layer, "weight", *shape) + kept(layer, "bias", *shape)
    return values
