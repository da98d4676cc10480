//! What no switch may move: whoever it does not touch, however often and under whatever load.

use std::time::Instant;

use gpu_lease::{EventKind, Held, Lease, Ms, Phase, Plan, QueueOrder};

use crate::world::{Edit, World, memory, whole, world, world_by};

/// Splitmix64: numbers that follow from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) % end
    }
}

/// Classes that are refused, held, refused from some hour on or erring, by `seed`; and a quota.
fn rules_of(seed: u64) -> impl Fn(&mut Edit) {
    move |edit| {
        let dice = &mut Dice(seed);
        for class in ["batch", "night", "day", "odd"] {
            edit.class(class, 0);
            match dice.below(6) {
                0 => edit.deny(class),
                1 => drop(edit.rules.held.insert(class.into())),
                2 => {
                    let from = dice.below(2_000);
                    edit.rules.denied_from.insert(class.into(), from);
                }
                3 => drop(edit.rules.erring.insert(class.into())),
                _ => {}
            }
        }
        if dice.below(2) == 0 {
            let most = u32::try_from(dice.below(4)).expect("a few");
            edit.tenant("lab", &["ann"], |tenant| tenant.max_leases = Some(most));
        }
    }
}

fn harmless(edit: &mut Edit, dice: &mut Dice) {
    edit.policy.placement.strategy = gpu_lease::Strategy::Spread;
    edit.policy.queue.aging = Ms(dice.below(100_000));
    edit.policy.reload.held = [Held::Keep, Held::Drain, Held::Force][dice.below(3) as usize];
    edit.policy.reload.on_shrink = gpu_lease::OnShrink::Drain;
    edit.policy.defaults.ttl = Ms(1 + dice.below(60_000));
}

fn busy_world(seed: u64) -> World {
    let dice = &mut Dice(seed);
    let mut world = world_by(rules_of(seed));
    world.device("gpu-0", 24).device("gpu-1", 24);
    for number in 0..12 {
        let class = ["standard", "batch", "night", "day", "odd"][dice.below(5) as usize];
        let user = ["ann", "bo"][dice.below(2) as usize];
        let job = memory(&format!("job-{number}"), 1 + dice.below(8));
        world.ask(job.class(class).user(user).waits(100_000).ttl(100_000));
        world.at(world.now().boot.0 / 1000 + dice.below(200));
    }
    world
}

#[test]
fn a_save_that_changes_no_verdict_touches_nothing_at_any_hour() {
    for seed in 0..300 {
        let mut world = busy_world(seed);
        let dice = &mut Dice(!seed);
        let edit = |edit: &mut Edit, dice: &mut Dice| {
            rules_of(seed)(edit);
            harmless(edit, dice);
        };
        world.at(world.now().boot.0 / 1000 + dice.below(1_000));
        let denied_by_now = world.plan(|draft| edit(draft, dice));
        assert_eq!(denied_by_now, Plan::default(), "seed {seed}");
        let before = phases(&world);
        world.switch(|draft| edit(draft, dice));
        // A switch serves the queue, so whoever waited may be granted; nobody else moves.
        for (lease, after) in before.iter().zip(phases(&world)) {
            let waited = lease.waiting().is_some();
            assert!(
                waited || *lease == after,
                "seed {seed}: {lease:?} {after:?}"
            );
        }
    }
}

fn phases(world: &World) -> Vec<Lease> {
    world.books().leases().cloned().collect()
}

