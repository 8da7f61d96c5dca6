"""Several threads prepare, compile and step optimizers at once."""

from __future__ import annotations

import threading
import time
from typing import Any

import torch
from torch import nn

import baoc_compile
from baoc_compile.state.state_tensor import StateTensor

STEPS = 3


def train(number: int, prepared: bool) -> list[torch.Tensor]:
    """Parameters after a few steps; every number is another optimizer, so that none takes another's trace."""
    generator = torch.Generator().manual_seed(number)
    parameters = [nn.Parameter(torch.randn(64 + number, 70, generator=generator)) for _ in range(2)]
    make = (torch.optim.AdamW, torch.optim.RMSprop, torch.optim.SGD)[number % 3]
    optimizer = make(parameters, lr=0.01)
    if prepared:
        baoc_compile.prepare(optimizer, plan="8bit")
    step = torch.compile(optimizer.step, backend="baoc", options={"plan": "8bit"})
    for _ in range(STEPS):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        step()
    return [p.detach() for p in parameters]


def test_threads_that_compile_at_once_give_the_bits_of_one():
    alone = {}
    for number in range(6):
        torch._dynamo.reset()
        alone[number] = train(number, number % 2 == 0)
    torch._dynamo.reset()
    found: dict[int, Any] = {}

    def work(number: int) -> None:
        try:
            found[number] = train(number, number % 2 == 0)
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, expected in alone.items():
        assert not isinstance(found[number], BaseException), found[number]
        assert all(torch.equal(a, b) for a, b in zip(found[number], expected, strict=True)), number


class Slow(torch.optim.SGD):
    """Reading its step takes a while."""

    began = threading.Event()

    def step(self, closure=None):
        self.began.set()
        time.sleep(0.2)
        return super().step(closure)


def test_a_step_that_is_read_does_not_keep_another_thread_from_reading_its_own():
    """An unprepared step in another thread ran as written at its first call, with no word."""
    slow = Slow([nn.Parameter(torch.randn(64, 70))], lr=0.01, momentum=0.9)
    parameter = nn.Parameter(torch.randn(64, 70))
    parameter.grad = torch.randn(64, 70)
    optimizer = torch.optim.SGD([parameter], lr=0.01, momentum=0.9)
    step = torch.compile(optimizer.step, backend="baoc", options={"plan": "8bit"})
    reading = threading.Thread(target=baoc_compile.prepare, args=(slow,), kwargs={"plan": "8bit"})
    reading.start()
    assert Slow.began.wait(10)
    step()
    reading.join()
    assert isinstance(optimizer.state[parameter]["momentum_buffer"], StateTensor)
