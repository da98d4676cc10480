//! Who is served first, who may pass, and who is refused.

use gpu_lease::{EventKind, QueueOrder};

use crate::world::{Edit, memory, whole, world, world_by};

fn classes(edit: &mut Edit) {
    edit.class("batch", 0);
    edit.class("interactive", 100);
}

#[test]
fn a_higher_class_goes_first_and_within_a_class_the_earlier() {
    world_by(classes)
        .device("gpu-0", 24)
        .ask(whole("now"))
        .ask(whole("batch-1").class("batch").waits(600))
        .ask(whole("batch-2").class("batch").waits(600))
        .ask(whole("chat-1").class("interactive").waits(600))
        .ask(whole("chat-2").class("interactive").waits(600))
        .queue_is(&["chat-1", "chat-2", "batch-1", "batch-2"])
        .release("now")
        .at(1)
        .is("chat-1", "active on gpu-0")
        .queue_is(&["chat-2", "batch-1", "batch-2"]);
}

#[test]
fn fifo_knows_no_classes() {
    world_by(|edit| {
        classes(edit);
        edit.policy.queue.order = QueueOrder::Fifo;
    })
    .device("gpu-0", 24)
    .ask(whole("now"))
    .ask(whole("batch").class("batch").waits(600))
    .ask(whole("chat").class("interactive").waits(600))
    .queue_is(&["batch", "chat"]);
}

#[test]
fn waiting_raises_the_priority_by_one_step_at_a_time() {
    let mut world = world_by(|edit| {
        edit.class("low", 0);
        edit.class("high", 2);
    });
    world
        .device("gpu-0", 24)
        .ask(whole("now"))
        .ask(whole("old").class("low").waits(7200))
        .at(1199)
        .ask(whole("new").class("high").waits(7200))
        .queue_is(&["new", "old"])
        .at(1200)
        .queue_is(&["old", "new"])
        // The newer one ages as well; the older stays ahead by arrival or by a step.
        .at(1800)
        .queue_is(&["old", "new"]);
}

#[test]
fn without_aging_nobody_rises() {
    world_by(|edit| {
        classes(edit);
        edit.policy.queue.aging = gpu_lease::Ms(0);
    })
    .device("gpu-0", 24)
    .ask(whole("now").ttl(100_000))
    .ask(whole("old").class("batch").waits(100_000))
    .at(90_000)
    .ask(whole("new").class("interactive").waits(600))
    .queue_is(&["new", "old"]);
}

#[test]
fn who_fits_elsewhere_passes_the_head() {
    world()
        .device("gpu-0", 24)
        .device("gpu-1", 8)
        .ask(whole("now").on(&["gpu-0"]))
        .ask(memory("head", 20).waits(600))
        .ask(memory("small", 4).waits(600))
        .are(&[("head", "waiting"), ("small", "active on gpu-1")]);
}

#[test]
fn who_is_gone_before_the_head_starts_may_use_what_it_waits_for() {
    world()
        .device("gpu-0", 24)
        .ask(memory("now", 12).max_hold(60))
        .ask(memory("head", 20).waits(600))
        .ask(memory("endless", 2).waits(600))
        .ask(memory("long", 2).max_hold(61).waits(600))
        .ask(memory("short", 2).max_hold(60).waits(600))
        .are(&[
            ("head", "waiting"),
            ("endless", "waiting"),
            ("long", "waiting"),
            ("short", "active on gpu-0"),
        ])
        .waits_by("endless", "held_for_head");
}

#[test]
fn a_stream_of_small_jobs_does_not_starve_the_head() {
    let mut world = world();
    world
        .device("gpu-0", 24)
        .ask(memory("first", 8).max_hold(30))
        .ask(whole("head").waits(3600));
    for n in 0..15 {
        let (short, endless) = (format!("short-{n}"), format!("endless-{n}"));
        world
            .at(2 * n)
            .ask(memory(&short, 1).max_hold(10).waits(1))
            .ask(memory(&endless, 1).waits(1));
    }
    world.are(&[
        ("short-2", "ended: max_hold"),
        ("short-12", "ended: wait_timeout"),
        ("endless-0", "ended: wait_timeout"),
    ]);
    // What ends by force comes back after five seconds of delay.
    world.at(35).is("head", "active on gpu-0");
}

#[test]
fn without_backfill_nobody_passes() {
    world_by(|edit| edit.policy.queue.backfill = false)
        .device("gpu-0", 24)
        .device("gpu-1", 8)
        .ask(memory("now", 12))
        .ask(memory("head", 20).waits(600))
        .ask(memory("small", 1).waits(600))
        .waits_because("small", "l-000000000002 goes first")
        .waits_by("small", "behind_head")
        .release("now")
        .are(&[("head", "active on gpu-0"), ("small", "active on gpu-0")]);
}

#[test]
fn a_gang_gets_all_its_devices_at_once_or_none() {
    world()
        .device("gpu-0", 24)
        .device("gpu-1", 24)
        .ask(memory("a", 20).on(&["gpu-0"]))
        .ask(memory("b", 20).on(&["gpu-1"]))
        .ask(memory("gang", 12).devices(2).waits(600))
        .release("a")
        .is("gang", "waiting")
        .free("gpu-0", 24)
        .waits_because(
            "gang",
            "needs 12 GiB on each of 2 devices; gpu-1 has 4 GiB free, held by b (20 GiB)",
        )
        .release("b")
        .is("gang", "active on gpu-0 gpu-1")
        .free("gpu-0", 12)
        .free("gpu-1", 12);
}

