"""Jobs packed into memory: never over, and full while there is work. The law, and a real Ray's own count."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pack.workflows.sweep_placement import SNUG, Packing, Place, expected_seconds

GPU_MIB = 24 * 1024
PLACES = st.lists(st.tuples(st.integers(8_000, GPU_MIB), st.integers(1, 9)), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(PLACES, st.lists(st.tuples(st.integers(200, 8_000), st.integers(1, 50)), min_size=1, max_size=60), st.data())
def test_no_place_is_overcommitted_and_no_job_waits_that_fits(places, sized, data):
    packing = Packing([Place(str(n), None, mib, slots) for n, (mib, slots) in enumerate(places)])
    for number, (mib, _) in enumerate(sized):
        packing.add(number, mib)
    running, count, done = {}, 0, []
    while packing.waiting or running:
        for job, share in packing.openings():
            packing.hold(count, share)
            running[count], count = job, count + 1
        for worker, job in running.items():
            assert SNUG * packing.shares[worker].mib <= sized[job][0] <= packing.shares[worker].mib
        for place in packing.places:
            held = [share.mib for share in packing.shares.values() if share.place == place]
            assert sum(held) <= place.mib and len(held) <= place.slots
            if packing.waiting and len(held) < place.slots:
                assert packing.free_mib(place) < min(packing.waiting)
        worker = data.draw(st.sampled_from(sorted(running)))
        done.append(running.pop(worker))
        if (job := packing.next_for(worker)) is not None:
            running[worker] = job
    assert sorted(done) == list(range(len(sized))) and not packing.shares


def test_a_24_gb_gpu_is_filled_to_more_than_80_percent_while_there_is_work():
    packing = Packing([Place("a", 0, GPU_MIB, 32)])
    for number in range(240):
        packing.add(number, (1_900, 2_300, 4_700, 9_100)[number % 4])
    least, chance = 1.0, random.Random(0)
    while True:
        for job, share in packing.openings():
            packing.hold(("worker", job), share)
        if len(packing.waiting) < 4:  # of the last jobs, which may be too large for what is left
            break
        least = min(least, 1 - packing.free_mib(packing.places[0]) / GPU_MIB)
        packing.next_for(chance.choice(list(packing.shares)))
    assert least > 0.8


@pytest.mark.slow
def test_ray_s_own_count_of_a_24_gb_machine_s_memory_is_never_over_and_over_80_percent(tmp_path):
    """Jobs that sleep, by the sweep's own code; one fails, and a worker is lost."""
    script = Path(__file__).with_name("sweep_packing.py")
    ran = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["done"] == 47 and told["failed"] == {"5": "no photos"}
    assert [name for name, tries in told["tries"].items() if tries != "1"] == ["7"]
    used = [mib for mib, waiting, workers in told["samples"] if waiting and workers]
    assert len(used) > 30 and max(mib for mib, *_ in told["samples"]) <= GPU_MIB
    assert sum(used) / len(used) > 0.8 * GPU_MIB


def test_at_most_so_many_workers_as_were_asked_for():
    packing = Packing([Place("a", 0, GPU_MIB, 32)], most=2)
    for number in range(5):
        packing.add(number, 100)
    for job, share in packing.openings():
        packing.hold(job, share)
    assert len(packing.shares) == 2


def test_the_expected_time_is_that_of_the_packing():
    one = [Place("a", None, 1_000, 1)]
    assert expected_seconds([(900, 10.0)] * 4, Packing(one), 5.0) == 45.0
    two = [Place("a", None, 1_000, 2)]
    assert expected_seconds([(500, 10.0)] * 4, Packing(two), 5.0) == 25.0
    assert expected_seconds([(900, 10.0), (100, 1.0), (100, 2.0)], Packing(two), 5.0) == 15.0
