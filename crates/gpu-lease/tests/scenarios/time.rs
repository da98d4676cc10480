//! What happens by time alone: heartbeats, waits, holds, grace windows.

use crate::world::{memory, whole, world};

#[test]
fn a_remote_holder_lives_by_heartbeats() {
    world()
        .device("gpu-0", 24)
        .ask(memory("vllm", 20).ttl(60))
        .at(50)
        .renew("vllm")
        .at(109)
        .is("vllm", "active on gpu-0")
        .at(110)
        .is("vllm", "reclaiming after expired, verifying")
        .renew("vllm")
        .was_refused("the lease has ended: expired")
        .at(115)
        .is("vllm", "ended: expired")
        .free("gpu-0", 24);
}

#[test]
fn a_page_is_freed_by_delay_and_never_signalled() {
    world()
        .device("gpu-0", 24)
        .ask(memory("page", 20).page().ttl(10))
        .at(10)
        .is("page", "reclaiming after expired, verifying")
        .at(15)
        .is("page", "ended: expired")
        .signalled(&[]);
}

#[test]
fn a_process_that_lives_is_not_ended_for_a_missed_heartbeat() {
    world()
        .device("gpu-0", 24)
        .ask(memory("train", 20).process().ttl(10))
        .at(3600)
        .is("train", "active on gpu-0, unresponsive")
        .free("gpu-0", 4)
        .renew("train")
        .is("train", "active on gpu-0")
        .at(3700)
        .is("train", "active on gpu-0, unresponsive")
        .process_gone("train")
        .is("train", "ended: process_gone")
        .free("gpu-0", 24);
}

#[test]
fn a_late_word_about_an_earlier_grant_ends_nothing() {
    world()
        .device("gpu-0", 24)
        .ask(memory("train", 20).process())
        .stale_process_gone("train")
        .is("train", "active on gpu-0");
}

#[test]
fn a_wait_ends_without_a_grant() {
    world()
        .device("gpu-0", 24)
        .ask(whole("now"))
        .ask(whole("patient").waits(30))
        .at(29)
        .is("patient", "waiting")
        .at(30)
        .is("patient", "ended: wait_timeout")
        .release("now")
        .at(31)
        .is("patient", "ended: wait_timeout");
}

#[test]
fn a_wait_that_is_over_is_not_granted_by_a_release_that_is_told_first() {
    world()
        .device("gpu-0", 24)
        .ask(whole("now"))
        .ask(whole("patient").waits(30))
        .clock(30_000)
        .read()
        .release("now")
        .is("patient", "ended: wait_timeout")
        .free("gpu-0", 24);
}

#[test]
fn a_heartbeat_of_the_queue_is_heard_behind_a_release() {
    world()
        .device("gpu-0", 24)
        .ask(whole("now"))
        .ask(whole("late").ttl(30).queued())
        .ask(whole("forgotten").ttl(30).queued())
        .clock(30_000)
        .release("now")
        .renew("late")
        .at(30)
        .are(&[("late", "waiting"), ("forgotten", "ended: expired")]);
}

#[test]
fn a_queued_request_lives_by_renewals() {
    world()
        .device("gpu-0", 24)
        .ask(whole("now"))
        .ask(whole("kept").ttl(60).queued())
        .ask(whole("forgotten").ttl(60).queued())
        .at(50)
        .renew("kept")
        .at(60)
        .are(&[("kept", "waiting"), ("forgotten", "ended: expired")])
        .at(110)
        .is("kept", "ended: expired");
}

#[test]
fn a_hold_ends_after_its_longest_time_however_alive() {
    world()
        .device("gpu-0", 24)
        .ask(memory("train", 20).max_hold(100).ttl(30))
        .at(29)
        .renew("train")
        .at(58)
        .renew("train")
        .at(87)
        .renew("train")
        .at(99)
        .is("train", "active on gpu-0")
        .at(100)
        .is("train", "reclaiming after max_hold, verifying");
}

