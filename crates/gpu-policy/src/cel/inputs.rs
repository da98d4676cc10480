//! What an expression reads: one decision's request, standing and time, and a device.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use gpu_lease::{
    Amount, Device, DeviceKind, DeviceState, HolderKind, Ms, Request, Standing, Vendor, WallMs,
};
use jiff::civil::Weekday;
use jiff::tz::TimeZone;

use super::Reads;
use super::eval::Value;
use super::schema::{Field, Scalar, Type};
use crate::hours::timestamp;

/// The values of all fields of one decision; built once for it, read by every rule.
#[derive(Clone, Debug)]
pub(crate) struct Inputs<'a> {
    request: Option<&'a Request>,
    standing: Standing,
    now: WallMs,
    zone: Option<&'a TimeZone>,
    civil: OnceCell<Civil>,
    device: Option<&'a Device>,
    labels: &'a [String],
    state: Option<&'a DeviceState>,
}

/// A time as a calendar and a clock show it.
#[derive(Clone, Copy, Debug)]
struct Civil {
    year: i64,
    month: i64,
    day: i64,
    weekday: &'static str,
    hour: i64,
    minute: i64,
    /// `18:05`
    clock: [u8; 5],
}

impl<'a> Inputs<'a> {
    /// Those of a decision about `request` at `now`, in the civil time of `zone`, or UTC without one.
    pub(crate) fn of_request(
        request: &'a Request,
        standing: &Standing,
        now: WallMs,
        zone: Option<&'a TimeZone>,
    ) -> Self {
        Self {
            request: Some(request),
            standing: *standing,
            now,
            zone,
            ..Self::empty()
        }
    }

    /// Those of a question about `device` alone, with the labels that the policy gives it.
    pub(crate) fn of_device(device: &'a Device, labels: &'a [String]) -> Self {
        Self {
            device: Some(device),
            labels,
            ..Self::empty()
        }
    }

    /// The same decision, about `state`.
    pub(crate) fn with_device(&self, state: &'a DeviceState) -> Self {
        Self {
            device: Some(&state.device),
            labels: &state.settings.labels,
            state: Some(state),
            ..self.clone()
        }
    }

    /// The same decision at another time.
    pub(crate) fn at(&self, now: WallMs) -> Self {
        Self {
            now,
            civil: OnceCell::new(),
            ..self.clone()
        }
    }

    /// Those of nothing.
    pub(super) fn empty() -> Self {
        Self {
            request: None,
            standing: Standing::default(),
            now: WallMs(0),
            zone: None,
            civil: OnceCell::new(),
            device: None,
            labels: &[],
            state: None,
        }
    }

    /// What tells these inputs from others as far as `fields` go: the time by the minute.
    pub(crate) fn key(&self, fields: Reads) -> Vec<u8> {
        let mut key = Vec::with_capacity(64);
        if fields.now() {
            key.extend((self.now.0 / MINUTE_MS).to_le_bytes());
        }
        for field in fields.0.iter().filter(|field| !field.is_of_now()) {
            self.read(field).write(&mut key);
        }
        key
    }

    /// The value of `field`. A field that its scope does not see is never read; it is empty.
    pub(super) fn read(&self, field: Field) -> Value<'_> {
        match field {
            Field::RequestClass
            | Field::RequestMemory
            | Field::RequestExclusive
            | Field::RequestDevices
            | Field::RequestTtl
            | Field::RequestWait
            | Field::RequestMaxHold
            | Field::RequestLoad
            | Field::RequestQueue
            | Field::RequestLabels
            | Field::HolderName
            | Field::HolderKind
            | Field::HolderUser
            | Field::HolderTenant => of_request(self.request, field),
            Field::DeviceId
            | Field::DeviceName
            | Field::DeviceIndex
            | Field::DeviceVendor
            | Field::DeviceKind
            | Field::DeviceMemory
            | Field::DeviceDriver
            | Field::DeviceHost => of_device(self.device, field),
            Field::DeviceLabels => Value::Texts(self.labels),
            Field::DeviceFree
            | Field::DeviceGranted
            | Field::DeviceForeign
            | Field::DeviceLeases => of_state(self.state, field),
            Field::BooksLeases
            | Field::BooksWaiting
            | Field::BooksTotal
            | Field::BooksGranted
            | Field::BooksFree
            | Field::UserLeases
            | Field::UserDevices
            | Field::UserMemory
            | Field::TenantLeases
            | Field::TenantDevices
            | Field::TenantMemory => of_standing(&self.standing, field),
            Field::NowHour
            | Field::NowMinute
            | Field::NowWeekday
            | Field::NowDay
            | Field::NowMonth
            | Field::NowYear
            | Field::NowClock => self.civil().read(field),
        }
    }

    fn civil(&self) -> &Civil {
        self.civil.get_or_init(|| Civil::at(self.now, self.zone))
    }
}

const MINUTE_MS: u64 = 60_000;
static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

