//! What operators do meanwhile, each in a thread of its own.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use gpu_api::{EmergencyResult, paths};
use gpu_manager_tests::{Dice, Request};
use serde_json::json;

use super::ledger::{Cordoned, Stop};
use super::world::{CARDS, Gone, World, policy};

/// One thing that an operator does, again and again until the broker is gone.
type Operator = fn(&World, &mut Dice) -> Result<(), Gone>;

pub(super) const ALL: [Operator; 3] = [stop_card, change_cordon, switch_policy];

fn any_card(dice: &mut Dice) -> String {
    format!("sim-{}", dice.below(CARDS))
}

fn stop_card(world: &World, dice: &mut Dice) -> Result<(), Gone> {
    thread::sleep(Duration::from_millis(dice.below(60)));
    let (card, frees) = (any_card(dice), dice.chance(1, 2));
    let begun = world.now();
    let place = {
        let mut ledger = world.ledger.lock().unwrap();
        ledger.stops.push(Stop {
            card: card.clone(),
            frees,
            begun,
            over: None,
        });
        ledger.stops.len() - 1
    };
    let body = json!({"devices": [card], "reason": "a story", "force_unsafe": frees});
    let answer = world.must(&Request::post(paths::EMERGENCY_RELEASE, &body))?;
    let result: EmergencyResult = answer.read();
    let now = world.now();
    let mut ledger = world.ledger.lock().unwrap();
    ledger.stops[place].over = Some(now);
    let released = result.released.into_iter();
    ledger.condemned.extend(released.map(|lease| lease.id));
    Ok(())
}

/// Cordons a card for a reason that was never given before, or lifts its cordon.
fn change_cordon(world: &World, dice: &mut Dice) -> Result<(), Gone> {
    thread::sleep(Duration::from_millis(dice.below(80)));
    let card = any_card(dice);
    // Two of three cards are open most of the time.
    let reason = dice.chance(1, 3).then(|| {
        let n = world.cordons.fetch_add(1, Ordering::Relaxed);
        format!("cordon {n}")
    });
    let mut known = {
        let mut ledger = world.ledger.lock().unwrap();
        let known = ledger.cordons.entry(card.clone()).or_insert(Cordoned {
            may_be: vec![None],
            since: 0,
        });
        known.may_be.push(reason.clone());
        known.clone()
    };
    let (path, body) = match &reason {
        Some(reason) => (paths::DEVICE_CORDON, json!({"reason": reason})),
        None => (paths::DEVICE_UNCORDON, json!({})),
    };
    world.must(&Request::post(&paths::with_id(path, &card), &body))?;
    known.may_be = vec![reason];
    known.since = world.now();
    world.ledger.lock().unwrap().cordons.insert(card, known);
    Ok(())
}

fn switch_policy(world: &World, _dice: &mut Dice) -> Result<(), Gone> {
    let n = 1 + world.switches.fetch_add(1, Ordering::Relaxed);
    world.host.rename_policy(&policy(n));
    world.ledger.lock().unwrap().policies.push(n);
    world.must(&Request::post(paths::HOT_RELOAD, &json!({})))?;
    world.ledger.lock().unwrap().policies = vec![n];
    Ok(())
}
