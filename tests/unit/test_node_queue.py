"""The queue of the node: leases, tries, and what comes while a job is worked on."""

from __future__ import annotations

import threading

import pytest

from normscan.node.queue import LeaseLostError, Queue


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "queue.sqlite", lease=30)


def test_a_series_is_one_job_and_is_due_when_nothing_more_comes(queue):
    queue.arrive("a", "CT1", 10, quiet=100)
    queue.arrive("a", "CT1", 10, quiet=100)
    assert queue.claim("score", "w") is None
    queue.arrive("b", "CT1", 5, quiet=0)
    job = queue.claim("score", "w")
    assert (job.key, job.instances, job.tries, job.state) == ("b", 1, 1, "scoring")
    assert queue.counts() == {"waiting": 1, "scoring": 1} and queue.size() == 25


def test_two_workers_never_hold_one_job(queue):
    for k in range(200):
        queue.arrive(f"k{k}", "CT1", 1, quiet=0)
    taken = []

    def work(name):
        while (job := queue.claim("score", name)) is not None:
            taken.append(job.key)
            queue.advance(job, "end", outcome="done")

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(taken) == len(set(taken)) == 200
    assert queue.counts() == {"done": 200}


def test_the_job_of_a_dead_process_is_taken_again_and_the_dead_can_not_end_it(tmp_path):
    queue = Queue(tmp_path / "q.sqlite", lease=0.0)
    queue.arrive("a", "CT1", 1, quiet=0)
    first = queue.claim("score", "dead")
    second = queue.claim("score", "alive")
    assert second.key == first.key and second.tries == 2
    with pytest.raises(LeaseLostError):
        queue.advance(first, "end", outcome="done")
    assert not queue.renew(first) and queue.renew(second)
    queue.advance(second, "end", outcome="done")
    assert queue.find("a").state == "done"


def test_a_released_job_is_free_at_once(queue):
    queue.arrive("a", "CT1", 1, quiet=0)
    job = queue.claim("score", "score-17-x")
    queue.release(18)
    assert queue.claim("score", "other") is None
    queue.release(17)
    assert queue.claim("score", "other").tries == 2
    with pytest.raises(LeaseLostError):
        queue.advance(job, "end", outcome="done")


def test_what_comes_while_it_is_scored_lets_it_be_scored_again(queue):
    queue.arrive("a", "CT1", 1, quiet=0)
    job = queue.claim("score", "w")
    queue.arrive("a", "CT1", 1, quiet=0)
    queue.advance(job, "send", outcome="done")
    again = queue.claim("score", "w")
    assert again.round == 2 and again.tries == 1 and again.outcome == ""
    queue.advance(again, "end", outcome="done")
    queue.arrive("a", "CT1", 1, quiet=0)  # a late one
    assert queue.find("a").state == "waiting" and queue.claim("score", "w").round == 3


def test_a_job_given_back_waits(queue):
    queue.arrive("a", "CT1", 1, quiet=0)
    queue.later(queue.claim("score", "w"), 100)
    assert queue.claim("score", "w") is None and queue.find("a").state == "waiting"


def test_after_a_stop_senders_get_time_to_go_on(queue):
    queue.arrive("a", "CT1", 1, quiet=0)
    queue.postpone(100)
    assert queue.claim("score", "w") is None


def test_own_results_end_at_once_and_again_leaves_them(queue):
    queue.leave_out("own", "PACS", "a result of normscan")
    queue.leave_out("own", "PACS", "a result of normscan")
    assert queue.counts() == {"refused": 1} and queue.again("refused") == 0
    queue.arrive("a", "CT1", 1, quiet=0)
    queue.advance(queue.claim("score", "w"), "end", outcome="failed", reason="x")
    assert queue.again("failed") == 1 and queue.claim("score", "w").tries == 1


def test_a_transaction_that_fails_changes_nothing(queue):
    queue.arrive("a", "CT1", 1, quiet=0)
    job = queue.claim("score", "w")
    with pytest.raises(RuntimeError), queue.transaction():
        queue.advance_within(job, "end", outcome="done")
        raise RuntimeError
    assert queue.find("a").state == "scoring"


def test_counts_outlive_a_connection(queue):
    queue.count("received", "kept")
    queue.count("received", "kept", 2)
    assert Queue(queue.path).tallies() == {("received", "kept"): 3}
