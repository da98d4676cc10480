//! Many reloads of one broker: nothing grows, and nothing that a reload does not touch moves.

use std::fs;

use gpu_api::{Lease, LeaseState, paths};
use gpu_manager_tests::{Broker, Host, POLICY, Request};
use serde_json::json;

/// Reloads before it is measured what a broker needs that has settled: by then the events of its store fill
/// the cache of the pages of the store.
const WARM_UP: usize = 6000;
const RELOADS: usize = WARM_UP + 10_000;
/// What may be added until the end, of the resident memory.
const GROWTH_PERCENT_MAX: u64 = 2;

/// What a process uses.
#[derive(Debug)]
struct Use {
    descriptors: usize,
    threads: usize,
    watches: usize,
    series: usize,
}

impl Use {
    /// Whether nothing was left behind by thousands of reloads. A connection may be on its way out, and a
    /// pool of threads may have one more or less.
    fn is_within(&self, before: &Self) -> bool {
        const PASSING: usize = 2;
        self.descriptors <= before.descriptors + PASSING
            && self.threads <= before.threads + PASSING
            && (self.watches, self.series) == (before.watches, before.series)
    }
}

fn used(broker: &Broker) -> Use {
    let proc = format!("/proc/{}", broker.process().pid());
    let entries = |dir: &str| {
        let entries = fs::read_dir(format!("{proc}/{dir}")).expect("it runs");
        let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
        names.collect::<Vec<_>>()
    };
    let watches = |descriptor: &std::ffi::OsString| {
        let path = format!("{proc}/fdinfo/{}", descriptor.to_string_lossy());
        let info = fs::read_to_string(path).unwrap_or_default();
        info.lines()
            .filter(|line| line.starts_with("inotify"))
            .count()
    };
    let metrics = Request::get(paths::METRICS).send(broker.address()).text();
    Use {
        descriptors: entries("fd").len(),
        threads: entries("task").len(),
        watches: entries("fdinfo").iter().map(watches).sum(),
        series: metrics
            .lines()
            .filter(|line| !line.starts_with('#'))
            .count(),
    }
}

/// The least of some looks: connections of the moment before may not be closed yet.
fn used_at_rest(broker: &Broker) -> Use {
    let looks = (0..50).map(|_| used(broker));
    let least = looks.min_by_key(|used| (used.descriptors, used.threads));
    least.expect("there were looks")
}

fn resident_kib(broker: &Broker) -> u64 {
    let path = format!("/proc/{}/status", broker.process().pid());
    let status = fs::read_to_string(path).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|kib| kib.parse().ok()).expect("a number")
}

/// Saves another policy and reloads it; `n` never says the same twice in a row.
fn reload(host: &Host, broker: &Broker, n: usize) {
    let priority = 1 + n % 100;
    host.rename_policy(&format!(
        "{POLICY}[[class]]\nname = 'c'\npriority = {priority}\n\
         [[rule]]\nname = 'r'\nwhen = \"request.class == 'c' && request.memory > GiB({priority})\"\ndeny = 'too big'\n"
    ));
    let answer = Request::post(paths::HOT_RELOAD, &json!({})).send(broker.address());
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn ten_thousand_reloads_leave_nothing_behind() {
    let host = Host::with_cards(1).flags(&["--no-reload"]);
    let broker = host.start();
    (0..WARM_UP).for_each(|n| reload(&host, &broker, n));
    // What is asked for the first time has its own series from then on.
    used(&broker);
    let (before, resident) = (used_at_rest(&broker), resident_kib(&broker));
    (WARM_UP..RELOADS).for_each(|n| reload(&host, &broker, n));
    let (after, resident_after) = (used_at_rest(&broker), resident_kib(&broker));
    eprintln!(
        "{RELOADS} reloads, {WARM_UP} of them to warm up: {resident} -> {resident_after} KiB resident, {after:?}"
    );
    assert!(after.is_within(&before), "{before:?} -> {after:?}");
    let most = resident + resident * GROWTH_PERCENT_MAX / 100;
    assert!(resident_after <= most, "{resident} -> {resident_after} KiB");
    assert_eq!(broker.policy().generation, RELOADS as u64 + 1);
}

/// What a reload must not move of a lease that it does not touch.
fn still(lease: &Lease) -> impl PartialEq + std::fmt::Debug + use<> {
    let position = lease.waiting.as_ref().map(|waiting| waiting.position);
    // A waiter shows the policy that it would be granted by: the live one.
    let granted_by = lease.granted_at.as_ref().map(|_| lease.policy_generation);
    (
        (lease.id.clone(), lease.revision, lease.state, lease.fence),
        (lease.priority, lease.expires_at.clone(), position),
        (lease.allocations.clone(), granted_by),
    )
}

#[test]
fn a_thousand_reloads_under_load_move_nothing_of_the_others() {
    let host = Host::with_cards(2).flags(&["--no-reload"]);
    let broker = host.start();
    let held = json!({"memory": "1GiB", "ttl": "1h"});
    let waits = json!({"devices": 2, "ttl": "1h", "queue": true});
    let leases: Vec<String> = (0..8)
        .map(|_| broker.grant(&held).id)
        .chain((0..4).map(|_| broker.acquire(&waits).expect("it queues").id))
        .collect();
    let look = || -> Vec<_> { leases.iter().map(|id| still(&broker.lease(id))).collect() };
    let before = look();
    for n in 0..1000 {
        reload(&host, &broker, n);
        if n % 10 == 0 {
            let passing = broker.acquire(&json!({"memory": "1GiB", "ttl": "1h"}));
            drop(passing.map(|lease| broker.release(&lease)));
        }
    }
    assert_eq!(before, look());
    let first = broker.lease(&leases[0]);
    assert_eq!(first.state, LeaseState::Active);
}
