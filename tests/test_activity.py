from __future__ import annotations

import os
import threading

from ecanet.activity import Activity, activities, activity, watching


def test_activities_nest_and_announce_themselves() -> None:
    seen = []
    with (
        watching(lambda: seen.append([one.what for one in activities()])),
        activity("training", 3, "epochs"),
        activity("epoch 1", 10, "steps") as inner,
    ):
        inner.done = 4
        assert [one.what for one in activities()] == ["training", "epoch 1"]
        assert activities()[-1].done == 4
    assert seen == [["training"], ["training", "epoch 1"], ["training"], []]


def test_what_is_left_is_by_what_this_process_has_done() -> None:
    resumed = Activity("training", total=10, unit="epochs", done=6, first=4)
    assert resumed.seconds_left() is None, "it has just begun"
    resumed.began -= 100
    assert abs(resumed.seconds_left() - 200) < 1
    assert Activity("reading").seconds_left() is None


def test_other_threads_and_forked_processes_show_nothing() -> None:
    inside: list[int] = []

    def read() -> None:
        with activity("reading"):
            inside.append(len(activities()))

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert inside == [0]
    with activity("training"):
        child = os.fork()
        if not child:
            os._exit(len(activities()))
        assert os.waitpid(child, 0)[1] == 0
