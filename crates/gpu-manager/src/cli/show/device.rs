//! The table of devices.

use gpu_api::{Bytes, Device, DeviceKind, Freshness};
use jiff::Timestamp;

use crate::cli::output::{Paint, Tone, clean, until};
use crate::cli::table::{Align, Cell, Table};

/// A line for each device, and a line for whatever is unusual about it.
pub(crate) fn render(devices: &[Device], now: Timestamp, paint: Paint) -> String {
    if devices.is_empty() {
        return "no devices: see the broker's log for what was looked for\n".to_owned();
    }
    let mut table = Table::new(&[
        ("GPU", Align::Right),
        ("NAME", Align::Left),
        ("TOTAL", Align::Right),
        ("GRANTED", Align::Right),
        ("USED", Align::Right),
        ("FREE", Align::Right),
        ("UTIL", Align::Right),
        ("TEMP", Align::Right),
        ("LEASES", Align::Right),
        ("STATE", Align::Left),
        ("ID", Align::Left),
    ]);
    for device in devices {
        table.row(row(device));
    }
    let notes: String = devices
        .iter()
        .flat_map(|device| notes(device, now))
        .collect();
    format!("{}{notes}", table.render(paint))
}

fn row(device: &Device) -> [Cell; 11] {
    let memory = &device.memory;
    let (state, tone) = state(device);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        device.index.to_string().into(),
        Cell::tone(&device.name, Tone::Bold),
        Bytes(memory.total).to_string().into(),
        amount(memory.granted).into(),
        or_dash(memory.used.map(|used| Bytes(used).to_string())).into(),
        Bytes(memory.free).to_string().into(),
        or_dash(
            device
                .utilisation_percent
                .map(|percent| format!("{percent} %")),
        )
        .into(),
        or_dash(device.temperature_c.map(|degrees| format!("{degrees} °C"))).into(),
        device.leases.len().to_string().into(),
        Cell::tone(state, tone),
        Cell::tone(&device.id, Tone::Dim),
    ]
}

fn amount(bytes: u64) -> String {
    match bytes {
        0 => "-".to_owned(),
        bytes => Bytes(bytes).to_string(),
    }
}

/// What matters most about a device, in one or two words.
fn state(device: &Device) -> (String, Tone) {
    let (word, tone) = match () {
        () if device.lost => ("lost", Tone::Bad),
        () if device.quarantined => ("quarantined", Tone::Bad),
        () if device.overcommitted => ("overcommitted", Tone::Bad),
        () if device.drain.is_some() => ("draining", Tone::Warn),
        () if device.cordon.is_some() => ("cordoned", Tone::Warn),
        () if !device.leasable => ("not leasable", Tone::Dim),
        () if device.telemetry == Freshness::Stale => ("stale", Tone::Warn),
        () => ("open", Tone::Good),
    };
    match device.kind {
        DeviceKind::Simulated => (format!("{word}, simulated"), tone),
        DeviceKind::Cpu => (format!("{word}, software"), tone),
        DeviceKind::Discrete | DeviceKind::Integrated | DeviceKind::Virtual => {
            (word.to_owned(), tone)
        }
    }
}

fn notes(device: &Device, now: Timestamp) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |text: String| notes.push(clean_line(&format!("GPU {} {text}", device.index)));
    if let Some(cordon) = &device.cordon {
        let why = cordon
            .reason
            .as_ref()
            .map(|reason| format!(": {reason}"))
            .unwrap_or_default();
        let end = cordon
            .until
            .as_ref()
            .map(|at| format!(", lifts {}", until(at, now)))
            .unwrap_or_default();
        note(format!("is cordoned by {}{why}{end}", cordon.by));
    }
    if device.memory.foreign > 0 {
        let pids: Vec<String> = device
            .processes
            .iter()
            .filter(|process| process.lease.is_none())
            .map(|process| process.pid.to_string())
            .collect();
        let whose = if pids.is_empty() {
            "unknown processes".to_owned()
        } else {
            format!("pid {}", pids.join(", "))
        };
        note(format!(
            "has {} in use by {whose}, without a lease",
            Bytes(device.memory.foreign)
        ));
    }
    if device.overcommitted {
        note(
            "has more in use than its grants allow for: no new grants until that is over"
                .to_owned(),
        );
    }
    if let Some(drain) = &device.drain {
        note(format!(
            "drains {} leases, the last by force {}",
            drain.leases,
            until(&drain.deadline_at, now)
        ));
    }
    if device.lost {
        note("is not seen any more".to_owned());
    }
    notes
}

fn clean_line(text: &str) -> String {
    format!("{}\n", clean(text))
}

#[cfg(test)]
mod tests {
    use gpu_api::Cordon;

    use super::*;
    use crate::cli::show::example;

    #[test]
    fn a_device_is_a_line_and_its_oddities_are_notes() {
        let mut odd = example::device(1, "sim-1");
        odd.cordon = Some(Cordon {
            reason: Some("fan".to_owned()),
            by: "ann".to_owned(),
            until: None,
        });
        odd.memory.foreign = 1 << 30;
        let text = render(
            &[example::device(0, "sim-0"), odd],
            example::now(),
            Paint::off(),
        );
        assert_eq!(
            text,
            "GPU  NAME             TOTAL  GRANTED  USED    FREE  UTIL  TEMP  LEASES  STATE                ID\n  \
               0  Simulated A100  80 GiB        -     -  80 GiB     -     -       0  open, simulated      sim-0\n  \
               1  Simulated A100  80 GiB        -     -  80 GiB     -     -       0  cordoned, simulated  sim-1\n\
             GPU 1 is cordoned by ann: fan\n\
             GPU 1 has 1 GiB in use by unknown processes, without a lease\n"
        );
    }
}
