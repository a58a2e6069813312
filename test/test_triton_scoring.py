"""The GPU's scoring kernel: on a GPU where there is one, and everywhere in Triton's interpreter, which runs it on the CPU."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch
from torch.nn import functional as F
from triton_interpreter import CAPABILITIES, registers_and_spills, run_interpreted

from vl4ad_model import triton_scoring
from vl4ad_model.network.upsampling import Guide
from vl4ad_model.scoring_reference import guided_logits

NORMALIZED = -1
# queries, masks' height and width, output size, classes, merged classes (or the normalized score), type
CASES = [
    (20, 6, 10, (24, 40), 5, 0, "float32"),
    (37, 4, 21, (13, 81), 21, 9, "float32"),
    (16, 2, 70, (5, 277), 3, 2, "float16"),
    (40, 4, 8, (1, 3), 40, 10, "float32"),
    (1, 1, 1, (4, 4), 1, 0, "float16"),
    (50, 2, 35, (6, 140), 60, 60, "float32"),
    (50, 6, 10, (24, 40), 21, 0, "float32"),
    (40, 4, 21, (13, 81), 23, NORMALIZED, "float32"),
    (16, 6, 10, (24, 40), 19, NORMALIZED, "float16"),
]
GUIDED = (1, 3, 6, 7, 8)  # cases that are tried along an image, too
TOLERANCE = 13.0
LOW = 6  # the case whose masks are nearly empty: what is named there is decided by tiny numbers
UNCLAIMED = 0.1


def case(number: int, device: str):
    count, h, w, size, classes, merged, kind = CASES[number]
    generator = torch.Generator().manual_seed(number)
    masks = (torch.randn(count, h, w, generator=generator) * 4 - 16 * (number == LOW)).to(getattr(torch, kind))
    labels_rows = torch.rand(classes, count, generator=generator)
    anomaly_rows = torch.rand(merged, count, generator=generator) if merged > 0 else None
    if merged == NORMALIZED:
        known = torch.rand(count, generator=generator)
        anomaly_rows = torch.stack((known, 1 - known))
    moved = [None if each is None else each.to(device) for each in (masks, labels_rows, anomaly_rows)]
    return (*moved, max(1, classes - 1), size)


def guide_of(number: int, device: str) -> Guide:
    """An image as large as the masks or as the maps, with large and small differences of colour."""
    generator = torch.Generator().manual_seed(number)
    (_, h, w, size, *_), whole = CASES[number], number % 2
    height, width = (4 * h, 4 * w) if whole else size
    image = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    image[: height // 2] //= 16
    return Guide(image.permute(2, 0, 1).to(device), TOLERANCE)


def expected(masks, labels_rows, anomaly_rows, known, size, guide=None):
    """The equations in float64: upsample the logits, sigmoid, combine."""
    if guide is None:
        logits = F.interpolate(masks.double()[None], scale_factor=4, mode="bilinear", align_corners=False)
        scores = logits[0, :, : size[0], : size[1]].sigmoid()
    else:
        scores = guided_logits(masks.cpu(), guide.image.cpu(), size, guide.tolerance).sigmoid().to(masks.device)
    classes = torch.einsum("cn,nhw->chw", labels_rows.double(), scores)
    of_known = classes[:known] if anomaly_rows is None else torch.einsum("cn,nhw->chw", anomaly_rows.double(), scores)
    return classes, of_known


def agrees(number: int, device: str, score, *, guided: bool = False) -> None:
    arguments = case(number, device)
    normalized = CASES[number][5] == NORMALIZED
    guide = guide_of(number, device) if guided else None
    labels, anomaly = score(*arguments, unclaimed=UNCLAIMED if normalized else None, guide=guide)
    classes, of_known = expected(*arguments, guide)
    surprise = 1 - of_known[0] / (of_known.sum(dim=0) + UNCLAIMED) if normalized else 1 - of_known.amax(dim=0)
    assert labels.dtype == torch.uint8 and anomaly.dtype == torch.float32 and labels.shape == anomaly.shape == arguments[-1]
    assert torch.allclose(anomaly.double(), surprise, atol=1e-4)
    # Where two classes are as likely, either is right.
    chosen = classes.gather(0, labels.long()[None])[0]
    assert torch.allclose(chosen, classes.amax(dim=0), rtol=1e-5, atol=0)


INTERPRETED = """
import torch
import test_triton_scoring as here
from vl4ad_model import triton_scoring
for number in range(len(here.CASES)):
    for guided in (False, True)[: 1 + (number in here.GUIDED)]:
        launch = lambda *arguments, **score: triton_scoring.launch(*arguments, 128, pairs=64, **score)
        here.agrees(number, "cpu", launch, guided=guided)
