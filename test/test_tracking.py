"""Things over time: when an area is the same thing as one before, and what it is called then."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vl4ad_model.detections import UNNAMED, Detection
from vl4ad_model.tracking import MAX_GAP_S, MAX_PAUSE_S, Tracker

TENTH = 0.1


def area(left, top=100, width=40, height=30, shares=((UNNAMED, 1.0),), pixels=None):
    return Detection((left, top, width, height), pixels or width * height, 0.9, tuple(shares))


def follow(*images, step=TENTH, tracker=None):
    """The number of the first area of each image; None where there is none."""
    tracker = tracker or Tracker()
    tracked = [tracker.update(list(areas), index * step) for index, areas in enumerate(images)]
    return [areas[0].number if areas else None for areas in tracked]


def test_a_thing_that_comes_nearer_keeps_its_number_and_counts_its_images():
    tracker = Tracker()
    things = [tracker.update([area(300 - 6 * n, 200 + 4 * n, 20 + 3 * n, 15 + 2 * n)], n * TENTH)[0] for n in range(12)]
    assert {thing.number for thing in things} == {1}
    assert [thing.images for thing in things] == list(range(1, 13))
    assert things[-1].box == (234, 244, 53, 37) and things[-1].score == 0.9


def test_a_thing_that_passes_fast_is_expected_where_it_is_going():
    """From the third image on its boxes do not overlap any more, only the expected ones do."""
    assert set(follow(*([area(left)] for left in (0, 30, 75, 120, 165)))) == {1}
    assert follow([area(0)], [area(45)]) == [1, 2], "without a speed, boxes apart are two things"
    assert set(follow(*([area(left)] for left in (0, 30, 75, 120, 120)))) == {1}, "it may stop"


def test_what_is_missed_for_a_moment_is_not_forgotten_and_what_is_gone_is():
    assert follow([area(50)], [], [], [area(50)]) == [1, None, None, 1]
    gone = round(MAX_GAP_S / TENTH) + 1
    assert follow([area(50)], *[[]] * gone, [area(50)])[-1] == 2
    assert follow([area(50)], [], [area(50)], step=1.0) == [1, None, 1], "one image, however slow the camera"
    assert follow([area(50)], [], [], [area(50)], step=1.0)[-1] == 2
    assert follow(*[[area(50)]] * 3, [], [area(50)], step=1.0)[-1] == 1


def test_by_a_clock_that_stands_still_what_is_gone_is_forgotten():
    assert follow([area(50)], [], [area(50)], step=0.0) == [1, None, 1]
    assert follow([area(50)], [], [], [area(50)], step=0.0) == [1, None, None, 2]


def test_after_a_pause_and_when_time_goes_back_everything_is_new():
    tracker = Tracker()
    assert [tracker.update([area(50)], time_s)[0].number for time_s in (10, 10, 10.1, 10.1 + MAX_PAUSE_S, 13, 5, 8)] == [
        1, 1, 1, 1, 1, 2, 3,
    ]  # fmt: skip


def test_each_of_two_things_goes_on_with_what_overlaps_it_most():
    tracker = Tracker()
    tracker.update([area(100), area(145)], 0.0)
    (first, second, third) = tracker.update([area(141), area(104), area(120, 300)], TENTH)
    assert (first.number, second.number, third.number) == (2, 1, 3)


def test_of_a_thing_that_breaks_apart_one_part_keeps_the_number():
    tracker = Tracker()
    tracker.update([area(100, width=90)], 0.0)
    large, small = tracker.update([area(100, width=60), area(165, width=25)], TENTH)
    assert large.number == 1 and small.number == 2


def test_a_name_of_one_image_does_not_stay_and_a_lasting_one_comes_through():
    tracker = Tracker()
    tyre, sofa = (("tyre", 0.8), (UNNAMED, 0.2)), (("sofa", 0.9), (UNNAMED, 0.1))
    names = [
        tracker.update([area(50, shares=shares)], n * TENTH)[0].name for n, shares in enumerate([tyre] * 3 + [sofa] + [tyre] * 2)
    ]
    assert names == ["tyre"] * 6
    names = [tracker.update([area(50, shares=sofa)], 1 + n * TENTH)[0].name for n in range(6)]
    assert names[0] == "tyre" and names[-1] == "sofa"


def test_what_is_near_counts_more_than_what_is_far():
    tracker = Tracker()
    far, near = area(100, width=6, height=5, shares=[("box", 1.0)]), area(90, 95, 30, 25, shares=[("tyre", 1.0)])
    tracker.update([far], 0.0)
    tracker.update([far], TENTH)
    (thing,) = tracker.update([area(96, 97, 15, 12, shares=[("tyre", 1.0)])], 2 * TENTH)
    assert thing.number == 1 and thing.name == "tyre"
    (thing,) = tracker.update([near], 3 * TENTH)
    assert dict(thing.shares)["tyre"] > 0.95


def test_new_words_keep_numbers_and_forget_what_others_named():
    tracker = Tracker()
    for n in range(5):
        tracker.update([area(50, shares=[("tyre", 1.0)])], n * TENTH, version=1)
    (thing,) = tracker.update([area(50)], 5 * TENTH, version=2)
    assert (thing.number, thing.images, thing.shares) == (1, 6, ((UNNAMED, 1.0),))


BOXES = st.tuples(st.integers(0, 80), st.integers(0, 80), st.integers(1, 40), st.integers(1, 40))
SHARES = st.sampled_from([((UNNAMED, 1.0),), (("tyre", 0.6), (UNNAMED, 0.4)), (("sofa", 0.5), ("tyre", 0.5))])
AREAS = st.lists(st.builds(lambda box, shares: area(*box, shares=shares), BOXES, SHARES), max_size=8)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(AREAS, st.sampled_from((-1.0, 0.0, 0.05, 0.4, 3.0))), max_size=10))
def test_whatever_comes_areas_stay_what_they_are_and_numbers_are_told_apart(images):
    tracker, time_s, known = Tracker(), 100.0, {}
    for areas, step in images:
        time_s += step
        tracked = tracker.update(areas, time_s)
        assert [(each.box, each.pixels, each.score) for each in tracked] == [(each.box, each.pixels, each.score) for each in areas]
        numbers = [each.number for each in tracked]
        assert len(set(numbers)) == len(numbers) and all(number > 0 for number in numbers)
        for each in tracked:
            assert each.images == known.get(each.number, 0) + 1
            known[each.number] = each.images
            assert sum(share for _, share in each.shares) == pytest.approx(1)
            assert list(each.shares) == sorted(each.shares, key=lambda pair: -pair[1])
        again = tracker.update(areas, time_s)
        assert sorted(each.number for each in again) == sorted(numbers), "the same picture again shows the same things"
        known = {**known, **{each.number: each.images for each in again}}
