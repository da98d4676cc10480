//! What a policy says of a request and of a device.

use gpu_lease::{At, Device, DeviceSettings, Ms, Policy, Request, Standing, Verdict};

use super::Card;
use super::shares::member;

/// The class must exist, the tenant must be the request's, and the rules must allow it.
pub(super) fn verdict(policy: &Policy, request: &Request, standing: &Standing, at: At) -> Verdict {
    let by_rule = || policy.rules.admit(request, standing, at.wall);
    if !policy.classes.contains_key(&request.class) {
        let by_rule = by_rule();
        return match matches!(by_rule, Verdict::Deny { erred: false, .. }) {
            true => by_rule,
            false => deny("class", format!("class `{}` is not defined", request.class)),
        };
    }
    match member(policy, request) {
        Err(refusal) => deny(&refusal.rule, refusal.reason),
        Ok(_) => by_rule(),
    }
}

fn deny(rule: &str, reason: String) -> Verdict {
    Verdict::Deny {
        rule: rule.to_string(),
        reason,
        erred: false,
    }
}

pub(super) fn grantable(policy: &Policy, card: &Card) -> u64 {
    let reserve = device_settings(policy, &card.device).reserve;
    card.device.memory_total.saturating_sub(reserve)
}

/// Whether a device is one that a request may have, room apart.
pub(super) fn may_serve(policy: &Policy, card: &Card, request: &Request) -> bool {
    let named = match &request.select.ids {
        Some(ids) => ids.contains(&card.device.key.id),
        None => true,
    };
    let labels = device_settings(policy, &card.device).labels;
    let mut filters = request.select.filters.iter();
    let passes = |filter: &String| policy.rules.selects(filter, &card.device, &labels);
    named && card.device.leasable && filters.all(passes)
}

/// The shorter of what was asked for and what the class allows.
pub(super) fn max_hold(policy: &Policy, request: &Request) -> Option<Ms> {
    let of_class = policy.classes.get(&request.class).and_then(|c| c.max_hold);
    match (request.max_hold, of_class) {
        (Some(asked), Some(allowed)) => Some(asked.min(allowed)),
        (asked, allowed) => asked.or(allowed),
    }
}

/// The longest of the policy's, the class's and the request's, capped.
pub(super) fn grace(policy: &Policy, request: &Request) -> Ms {
    let mut grace = policy.reload.grace;
    if let Some(class) = policy.classes.get(&request.class) {
        grace = grace.max(class.drain_grace);
    }
    grace = grace.max(request.drain_grace.unwrap_or_default());
    grace.min(policy.reload.grace_max)
}

pub(super) fn device_settings(policy: &Policy, device: &Device) -> DeviceSettings {
    let mut settings = DeviceSettings {
        reserve: policy.placement.reserve,
        load_slots: policy.placement.load_slots,
        labels: Vec::new(),
        cordon: None,
    };
    for (place, rule) in policy.devices.iter().enumerate() {
        if !policy.rules.device_matches(place, device) {
            continue;
        }
        settings.labels.extend(rule.labels.clone());
        settings.reserve = rule.reserve.unwrap_or(settings.reserve);
        settings.load_slots = rule.load_slots.unwrap_or(settings.load_slots);
        match (&rule.drain, &rule.cordon) {
            (Some(why), _) | (None, Some(why)) => settings.cordon = Some(why.clone()),
            (None, None) => {}
        }
    }
    settings
}
