//! The rules that this version knows without an expression language: classes, hours, device patterns.

use std::collections::BTreeMap;

use gpu_lease::{Device, Request, Rules, Standing, Verdict, WallMs};

use crate::hours::Schedule;
use crate::suggest::{did_you_mean, list};
use crate::value::DevicePattern;

/// [`Rules`] by tables alone.
#[derive(Debug)]
pub(crate) struct NativeRules {
    /// Every class, and when it may start.
    pub(crate) classes: BTreeMap<String, Option<Schedule>>,
    /// The devices that each device rule is about, in the order of the rules.
    pub(crate) devices: Vec<DevicePattern>,
}

impl Rules for NativeRules {
    fn admit(&self, request: &Request, _standing: &Standing, now: WallMs) -> Verdict {
        match self.classes.get(&request.class) {
            None => self.no_such_class(&request.class),
            Some(Some(schedule)) if !schedule.is_open(now) => closed(&request.class, schedule, now),
            Some(_) => Verdict::Allow,
        }
    }

    fn device_matches(&self, rule: usize, device: &Device) -> bool {
        self.devices.get(rule).is_some_and(|pattern| {
            pattern.matches(device.key.id.as_str()) || pattern.matches(&device.name)
        })
    }

    fn next_change(&self, now: WallMs) -> Option<WallMs> {
        let schedules = self.classes.values().flatten();
        schedules
            .filter_map(|schedule| schedule.next_change(now))
            .min()
    }
}

impl NativeRules {
    fn no_such_class(&self, class: &str) -> Verdict {
        let known = || self.classes.keys().map(String::as_str);
        let shown = crate::units::shortened(class);
        let hint = did_you_mean(class, known())
            .map(|hint| format!("; {hint}"))
            .unwrap_or_default();
        Verdict::Deny {
            rule: format!("class {shown}"),
            reason: format!(
                "class `{shown}` does not exist; the classes are {}{hint}",
                list(known())
            ),
            erred: false,
        }
    }
}

fn closed(class: &str, schedule: &Schedule, now: WallMs) -> Verdict {
    Verdict::Hold {
        rule: format!("class {class}: hours"),
        reason: format!("class `{class}` starts only within {schedule}"),
        until: schedule.next_change(now),
    }
}