fn of_request(request: Option<&Request>, field: Field) -> Value<'_> {
    let Some(request) = request else {
        return empty(field);
    };
    let holder = &request.holder;
    match field {
        Field::RequestClass => Value::Text(&request.class),
        Field::RequestMemory => match request.amount {
            Amount::Exclusive => Value::Int(0),
            Amount::Memory(bytes) => int(bytes),
        },
        Field::RequestExclusive => Value::Bool(request.amount == Amount::Exclusive),
        Field::RequestDevices => int(request.devices),
        Field::RequestTtl => seconds(request.ttl),
        Field::RequestWait => seconds(request.wait),
        Field::RequestMaxHold => seconds(request.max_hold.unwrap_or_default()),
        Field::RequestLoad => Value::Bool(request.load),
        Field::RequestQueue => Value::Bool(request.queue),
        Field::RequestLabels => Value::Labels(&request.labels),
        Field::HolderName => Value::Text(&holder.name),
        Field::HolderKind => Value::Text(match holder.kind {
            HolderKind::Page => "page",
            HolderKind::Process(_) => "process",
            HolderKind::Remote => "remote",
        }),
        Field::HolderUser => Value::Text(&holder.user),
        Field::HolderTenant => Value::Text(holder.tenant.as_deref().unwrap_or_default()),
        other => empty(other),
    }
}

fn of_device(device: Option<&Device>, field: Field) -> Value<'_> {
    let Some(device) = device else {
        return empty(field);
    };
    match field {
        Field::DeviceId => Value::Text(device.key.id.as_str()),
        Field::DeviceName => Value::Text(&device.name),
        Field::DeviceIndex => int(device.index),
        Field::DeviceVendor => Value::Text(match device.vendor {
            Vendor::Amd => "amd",
            Vendor::Intel => "intel",
            Vendor::Nvidia => "nvidia",
            Vendor::Other => "other",
        }),
        Field::DeviceKind => Value::Text(match device.kind {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Discrete => "discrete",
            DeviceKind::Integrated => "integrated",
            DeviceKind::Simulated => "simulated",
            DeviceKind::Virtual => "virtual",
        }),
        Field::DeviceMemory => int(device.memory_total),
        Field::DeviceDriver => Value::Text(device.driver.as_deref().unwrap_or_default()),
        Field::DeviceHost => Value::Text(device.key.host.as_str()),
        other => empty(other),
    }
}

fn of_state(state: Option<&DeviceState>, field: Field) -> Value<'static> {
    let Some(state) = state else {
        return empty(field);
    };
    match field {
        Field::DeviceFree => int(state.free()),
        Field::DeviceGranted => int(state.usage.granted),
        Field::DeviceForeign => int(state.usage.foreign),
        Field::DeviceLeases => int(state.occupants.len() as u64),
        other => empty(other),
    }
}

fn of_standing(standing: &Standing, field: Field) -> Value<'static> {
    let Standing {
        held,
        grantable,
        waiting,
        user,
        tenant,
    } = standing;
    match field {
        Field::BooksLeases => int(held.leases),
        Field::BooksWaiting => int(*waiting),
        Field::BooksTotal => int(*grantable),
        Field::BooksGranted => int(held.memory),
        Field::BooksFree => int(grantable.saturating_sub(held.memory)),
        Field::UserLeases => int(user.leases),
        Field::UserDevices => int(user.devices),
        Field::UserMemory => int(user.memory),
        Field::TenantLeases => int(tenant.leases),
        Field::TenantDevices => int(tenant.devices),
        Field::TenantMemory => int(tenant.memory),
        other => empty(other),
    }
}

fn empty(field: Field) -> Value<'static> {
    match field.kind() {
        Type::Labels => Value::Labels(&NO_LABELS),
        Type::List(_) => Value::Texts(&[]),
        Type::One(Scalar::Bool) => Value::Bool(false),
        Type::One(Scalar::Double) => Value::Double(0.0),
        Type::One(Scalar::Int) => Value::Int(0),
        Type::One(Scalar::Text) => Value::Text(""),
    }
}

/// Above `i64::MAX` all numbers are alike.
fn int(number: impl Into<u64>) -> Value<'static> {
    Value::Int(i64::try_from(number.into()).unwrap_or(i64::MAX))
}

fn seconds(length: Ms) -> Value<'static> {
    int(length.0 / 1000)
}

impl Civil {
    fn at(now: WallMs, zone: Option<&TimeZone>) -> Self {
        let zone = zone.cloned().unwrap_or(TimeZone::UTC);
        let zoned = timestamp(now).to_zoned(zone);
        let (hour, minute) = (zoned.hour(), zoned.minute());
        Self {
            year: zoned.year().into(),
            month: zoned.month().into(),
            day: zoned.day().into(),
            weekday: match zoned.weekday() {
                Weekday::Monday => "mon",
                Weekday::Tuesday => "tue",
                Weekday::Wednesday => "wed",
                Weekday::Thursday => "thu",
                Weekday::Friday => "fri",
                Weekday::Saturday => "sat",
                Weekday::Sunday => "sun",
            },
            hour: hour.into(),
            minute: minute.into(),
            clock: {
                let digit = |number: i8| b'0' + number.unsigned_abs() % 10;
                [
                    digit(hour / 10),
                    digit(hour),
                    b':',
                    digit(minute / 10),
                    digit(minute),
                ]
            },
        }
    }

    fn read(&self, field: Field) -> Value<'_> {
        match field {
            Field::NowHour => Value::Int(self.hour),
            Field::NowMinute => Value::Int(self.minute),
            Field::NowWeekday => Value::Text(self.weekday),
            Field::NowDay => Value::Int(self.day),
            Field::NowMonth => Value::Int(self.month),
            Field::NowYear => Value::Int(self.year),
            Field::NowClock => Value::Text(str::from_utf8(&self.clock).unwrap_or_default()),
            other => empty(other),
        }
    }
}
