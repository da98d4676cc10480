//! What an expression may name: every field, its type, and which scopes see it.

use std::fmt;

/// What an expression is for: which fields it sees and what it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// `match` of a device rule: the device as discovery describes it -> bool.
    Device,
    /// `when` of a rule: request, holder, books and now -> bool.
    Rule,
    /// `score` of a placement: all of it, with what is free on the device -> int or double.
    Score,
    /// `select` of a request: the device with its labels -> bool.
    Select,
    /// `match` of a tenant: request and holder -> bool.
    Tenant,
}

/// The type of a value that is not made of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scalar {
    Bool,
    Double,
    Int,
    Text,
}

/// The type of an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    /// Words by name.
    Labels,
    List(Scalar),
    One(Scalar),
}

/// Who sees a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Audience {
    /// What changes from decision to decision.
    Decision,
    Device,
    DeviceLabels,
    DeviceState,
    Request,
}

/// A set of fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields(u64);

struct Entry {
    path: &'static str,
    kind: Type,
    audience: Audience,
}

const BOOL: Type = Type::One(Scalar::Bool);
const INT: Type = Type::One(Scalar::Int);
const TEXT: Type = Type::One(Scalar::Text);
const TEXTS: Type = Type::List(Scalar::Text);

macro_rules! fields {
    ($($field:ident $path:literal $kind:ident $audience:ident)*) => {
        /// A value that an expression can read.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Field { $($field),* }

        const ALL: &[(Field, Entry)] = &[
            $((Field::$field, Entry { path: $path, kind: $kind, audience: Audience::$audience })),*
        ];
    };
}

fields! {
    RequestClass     "request.class"        TEXT   Request
    RequestMemory    "request.memory"       INT    Request
    RequestExclusive "request.exclusive"    BOOL   Request
    RequestDevices   "request.devices"      INT    Request
    RequestTtl       "request.ttl"          INT    Request
    RequestWait      "request.wait"         INT    Request
    RequestMaxHold   "request.max_hold"     INT    Request
    RequestLoad      "request.load"         BOOL   Request
    RequestQueue     "request.queue"        BOOL   Request
    RequestLabels    "request.labels"       LABELS Request
    HolderName       "holder.name"          TEXT   Request
    HolderKind       "holder.kind"          TEXT   Request
    HolderUser       "holder.user"          TEXT   Request
    HolderTenant     "holder.tenant"        TEXT   Request
    DeviceId         "device.id"            TEXT   Device
    DeviceName       "device.name"          TEXT   Device
    DeviceIndex      "device.index"         INT    Device
    DeviceVendor     "device.vendor"        TEXT   Device
    DeviceKind       "device.kind"          TEXT   Device
    DeviceMemory     "device.memory"        INT    Device
    DeviceDriver     "device.driver"        TEXT   Device
    DeviceHost       "device.host"          TEXT   Device
    DeviceLabels     "device.labels"        TEXTS  DeviceLabels
    DeviceFree       "device.free"          INT    DeviceState
    DeviceGranted    "device.granted"       INT    DeviceState
    DeviceForeign    "device.foreign"       INT    DeviceState
    DeviceLeases     "device.leases"        INT    DeviceState
    BooksLeases      "books.leases"         INT    Decision
    BooksWaiting     "books.waiting"        INT    Decision
    BooksTotal       "books.memory_total"   INT    Decision
    BooksGranted     "books.memory_granted" INT    Decision
    BooksFree        "books.memory_free"    INT    Decision
    UserLeases       "books.user.leases"    INT    Decision
    UserDevices      "books.user.devices"   INT    Decision
    UserMemory       "books.user.memory"    INT    Decision
    TenantLeases     "books.tenant.leases"  INT    Decision
    TenantDevices    "books.tenant.devices" INT    Decision
    TenantMemory     "books.tenant.memory"  INT    Decision
    NowHour          "now.hour"             INT    Decision
    NowMinute        "now.minute"           INT    Decision
    NowWeekday       "now.weekday"          TEXT   Decision
    NowDay           "now.day"              INT    Decision
    NowMonth         "now.month"            INT    Decision
    NowYear          "now.year"             INT    Decision
    NowClock         "now.clock"            TEXT   Decision
}

