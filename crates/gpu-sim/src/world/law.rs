//! What a policy says, as far as lives are judged by it: read from the text that the world saved, without the
//! compiler that the broker has.

use gpu_lease::{Amount, DeviceKey, Holder, Lease, Ms};

use super::machine::GIB;

/// Whom the tenant matches.
const MEMBER: &str = "ann";
/// The settings of a policy that was not said otherwise.
const DELAY: Ms = Ms(5_000);
const QUARANTINE_AFTER: Ms = Ms(60_000);

/// One policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Law {
    /// `[reclaim] verify`.
    pub(super) verify: bool,
    /// `[reclaim] delay`.
    pub(super) delay: Ms,
    /// `[reclaim] quarantine_after`.
    pub(super) quarantine_after: Ms,
    /// `[placement] reserve`.
    pub(super) reserve: u64,
    /// `[reload] confirm` is not `never`, or not said.
    pub(super) confirm: bool,
    classes: Vec<String>,
    tenants: Vec<String>,
    /// The rule against requests that are too big, and whether it refuses them for good.
    most: Option<u64>,
    denies: bool,
    /// The quota of the tenant.
    max_devices: Option<u64>,
    max_memory: Option<u64>,
    /// The device that a `[[device]]` keeps for something else.
    kept: Option<String>,
}

impl Default for Law {
    fn default() -> Self {
        Self {
            verify: true,
            delay: DELAY,
            quarantine_after: QUARANTINE_AFTER,
            reserve: 0,
            confirm: true,
            classes: vec!["standard".to_owned()],
            tenants: Vec::new(),
            most: None,
            denies: false,
            max_devices: None,
            max_memory: None,
            kept: None,
        }
    }
}

impl Law {
    /// Of names and texts.
    pub(super) fn of(files: &[(String, String)]) -> Self {
        let mut law = Self::default();
        let mut section = "";
        for line in files.iter().flat_map(|(_, text)| text.lines()) {
            match line.split_once(" = ") {
                None => section = line,
                Some((key, value)) => law.read(section, key, value.trim_matches('"')),
            }
        }
        law
    }

    fn read(&mut self, section: &str, key: &str, value: &str) {
        match (section, key) {
            ("[reclaim]", "verify") => self.verify = value == "true",
            ("[reclaim]", "delay") => self.delay = seconds(value),
            ("[reclaim]", "quarantine_after") => self.quarantine_after = seconds(value),
            ("[placement]", "reserve") => self.reserve = number(value) * GIB,
            ("[reload]", "confirm") => self.confirm = value != "never",
            ("[[class]]", "name") => self.classes.push(value.to_owned()),
            ("[[tenant]]", "name") => self.tenants.push(value.to_owned()),
            ("[[rule]]", "when") => self.most = Some(number(value) * GIB),
            ("[[rule]]", "deny") => self.denies = true,
            ("[[tenant]]", "max_devices") => self.max_devices = Some(number(value)),
            ("[[tenant]]", "max_memory") => self.max_memory = Some(number(value) * GIB),
            ("[[device]]", "name") => self.kept = Some(value.to_owned()),
            _ => {}
        }
    }

    /// Whether it knows this tenant.
    pub(super) fn knows(&self, tenant: &str) -> bool {
        self.tenants.iter().any(|known| known == tenant)
    }

    /// Whether it may refuse this waiter for good, whoever else is there and whatever is read.
    pub(super) fn denies(&self, lease: &Lease) -> bool {
        let request = &lease.request;
        let (bytes, devices) = (request.amount, u64::from(request.devices));
        let too_big = match bytes {
            Amount::Exclusive => false,
            Amount::Memory(bytes) => self.denies && self.most.is_some_and(|most| bytes > most),
        };
        // How little whole devices have depends on which there are.
        let too_much = self.max_memory.is_some_and(|most| match bytes {
            Amount::Exclusive => true,
            Amount::Memory(bytes) => bytes * devices > most,
        });
        let too_many = self.max_devices.is_some_and(|most| devices > most);
        let unknown = !self.classes.contains(&request.class) || self.is_stranger(&request.holder);
        unknown || too_big || (self.is_member(&request.holder) && (too_much || too_many))
    }

    /// Only its members may claim a tenant, and nobody one that there is not.
    fn is_stranger(&self, holder: &Holder) -> bool {
        let claims = holder.tenant.as_ref().filter(|_| !holder.tenant_found);
        let is_member = |tenant: &String| self.knows(tenant) && holder.user == MEMBER;
        !self.tenants.is_empty() && claims.is_some_and(|tenant| !is_member(tenant))
    }

    fn is_member(&self, holder: &Holder) -> bool {
        !self.tenants.is_empty() && holder.user == MEMBER
    }

    /// Whether it may be granted at all, whoever else is there.
    pub(super) fn admits(&self, lease: &Lease) -> bool {
        let request = &lease.request;
        let fits = match request.amount {
            Amount::Exclusive => true,
            Amount::Memory(bytes) => self.most.is_none_or(|most| bytes <= most),
        };
        let parts = lease.grant().map(|grant| grant.allocations.as_slice());
        let mut parts = parts.unwrap_or_default().iter();
        fits && self.classes.contains(&request.class) && parts.all(|part| !self.keeps(&part.device))
    }

    /// Whether nothing new is granted on `device`.
    fn keeps(&self, device: &DeviceKey) -> bool {
        self.kept.as_deref() == Some(device.id.as_str())
    }
}

fn seconds(value: &str) -> Ms {
    Ms::from_secs(number(value))
}

/// The digits of what is saved here.
fn number(value: &str) -> u64 {
    let digits: String = value.chars().filter(char::is_ascii_digit).collect();
    digits
        .parse()
        .expect("every number of these files has digits")
}
