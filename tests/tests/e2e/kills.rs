//! A broker that is killed while its policy changes.

use std::thread;
use std::time::Duration;

use gpu_api::paths;
use gpu_manager_tests::{Dice, Host, POLICY, Request};
use serde_json::json;

const KILLS: u64 = 200;
/// A switch is over by then, from the save to the answer.
const SWITCH_US: u64 = 6_000;

/// The `n`-th policy of the story.
fn policy(n: u64) -> String {
    format!("{POLICY}[queue]\nmax_waiting = {}\n", 100 + n)
}

#[test]
fn killed_two_hundred_times_in_a_switch_the_old_or_the_new_policy_is_last_good() {
    let seed = 0x9e37_79b9_7f4a_7c15;
    eprintln!("seed {seed:#x}");
    let mut dice = Dice::new(seed);
    let host = Host::with_cards(1)
        .policy(&policy(0))
        .flags(&["--no-reload"]);
    let mut broker = host.start();
    let held = broker.grant(&json!({"memory": "1GiB", "ttl": "1h"}));
    let (mut live, mut news) = (0, 0);
    for n in 1..=KILLS {
        host.rename_policy(&policy(n));
        let asked = Request::post(paths::HOT_RELOAD, &json!({})).send_beside(broker.address());
        // When the kill comes is the point of the story, not something that is waited for.
        thread::sleep(Duration::from_micros(dice.below(SWITCH_US)));
        broker.kill();
        drop(asked.join());

        host.write_policy("not a policy");
        broker = host.start();
        let found = broker.policy();
        let text = &found.files[0].text;
        assert!(found.degraded, "the files are bad");
        assert!(
            *text == policy(live) || *text == policy(n),
            "neither {live} nor {n}: {text}"
        );
        if *text == policy(n) {
            (live, news) = (n, news + 1);
        }
        assert_eq!(broker.lease(&held.id).fence, held.fence);
    }
    eprintln!("{KILLS} kills: {news} after the switch was durable");
    assert!(
        news > 0 && news < KILLS,
        "kills came before and after: {news}"
    );
}