# The first of equally likely classes, as everywhere else.
masks = torch.zeros((16, 2, 2))
labels, anomaly = triton_scoring.launch(masks, torch.full((5, 16), 1 / 16), None, 5, (8, 8), 32, pairs=16)
assert labels.eq(0).all() and torch.allclose(anomaly, torch.full((8, 8), 0.5))
"""


def test_the_kernel_computes_the_equations_in_tritons_interpreter():
    run_interpreted(INTERPRETED)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_kernel_compiles_for_gpus_that_are_not_here_and_keeps_to_their_registers(capability, guided, tmp_path):
    """With up to 32 rows of words, which is what almost everybody has; a kernel that spills writes its numbers to memory."""
    pytest.importorskip("triton")
    types = {"masks": "*fp16", "matrix": "*fp32", "labels": "*u8", "anomaly": "*fp32", "unclaimed": "fp32", "tolerance": "fp32"}
    types |= {"image": "*u8", "colours": "*fp32"} if guided else {"image": "*fp16", "colours": "*fp16"}
    pairs = triton_scoring._GUIDED_PAIRS if guided else triton_scoring._PAIRS
    constants = {"GUIDED": guided, "ROWS": 32, "PAIRS": pairs, "QUERIES": triton_scoring._QUERIES}
    options = {"num_warps": triton_scoring._WARPS, "num_stages": triton_scoring._STAGES}
    kernel = triton_scoring.kernels().score_maps
    registers, spilled = registers_and_spills(kernel, types, constants, capability, tmp_path, **options)
    assert registers <= 168 and spilled == 0


def test_without_a_gpu_the_kernel_does_not_apply():
    assert triton_scoring.score(*case(0, "cpu")) is None


@pytest.mark.gpu
@pytest.mark.parametrize("number", range(len(CASES)))
def test_the_kernel_computes_the_equations_on_the_gpu(number):
    settle()
    agrees(number, "cuda", triton_scoring.score)
    agrees(number, "cuda", triton_scoring.score, guided=True)


@pytest.mark.gpu
def test_words_that_come_and_go_compile_nothing():
    """One kernel for up to 32 rows, one for 64, one for 128; more is done without. No image waits for a compiler but the first."""
    settle()
    before = len(compiled_kernels())
    for classes in (1, 15, 16, 17, 32, 33, 48, 64, 65, 127, 128):
        for queries in (16, 17):
            masks, rows = torch.randn(queries, 8, 16, device="cuda"), torch.rand(classes, queries, device="cuda")
            _, anomaly = triton_scoring.score(masks, rows, None, classes, (32, 64))
            _, of_known = expected(masks, rows, None, classes, (32, 64))
            assert torch.allclose(anomaly.double(), 1 - of_known.amax(dim=0), atol=1e-4)
            if classes > 2:
                of_both = rows[: classes - 2], rows[:2], 1, (32, 64)
                triton_scoring.score(masks, *of_both, unclaimed=UNCLAIMED)
                for size in ((32, 64), (30, 61)):
                    image = torch.zeros((3, *size), dtype=torch.uint8, device="cuda")
                    triton_scoring.score(masks, *of_both[:-1], (29, 61), unclaimed=UNCLAIMED, guide=Guide(image, 13))
    assert len(compiled_kernels()) == before
    assert triton_scoring.score(masks, torch.rand(129, queries, device="cuda"), None, 129, (32, 64)) is None


def settle() -> None:
    """Compile everything, as an engine has after its first images."""
    wait_for_kernels()  # those that another test began
    for kind, guided in itertools.product((torch.float32, torch.float16), (False, True)):
        assert triton_scoring.usable(torch.device("cuda:0"), kind, 32, guided=guided)
    wait_for_kernels()


def wait_for_kernels() -> None:
    for thread in threading.enumerate():
        if thread.name == "scoring kernels":
            thread.join()


def compiled_kernels() -> list:
    caches = triton_scoring.kernels().score_maps.device_caches
    return [key for device in caches.values() for key in device[0]]