#[test]
fn a_thousand_switches_under_load_move_nobody_whom_they_do_not_touch() {
    let mut world = world_by(|edit| edit.class("batch", 0));
    world.device("gpu-0", 24).device("gpu-1", 24);
    for number in 0..8 {
        let name = format!("holds-{number}");
        world.ask(memory(&name, 2).ttl(9_000).max_hold(9_000));
    }
    for number in 0..8 {
        let name = format!("waits-{number}");
        world.ask(whole(&name).waits(9_000).queued().ttl(9_000));
    }
    let untouched = |world: &World| -> Vec<Lease> {
        let mine = |name: &str| name.starts_with("holds") || name.starts_with("waits");
        let leases = world.books().leases();
        leases
            .filter(|lease| mine(&lease.request.holder.name))
            .cloned()
            .collect()
    };
    let places = |world: &World| -> Vec<_> {
        let waiting = world.books().waiting(world.now()).into_iter();
        waiting.map(|(id, why)| (id, why.position)).collect()
    };
    let (before, queue) = (untouched(&world), places(&world));
    for number in 0..1_000 {
        world.ask(memory("comes", 1).class("batch")).at(number);
        world.switch(|edit| {
            edit.class("batch", -(number as i64));
            edit.policy.queue.order = QueueOrder::Priority;
            if number % 3 == 0 {
                edit.deny("batch");
                edit.policy.reload.held = Held::Force;
                edit.policy.reclaim.verify = false;
            }
        });
        world.release("comes");
    }
    assert_eq!(untouched(&world), before);
    assert_eq!(places(&world), queue);
    world.generation_is(1_001);
}

#[test]
fn a_thousand_leases_are_planned_in_a_moment() {
    let mut world = world_by(|edit| edit.class("batch", 0));
    for device in 0..8 {
        world.device(&format!("gpu-{device}"), 24);
    }
    world.without_polls();
    for number in 0..1_000 {
        world.ask(memory(&format!("job-{number}"), 0).class("batch"));
    }
    let begun = Instant::now();
    let plan = world.plan(|edit| {
        edit.class("batch", 0);
        edit.deny("batch");
        edit.tenant("each", &[], |tenant| tenant.per_user = true);
    });
    assert_eq!(plan.held.len(), 1_000);
    assert!(begun.elapsed().as_millis() < 500, "{:?}", begun.elapsed());
}

#[test]
fn ten_thousand_leases_that_meet_one_deadline_all_end_and_none_is_lost() {
    const MANY: usize = 10_000;
    let mut world = world_by(|edit| edit.class("batch", 0));
    for device in 0..32 {
        world.device(&format!("gpu-{device}"), 24);
    }
    world.without_polls();
    for number in 0..MANY {
        let device = format!("gpu-{}", number % 32);
        let job = memory(&format!("job-{number}"), 0).class("batch").ttl(7200);
        world.ask(job.on(&[device.as_str()]));
    }
    world.switch(|edit| {
        edit.class("batch", 0);
        edit.deny("batch");
    });
    world.clock(30_000).expire();
    assert_eq!(world.last().changes.leases.len(), MANY);
    assert_eq!(world.told(EventKind::LeaseReclaiming), MANY);
    let forced = |lease: &Lease| matches!(lease.phase, Phase::Reclaiming(..));
    assert!(world.books().leases().all(forced));
}

#[test]
fn a_reload_is_done_at_once_though_its_drain_takes_an_hour() {
    let mut world = world_by(|edit| edit.class("batch", 0));
    world
        .device("gpu-0", 24)
        .ask(memory("a", 1).class("batch").drain_grace(3_600))
        .switch(|edit| {
            edit.class("batch", 0);
            edit.deny("batch");
        })
        .generation_is(2)
        .is("a", "draining on gpu-0 until 1h by policy");
    let mut restarted = world;
    restarted
        .at(1_800)
        .restart()
        .discover()
        .is("a", "draining on gpu-0 until 1h by policy");
}

#[test]
fn a_failed_switch_leaves_the_books_as_they_were() {
    let mut world = world();
    world.device("gpu-0", 24).ask(memory("a", 1));
    let before = world.books().rows();
    let live = Some("another".into());
    let expect = gpu_lease::Expect {
        live,
        ..Default::default()
    };
    assert!(
        world
            .switch_if(expect, |edit| edit.deny("standard"))
            .is_err()
    );
    assert_eq!(world.books().rows(), before);
}