const LABELS: Type = Type::Labels;

impl Scope {
    /// The variables that it has, such as `request`.
    pub(super) fn roots(self) -> Vec<&'static str> {
        let mut roots: Vec<&str> = self
            .paths()
            .filter_map(|path| path.split('.').next())
            .collect();
        roots.dedup();
        roots
    }

    /// The full names of the fields that it sees.
    pub(super) fn paths(self) -> impl Iterator<Item = &'static str> {
        let seen = ALL.iter().filter(move |(field, _)| field.is_seen_by(self));
        seen.map(|(_, entry)| entry.path)
    }

    fn sees(self, audience: Audience) -> bool {
        match audience {
            Audience::Decision => matches!(self, Self::Rule | Self::Score),
            Audience::Device => matches!(self, Self::Device | Self::Select | Self::Score),
            Audience::DeviceLabels => matches!(self, Self::Select | Self::Score),
            Audience::DeviceState => matches!(self, Self::Score),
            Audience::Request => matches!(self, Self::Rule | Self::Tenant | Self::Score),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "the `match` of a device",
            Self::Rule => "a rule",
            Self::Score => "a score",
            Self::Select => "a selection of devices",
            Self::Tenant => "the `match` of a tenant",
        })
    }
}

impl Field {
    /// The field with this full name, whoever sees it.
    pub(super) fn named(path: &str) -> Option<Self> {
        let found = ALL.iter().find(|(_, entry)| entry.path == path);
        found.map(|(field, _)| *field)
    }

    /// Every field, in order.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        ALL.iter().map(|(field, _)| *field)
    }

    /// Its full name.
    pub(super) fn path(self) -> &'static str {
        self.entry().path
    }

    pub(super) fn kind(self) -> Type {
        self.entry().kind
    }

    /// The scopes that see it.
    pub(super) fn scopes(self) -> impl Iterator<Item = Scope> {
        let all = [
            Scope::Rule,
            Scope::Tenant,
            Scope::Device,
            Scope::Select,
            Scope::Score,
        ];
        all.into_iter().filter(move |scope| self.is_seen_by(*scope))
    }

    pub(super) fn is_seen_by(self, scope: Scope) -> bool {
        scope.sees(self.entry().audience)
    }

    /// The variable that it is a field of.
    pub(super) fn root(self) -> &'static str {
        let path = self.path();
        path.split_once('.').map_or(path, |(root, _)| root)
    }

    pub(super) fn is_of_books(self) -> bool {
        self.root() == "books"
    }

    pub(super) fn is_of_now(self) -> bool {
        self.root() == "now"
    }

    fn entry(self) -> &'static Entry {
        &ALL[self as usize].1
    }
}

impl Fields {
    pub(super) fn insert(&mut self, field: Field) {
        self.0 |= 1 << field as u64;
    }

    pub(super) fn contains(self, field: Field) -> bool {
        self.0 & (1 << field as u64) != 0
    }

    pub(super) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Field> {
        Field::all().filter(move |field| self.contains(*field))
    }
}

impl Scalar {
    pub(super) fn is_number(self) -> bool {
        matches!(self, Self::Double | Self::Int)
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bool => "true or false",
            Self::Double => "a double",
            Self::Int => "an int",
            Self::Text => "text",
        })
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Labels => f.write_str("labels"),
            Self::List(Scalar::Bool) => f.write_str("a list of bools"),
            Self::List(Scalar::Double) => f.write_str("a list of doubles"),
            Self::List(Scalar::Int) => f.write_str("a list of ints"),
            Self::List(Scalar::Text) => f.write_str("a list of texts"),
            Self::One(scalar) => scalar.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_fields_and_fits_into_a_set() {
        assert!(ALL.len() <= 64);
        for (index, (field, entry)) in ALL.iter().enumerate() {
            assert_eq!(*field as usize, index, "{}", entry.path);
            assert_eq!(Field::named(entry.path), Some(*field));
        }
    }
}
