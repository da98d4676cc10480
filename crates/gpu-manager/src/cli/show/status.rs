//! The broker at a glance, there or not.

use gpu_api::{
    BrokerState, Bytes, DiskState, Lease, LeaseCounts, LeaseState, Status, TenantStanding,
};
use jiff::Timestamp;

use crate::cli::context::short_hash;
use crate::cli::output::{Paint, Tone, ago, clean};
use crate::cli::table::{Align, Cell, Table};
use crate::offline::Stored;

/// A block of lines.
pub(crate) fn render(status: &Status, now: Timestamp, paint: Paint) -> String {
    let (state, tone) = match status.state {
        BrokerState::Recovering => ("recovering", Tone::Warn),
        BrokerState::Safe => ("started safe, grants nothing", Tone::Bad),
        BrokerState::Serving => ("serving", Tone::Good),
        BrokerState::Stopping => ("stopping", Tone::Warn),
    };
    let dev = if status.dev {
        paint.tone(" (dev mode)", Tone::Warn)
    } else {
        String::new()
    };
    let head = format!(
        "gpu-manager {} {}{dev}, pid {}, up for {}\n",
        clean(&status.version),
        paint.tone(state, tone),
        status.pid,
        ago(&status.started_at, now)
    );
    let admin = if status.admin { " (admin)" } else { "" };
    let state_dir = status
        .state_dir
        .clone()
        .unwrap_or_else(|| "nowhere: leases die with the broker".to_owned());
    let devices = format!(
        "{} of {} can be granted",
        status.devices_open, status.devices
    );
    let lines = [
        ("listens", status.listen.join(", ")),
        ("policy", policy(status)),
        ("devices", devices),
        ("leases", counts(&status.leases)),
        ("state", state_dir),
        ("you are", format!("{}{admin}", status.caller)),
    ];
    let lines: String = lines
        .iter()
        .map(|(name, text)| format!("  {name:<9} {}\n", clean(text)))
        .collect();
    let warnings = status
        .warnings
        .iter()
        .map(|text| format!("{} {}\n", paint.tone("warning:", Tone::Warn), clean(text)));
    let tenants = tenants(&status.tenants, paint);
    let safe = status.safe_start.as_ref();
    let safe = safe.map(|why| safe_start(why, paint)).unwrap_or_default();
    format!(
        "{head}{safe}{lines}{tenants}{}",
        warnings.collect::<String>()
    )
}

/// Why nothing is granted, and the way out.
fn safe_start(why: &str, paint: Paint) -> String {
    let word = paint.tone("safe start:", Tone::Bad);
    format!(
        "{word} {}\n  hint: {}\n",
        clean(why),
        gpu_bridge::SAFE_START_HINT
    )
}

/// A row for each tenant; nothing where there is none.
fn tenants(tenants: &[TenantStanding], paint: Paint) -> String {
    if tenants.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[
        ("TENANT", Align::Left),
        ("WEIGHT", Align::Right),
        ("LEASES", Align::Right),
        ("DEVICES", Align::Right),
        ("MEMORY", Align::Right),
        ("WAITING", Align::Right),
        ("USED", Align::Right),
    ]);
    for tenant in tenants {
        table.row(tenant_row(tenant));
    }
    table.render(paint)
}

fn tenant_row(tenant: &TenantStanding) -> [Cell; 7] {
    let user = tenant.user.as_ref().map(|user| format!("/{user}"));
    [
        format!("{}{}", tenant.name, user.unwrap_or_default()).into(),
        tenant.weight.to_string().into(),
        tenant.held.leases.to_string().into(),
        tenant.held.devices.to_string().into(),
        Bytes(tenant.held.memory).to_string().into(),
        tenant.waiting.to_string().into(),
        gib_hours(tenant.used).into(),
    ]
}