#[test]
fn the_hold_counts_from_the_grant_not_from_the_request() {
    world()
        .device("gpu-0", 24)
        .ask(whole("now"))
        .ask(whole("next").max_hold(10).waits(600))
        .at(100)
        .release("now")
        .at(101)
        .is("next", "active on gpu-0")
        .at(110)
        .is("next", "active on gpu-0")
        .at(111)
        .is("next", "reclaiming after max_hold, verifying");
}

#[test]
fn within_a_grace_window_nothing_that_is_held_ends_by_time() {
    world()
        .device("gpu-0", 24)
        .device("gpu-1", 24)
        .ask(memory("beats", 1).ttl(10))
        .ask(memory("silent", 1).ttl(10))
        .ask(memory("long", 1).max_hold(10))
        .ask(memory("asked", 1))
        .drain("asked", Some(10))
        .ask(whole("queued").devices(2).ttl(10).queued())
        .clock(11_000)
        .grace_until(40)
        .at(39)
        .are(&[
            ("beats", "active on gpu-0"),
            ("silent", "active on gpu-0"),
            ("long", "active on gpu-0"),
            ("asked", "draining on gpu-0 until 10s by operator"),
            ("queued", "waiting"),
        ])
        .renew("beats")
        .renew("queued")
        .at(40)
        .are(&[
            ("beats", "active on gpu-0"),
            ("silent", "reclaiming after expired, verifying"),
            ("long", "reclaiming after max_hold, verifying"),
            ("asked", "reclaiming after revoked, verifying"),
            ("queued", "waiting"),
        ])
        .at(49)
        .are(&[
            ("beats", "reclaiming after expired, verifying"),
            ("queued", "ended: expired"),
        ]);
}

#[test]
fn a_grace_window_is_never_cut_short() {
    world()
        .device("gpu-0", 24)
        .ask(memory("silent", 1).ttl(10))
        .grace_until(40)
        .grace_until(20)
        .at(39)
        .is("silent", "active on gpu-0");
}

#[test]
fn who_does_not_wait_still_waits_two_seconds_for_a_reading() {
    let mut late = world();
    late.device("gpu-0", 24)
        .without_polls()
        .clock(10_000)
        .ask(memory("vllm", 1))
        .asked_to_read(true)
        .is("vllm", "waiting")
        .waits_because(
            "vllm",
            "needs 1 GiB on one device; gpu-0 waits for a fresh reading of its memory",
        )
        .waits_by("vllm", "awaiting_reading")
        .next_deadline_is(Some(12))
        .at(12)
        .is("vllm", "ended: wait_timeout");
    world()
        .device("gpu-0", 24)
        .without_polls()
        .clock(10_000)
        .ask(memory("vllm", 1))
        .clock(11_000)
        .read()
        .is("vllm", "active on gpu-0");
}

#[test]
fn a_reading_that_shows_no_room_answers_who_does_not_wait() {
    world()
        .device("gpu-0", 24)
        .without_polls()
        .clock(10_000)
        .ask(memory("vllm", 20))
        .is("vllm", "waiting")
        .foreign_mib("gpu-0", 8 << 10)
        .read()
        .is("vllm", "ended: wait_timeout");
}

#[test]
fn an_ended_lease_is_known_for_a_day() {
    let day = 24 * 3600;
    world()
        .device("gpu-0", 24)
        .ask(memory("vllm", 1))
        .at(100)
        .release("vllm")
        .next_deadline_is(Some(100 + day))
        .at(99 + day)
        .is("vllm", "ended: released")
        .at(100 + day)
        .is("vllm", "unknown")
        .next_deadline_is(None);
}

#[test]
fn more_than_so_many_ended_leases_are_forgotten_early() {
    let mut world = world();
    world.device("gpu-0", 24).without_polls();
    for n in 0..=gpu_lease::ENDED_KEPT_MAX {
        let name = format!("job-{n}");
        world.ask(memory(&name, 1)).release(&name);
    }
    world
        .clock(1)
        .expire()
        .is("job-0", "unknown")
        .is("job-1", "ended: released");
    assert_eq!(world.books().leases().count(), gpu_lease::ENDED_KEPT_MAX);
}