#[test]
fn both_devices_that_a_gang_waits_for_are_kept_for_it() {
    world()
        .device("gpu-0", 24)
        .device("gpu-1", 24)
        .ask(memory("a", 20).on(&["gpu-0"]))
        .ask(memory("b", 20).on(&["gpu-1"]))
        .ask(whole("gang").devices(2).waits(600))
        .release("a")
        .ask(memory("small", 1).waits(600))
        .is("small", "waiting")
        .release("b")
        .is("gang", "active on gpu-0 gpu-1");
}

#[test]
fn who_is_held_by_a_rule_is_passed_and_is_nobodys_head() {
    world_by(|edit| {
        classes(edit);
        edit.rules.held.insert("batch".into());
        edit.rules.held_until = Some(60);
    })
    .device("gpu-0", 24)
    .ask(whole("night").class("batch").waits(600))
    .ask(whole("day").waits(600))
    .are(&[("night", "waiting"), ("day", "active on gpu-0")])
    .at(59)
    .release("day")
    .is("night", "waiting")
    .at(60)
    .is("night", "active on gpu-0");
}

#[test]
fn a_rule_by_the_hour_refuses_who_waits() {
    world_by(|edit| {
        edit.rules.denied_from.insert("standard".into(), 60);
    })
    .device("gpu-0", 24)
    .ask(whole("now"))
    .ask(whole("late").waits(600).queued())
    .at(59)
    .is("late", "waiting")
    .at(60)
    .is("late", "ended: denied")
    .is("now", "active on gpu-0");
}

#[test]
fn who_does_not_wait_is_answered_at_once() {
    world()
        .device("gpu-0", 24)
        .ask(memory("now", 20))
        .ask(memory("other", 8))
        .is(
            "other",
            "refused: needs 8 GiB on one device; gpu-0 has 4 GiB free, held by now (20 GiB)",
        )
        .queue_is(&[])
        .heard(EventKind::LeaseEnded, &[])
        .heard(EventKind::LeaseWaiting, &[]);
}

#[test]
fn what_can_never_fit_is_refused_whatever_it_waits() {
    let cases = [
        (
            memory("big", 30).waits(600),
            "refused: asks for 30 GiB on one device; the largest that can serve it grants 24 GiB",
        ),
        (
            memory("wide", 1).devices(3).waits(600),
            "refused: asks for 3 devices; 2 of the inventory can serve it",
        ),
        (
            memory("lost", 1).on(&["gpu-7"]).waits(600),
            "refused: asks for 1 device; 0 of the inventory can serve it",
        ),
        (
            memory("both", 20).devices(2).waits(600),
            "refused: asks for 20 GiB on each of 2 devices; the largest that can serve it grants 24 GiB",
        ),
    ];
    for (job, expected) in cases {
        let name = job.name();
        world()
            .device("gpu-0", 24)
            .device("gpu-1", 16)
            .ask(job)
            .is(&name, expected);
    }
}

#[test]
fn a_full_queue_refuses_but_still_serves() {
    world_by(|edit| edit.policy.queue.max_waiting = 2)
        .device("gpu-0", 24)
        .device("gpu-1", 8)
        .ask(whole("now").on(&["gpu-0"]))
        .ask(whole("a").on(&["gpu-0"]).waits(10))
        .ask(whole("b").on(&["gpu-0"]).waits(600))
        .ask(whole("c").on(&["gpu-0"]).waits(600))
        .ask(memory("d", 1).waits(600))
        .ask(memory("e", 20))
        .are(&[
            ("c", "refused: the queue is full: 2 requests wait"),
            ("d", "active on gpu-1"),
            (
                "e",
                "refused: needs 20 GiB on one device; gpu-0 is held for l-000000000002, which goes \
                 first; gpu-1 has 7 GiB free, held by d (1 GiB)",
            ),
        ])
        // A wait that is over makes room, also if nobody has told the time.
        .clock(10_000)
        .ask(whole("f").on(&["gpu-0"]).waits(600))
        .queue_is(&["b", "f"]);
}

#[test]
fn who_is_refused_stands_in_nobodys_way() {
    for (limit, intruder) in [(2, whole("vip").waits(60)), (9, whole("vip"))] {
        let mut world = world_by(|edit| {
            classes(edit);
            edit.class("middle", 50);
            edit.policy.queue.max_waiting = limit;
        });
        world
            .device("gpu-0", 24)
            .ask(memory("now", 4))
            .ask(memory("large", 22).waits(60))
            .without_polls()
            .at(4)
            .ask(memory("small", 1).class("middle"))
            .asked_to_read(true)
            .is("small", "waiting")
            .ask(intruder.class("interactive"))
            .is("small", "waiting");
    }
}

#[test]
fn the_reason_of_a_refusal_is_told_for_the_place_that_it_would_have_had() {
    world_by(classes)
        .device("gpu-0", 24)
        .ask(memory("now", 20))
        .ask(whole("batch").class("batch").waits(600))
        .ask(memory("chat", 8).class("interactive"))
        .is(
            "chat",
            "refused: needs 8 GiB on one device; gpu-0 has 4 GiB free, held by now (20 GiB)",
        );
}

#[test]
fn while_devices_are_discovered_nobody_is_granted_anything() {
    world()
        .ask(memory("now", 1))
        .ask(memory("later", 1).waits(60))
        .are(&[
            ("now", "refused: devices are still being discovered"),
            ("later", "waiting"),
        ])
        .waits_because("later", "devices are still being discovered")
        .waits_by("later", "recovering")
        .device("gpu-0", 24)
        .is("later", "active on gpu-0");
}
