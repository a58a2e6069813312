"""Frames may be worked on at once; what comes out keeps their order."""

import random
import threading
import time

import pytest

from vl4ad_ros.worker import NewestFrameWorker


def test_frames_are_worked_on_at_once_and_come_out_in_the_order_in_which_they_were_taken():
    together, r = threading.Barrier(3, timeout=20), random.Random(1)
    begun, ended, woken = [], [], []

    def work(source, number):
        begun.append(number)
        if number < 3:
            together.wait()  # passes only when three frames are worked on
        time.sleep(r.choice((0.0, 0.002, 0.01)))
        worker.await_turn()
        ended.append(number)

    admitted = []
    worker = NewestFrameWorker(
        work, on_error=pytest.fail, on_wake=woken.append, admit=lambda frame: (admitted.append(frame), frame)[1], threads=3
    )
    for number in range(40):
        worker.offer(f"camera {number}", number)
    worker.start()
    deadline = time.monotonic() + 30
    while len(ended) < 40 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert worker.stop(20)
    assert sorted(begun) == list(range(40)) and ended == admitted[:40]
    # Before a frame that had no older one beside it, and only in their order.
    assert woken and woken == sorted(woken, key=admitted.index)


@pytest.mark.parametrize("rate", [1e-10, 1e-6, 0.001])
def test_the_first_frame_never_waits_and_another_rate_holds_at_once(rate):
    """However low the rate, and however short a time the machine has been running."""
    done = []
    worker = NewestFrameWorker(lambda source, number: done.append(number), on_error=pytest.fail)
    worker.limit_rate(rate)
    worker.start()

    def wait_for(numbers):
        deadline = time.monotonic() + 10
        while done != numbers and time.monotonic() < deadline:
            time.sleep(0.005)
        assert done == numbers

    worker.offer("camera", 1)
    wait_for([1])
    worker.offer("camera", 2)
    time.sleep(0.1)
    assert done == [1]
    worker.limit_rate(50)
    wait_for([1, 2])
    assert worker.stop(10)


def test_a_poke_waits_for_frames_that_were_taken_before_it():
    release, entered, order = threading.Event(), threading.Event(), []

    def work(source, frame):
        entered.set()
        release.wait(20)
        order.append(frame)

    worker = NewestFrameWorker(
        work, on_error=pytest.fail, on_wake=lambda admitted: order.append("woken") if admitted is None else None, threads=2
    )
    worker.start()
    worker.offer("camera", "frame")
    assert entered.wait(20)
    worker.poke()
    time.sleep(0.1)
    assert order == []
    release.set()
    deadline = time.monotonic() + 20
    while len(order) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert worker.stop(20) and order == ["frame", "woken"]


def test_a_frame_that_fails_keeps_no_other_from_its_turn():
    failed, ended = [], []

    def work(source, frame):
        if frame == "bad":
            time.sleep(0.05)
            raise ValueError(frame)
        worker.await_turn()
        ended.append(frame)

    worker = NewestFrameWorker(work, on_error=failed.append, threads=2)
    worker.offer("left", "bad")
    worker.offer("right", "good")
    worker.start()
    deadline = time.monotonic() + 20
    while not (failed and ended) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert worker.stop(20) and [str(error) for error in failed] == ["bad"] and ended == ["good"]