/// Byte-seconds as `12.5 GiB h`.
fn gib_hours(byte_seconds: u64) -> String {
    const GIB_HOUR: u64 = 3600 << 30;
    let tenths = byte_seconds % GIB_HOUR / (GIB_HOUR / 10);
    format!("{}.{} GiB h", byte_seconds / GIB_HOUR, tenths.min(9))
}

/// What is left of a broker that is not there.
pub(crate) fn render_stored(stored: &Stored, paint: Paint) -> String {
    format!(
        "gpu-manager {}\n  policy    generation {}\n  leases    {}\n  state     {}\n",
        paint.tone("not running", Tone::Bad),
        stored.policy_generation,
        counts(&count(&stored.leases)),
        stored.path.display()
    )
}

/// The same for programs.
pub(crate) fn stored_json(stored: &Stored) -> serde_json::Value {
    serde_json::json!({
        "service": gpu_api::SERVICE,
        "state": "not_running",
        "state_dir": stored.path,
        "policy": { "generation": stored.policy_generation },
        "leases": count(&stored.leases),
    })
}

fn policy(status: &Status) -> String {
    let policy = &status.policy;
    let watched = match (&status.safe_start, policy.watched) {
        (Some(_), _) => "not read since the start",
        (None, true) => "watched",
        (None, false) => "not watched",
    };
    let disk = match policy.disk {
        _ if status.safe_start.is_some() => "",
        DiskState::Differs => ", another one on disk",
        DiskState::Failing => ", on disk one that does not compile",
        DiskState::Pending => ", another one on disk waits for a confirmation",
        DiskState::Same | DiskState::Unknown => "",
    };
    let pending = policy.pending.as_deref().map(short_hash);
    let pending = pending.map_or(String::new(), |plan| format!(" (plan {plan})"));
    format!(
        "generation {}, {watched}{disk}{pending}: {}",
        policy.generation,
        policy.dirs.join(", ")
    )
}

fn counts(counts: &LeaseCounts) -> String {
    let all = [
        (counts.active, "active"),
        (counts.draining, "draining"),
        (counts.waiting, "waiting"),
        (counts.reclaiming, "being taken back"),
    ];
    let some: Vec<String> = all
        .iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, word)| format!("{n} {word}"))
        .collect();
    match some.is_empty() {
        true => "none".to_owned(),
        false => some.join(", "),
    }
}

fn count(leases: &[Lease]) -> LeaseCounts {
    let mut counts = LeaseCounts::default();
    for lease in leases {
        let counter = match lease.state {
            LeaseState::Waiting => &mut counts.waiting,
            LeaseState::Active => &mut counts.active,
            LeaseState::Draining => &mut counts.draining,
            LeaseState::Reclaiming => &mut counts.reclaiming,
            LeaseState::Ended => &mut counts.ended,
        };
        *counter += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::show::example;

    #[test]
    fn counts_name_what_there_is() {
        let counted = count(&[
            example::active("l-1"),
            example::active("l-3"),
            example::waiting("l-2"),
        ]);
        assert_eq!(counts(&counted), "2 active, 1 waiting");
        assert_eq!(counts(&LeaseCounts::default()), "none");
    }

    #[test]
    fn tenants_are_a_table() {
        let tenant = |user: Option<&str>, weight, used| TenantStanding {
            name: "research".to_owned(),
            user: user.map(ToOwned::to_owned),
            weight,
            held: gpu_api::Share {
                leases: 2,
                devices: 3,
                memory: 48 << 30,
            },
            waiting: 1,
            used,
        };
        let some = [
            tenant(None, 2, (3600 << 30) * 25 / 2),
            tenant(Some("ann"), 1, 0),
        ];
        assert_eq!(
            tenants(&some, Paint::off()),
            "TENANT        WEIGHT  LEASES  DEVICES  MEMORY  WAITING        USED\n\
             research           2       2        3  48 GiB        1  12.5 GiB h\n\
             research/ann       1       2        3  48 GiB        1   0.0 GiB h\n"
        );
        assert_eq!(tenants(&[], Paint::off()), "");
    }
}
