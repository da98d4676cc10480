//! A life in words.

use gpu_lease::{Grant, Lease, Phase, ReclaimStage};

use super::Counterexample;
use super::case::{Scope, units};
use super::judge::Rule;
use super::model::{Found, Lives, Seen, Step};
use super::moment::Moment;

/// The life of `steps`, in which `rule` does not hold, without the steps that do not matter.
pub(super) fn counterexample(lives: &Lives, rule: Rule, steps: Vec<Step>) -> Counterexample {
    let steps = shortest(lives, rule, steps);
    let moments = lives.live(&steps).unwrap_or_default();
    let last = moments.last().and_then(|moment| moment.broken.as_ref());
    let told = steps.iter().zip(&moments);
    Counterexample {
        rule,
        what: last.map_or_else(String::new, |broken| broken.what.clone()),
        steps: told
            .map(|(step, after)| format!("{}: {}", lives.say_step(*step), lives.say_moment(after)))
            .collect(),
    }
}

/// Leaves out one step after the other, as long as `rule` still does not hold in the end.
fn shortest(lives: &Lives, rule: Rule, mut steps: Vec<Step>) -> Vec<Step> {
    let is_broken = |steps: &[Step]| {
        let moments = lives.live(steps).unwrap_or_default();
        moments.last().is_some_and(|last| !lives.holds(rule, last))
    };
    let mut place = 0;
    while place < steps.len() {
        let mut fewer = steps.clone();
        fewer.remove(place);
        if is_broken(&fewer) {
            steps = fewer;
            place = 0;
        } else {
            place += 1;
        }
    }
    steps
}

impl Lives {
    fn say_step(&self, step: Step) -> String {
        let name = |client: usize| self.case.clients[client].name();
        match step {
            Step::Abandon(client) => format!("the connection of {} breaks", name(client)),
            Step::Ask(client) => format!("{} asks", name(client)),
            Step::Crash => "crash, and recovery".to_owned(),
            Step::Drain(client) => format!("an operator asks {} to go", name(client)),
            Step::Emergency(Scope::All) => "emergency release of everything".to_owned(),
            Step::Emergency(Scope::AllBySignal) => {
                "emergency release of everything, by signals".to_owned()
            }
            Step::Emergency(Scope::First) => "emergency release of gpu-0".to_owned(),
            Step::Exit(client) => format!("the process of {} ends", name(client)),
            Step::Expire => "what has come due is done".to_owned(),
            Step::Find(Found::All) => "all devices are found".to_owned(),
            Step::Find(Found::AllButOne) => "all devices but the last are found".to_owned(),
            Step::Pass(Seen::Nothing) => format!("{} pass, nothing is read", units(1)),
            Step::Pass(Seen::Free) => format!("{} pass, gpu-0 is free", units(1)),
            Step::Pass(Seen::InUse) => format!("{} pass, 1 GiB of gpu-0 is in use", units(1)),
            Step::Refuse(client) => format!("no signal can be sent to {}", name(client)),
            Step::Release(client) => format!("{} releases", name(client)),
            Step::Renew(client) => format!("{} renews", name(client)),
            Step::Vouch => "an operator vouches for gpu-0".to_owned(),
        }
    }

    fn say_moment(&self, moment: &Moment) -> String {
        let leases = moment.open().map(|lease| self.say_lease(lease));
        let leases: Vec<String> = leases.collect();
        match leases.is_empty() {
            true => "nobody is there".to_owned(),
            false => leases.join(", "),
        }
    }

    fn say_lease(&self, lease: &Lease) -> String {
        let name = self.client(lease.id).name();
        match &lease.phase {
            Phase::Waiting(_) => format!("{name} waits"),
            Phase::Held(grant) if grant.drains.is_empty() => {
                format!("{name} holds {}", say_grant(grant))
            }
            Phase::Held(grant) => format!("{name} holds and leaves {}", say_grant(grant)),
            Phase::Reclaiming(grant, reclaim) => {
                let stage = match reclaim.stage {
                    ReclaimStage::Verifying => "is verified",
                    ReclaimStage::Stuck(_) => "is stuck",
                    ReclaimStage::Quarantined => "is quarantined",
                };
                let (grant, reason) = (say_grant(grant), reclaim.reason);
                format!("{grant} of {name} {stage} ({reason})")
            }
            Phase::Ended(ending) => format!("{name} is over ({})", ending.reason),
        }
    }
}

fn say_grant(grant: &Grant) -> String {
    let devices = grant.allocations.iter();
    let devices: Vec<String> = devices.map(|part| part.device.to_string()).collect();
    format!("{} by fence {}", devices.join(" and "), grant.fence)
}
