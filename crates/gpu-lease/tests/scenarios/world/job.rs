//! Requests in the words of a scenario.

use gpu_lease::{
    Amount, DeviceId, Holder, HolderKind, Idempotency, Ms, Process, Request, STANDARD_CLASS, Select,
};

/// A request on its way to being asked.
pub(crate) struct Job(Request);

/// So many GiB on one device, for a remote holder that does not wait and has an hour between heartbeats.
pub(crate) fn memory(name: &str, gib: u64) -> Job {
    job(name, Amount::Memory(gib << 30))
}

/// One whole device, likewise.
pub(crate) fn whole(name: &str) -> Job {
    job(name, Amount::Exclusive)
}

fn job(name: &str, amount: Amount) -> Job {
    Job(Request {
        holder: Holder {
            name: name.into(),
            kind: HolderKind::Remote,
            tenant: None,
            user: "bo".into(),
            tenant_found: false,
            pid: None,
        },
        class: STANDARD_CLASS.into(),
        devices: 1,
        amount,
        select: Select::default(),
        ttl: Ms::from_secs(3600),
        wait: Ms(0),
        max_hold: None,
        drain_grace: None,
        load: false,
        queue: false,
        idempotency: None,
        labels: Default::default(),
    })
}

impl Job {
    pub(crate) fn name(&self) -> String {
        self.0.holder.name.clone()
    }

    pub(crate) fn request(self) -> Request {
        self.0
    }

    /// So many devices, all or none.
    pub(crate) fn devices(mut self, count: u32) -> Self {
        self.0.devices = count;
        self
    }

    pub(crate) fn on(mut self, ids: &[&str]) -> Self {
        self.0.select = Select::ids(ids.iter().map(|id| DeviceId::new(id)).collect());
        self
    }

    pub(crate) fn class(mut self, class: &str) -> Self {
        self.0.class = class.into();
        self
    }

    pub(crate) fn user(mut self, user: &str) -> Self {
        self.0.holder.user = user.into();
        self
    }

    /// Says which tenant it belongs to.
    pub(crate) fn claims(mut self, tenant: &str) -> Self {
        self.0.holder.tenant = Some(tenant.into());
        self
    }

    /// Only on devices that pass.
    pub(crate) fn filter(mut self, filter: &str) -> Self {
        self.0.select.filters.push(filter.into());
        self
    }

    /// Waits for so many seconds, on a connection unless it is queued.
    pub(crate) fn waits(mut self, secs: u64) -> Self {
        self.0.wait = Ms::from_secs(secs);
        self
    }

    /// Waits as a row that lives by renewals.
    pub(crate) fn queued(mut self) -> Self {
        self.0.queue = true;
        self
    }

    pub(crate) fn ttl(mut self, secs: u64) -> Self {
        self.0.ttl = Ms::from_secs(secs);
        self
    }

    pub(crate) fn max_hold(mut self, secs: u64) -> Self {
        self.0.max_hold = Some(Ms::from_secs(secs));
        self
    }

    pub(crate) fn drain_grace(mut self, secs: u64) -> Self {
        self.0.drain_grace = Some(Ms::from_secs(secs));
        self
    }

    /// Takes the load slot until it is ready.
    pub(crate) fn loads(mut self) -> Self {
        self.0.load = true;
        self
    }

    /// A browser.
    pub(crate) fn page(mut self) -> Self {
        self.0.holder.kind = HolderKind::Page;
        self
    }

    /// A process that nobody supervises.
    pub(crate) fn process(self) -> Self {
        self.with_process(false)
    }

    /// A process that `run` started.
    pub(crate) fn supervised(self) -> Self {
        self.with_process(true)
    }

    fn with_process(mut self, supervised: bool) -> Self {
        self.0.holder.kind = HolderKind::Process(Process {
            pid: 4_242,
            start_ticks: 7,
            boot_id: "boot".into(),
            uid: 1_000,
            supervised,
        });
        self
    }

    /// With a key for retries.
    pub(crate) fn keyed(mut self, key: &str, body: &str) -> Self {
        self.0.idempotency = Some(Idempotency {
            key: ("bo".into(), key.into()),
            body_hash: body.into(),
        });
        self
    }
}
