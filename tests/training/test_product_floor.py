"""The floor of a step: what is counted, in which precision, and when."""

import pytest
import torch
from torch import nn

from training.fused import Targets, fused_softmax
from training.product_floor import ProductCounter, ProductFloor, product_rate


def test_counts_products_forward_and_backward_by_precision():
    layer = nn.Linear(5, 7)
    x = torch.randn(3, 5, requires_grad=True)
    with ProductCounter() as counter:
        layer(x).sum().backward()
        torch.bmm(torch.ones(2, 3, 4, dtype=torch.bfloat16), torch.ones(2, 4, 6, dtype=torch.bfloat16))
        torch.ones(9).exp()
    product = 2 * 3 * 5 * 7
    assert counter.flops == {torch.float32: 3 * product, torch.bfloat16: 2 * 2 * 3 * 4 * 6}, "y = x w, dx = dy w, dw = dy x"


def test_sees_inside_the_fused_loss():
    user, item = torch.randn(64, 16, requires_grad=True), torch.randn(32, 16, requires_grad=True)
    with ProductCounter() as counter:
        fused_softmax(user, item, 1.0, Targets(None, torch.arange(64) % 32, torch.ones(64))).backward()
    assert sum(counter.flops.values()) >= 3 * 2 * 64 * 32 * 16


def test_the_first_step_tells_the_floor_of_an_example():
    floor, done = ProductFloor(torch.device("cpu")), [0]
    assert floor.share(1, 1.0) == {}
    for examples in (10, 1000):
        with floor.counting(lambda: done[0]):
            torch.ones(256, 256) @ torch.ones(256, 256)
            done[0] += examples
    share = floor.share(10, 1.0)["train/product_floor_share"]
    assert 0.2 < share * product_rate(torch.float32) / (2 * 256**3) < 5, "the rate is measured twice here"
    assert floor.share(20, 1.0)["train/product_floor_share"] == pytest.approx(2 * share)


def test_steps_of_other_devices_are_left_alone():
    floor = ProductFloor(torch.device("cuda"))
    with floor.counting(lambda: 5):
        pass
    assert floor.share(1, 1.0) == {}
