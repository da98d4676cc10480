//! Names of things: hosts, devices, leases, classes, processes, and the fence.
//!
//! Ids are made outside (the core has no randomness) and only compared here.

use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;
use core::str::FromStr;

/// The host that a device belongs to. One broker on one host uses [`HostId::local`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(Arc<str>);

impl HostId {
    /// A host by name.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The host that the broker itself runs on.
    pub fn local() -> Self {
        Self::new("local")
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A device within its host: an NVML UUID, `pci-...`, `vk-...` or a declared name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(Arc<str>);

impl DeviceId {
    /// A device by its id text.
    pub fn new(id: &str) -> Self {
        Self(id.into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the books are keyed by: a device on a host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceKey {
    /// The host.
    pub host: HostId,
    /// The device on that host.
    pub id: DeviceId,
}

impl DeviceKey {
    /// A device of the host that the broker runs on.
    pub fn local(id: &str) -> Self {
        Self {
            host: HostId::local(),
            id: DeviceId::new(id),
        }
    }
}

impl fmt::Display for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.id, f)
    }
}

/// One request for devices, from its arrival to 24 hours after its end.
///
/// 60 random bits, written as `l-` and twelve characters of Crockford's base 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(u64);

const CROCKFORD: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const LEASE_ID_CHARS: u32 = 12;

impl LeaseId {
    /// The id of these bits; only the lowest 60 are used.
    pub fn from_bits(bits: u64) -> Self {
        Self(bits & ((1 << (5 * LEASE_ID_CHARS)) - 1))
    }

    /// The 60 bits.
    pub fn bits(self) -> u64 {
        self.0
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("l-")?;
        for place in (0..LEASE_ID_CHARS).rev() {
            let digit = (self.0 >> (5 * place)) & 31;
            fmt::Write::write_char(f, char::from(CROCKFORD[digit as usize]))?;
        }
        Ok(())
    }
}

/// The text is no lease id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseLeaseIdError;

impl fmt::Display for ParseLeaseIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "not a lease id: expected `l-` and twelve characters of 0-9 and a-z without i, l, o, u",
        )
    }
}

impl core::error::Error for ParseLeaseIdError {}

impl FromStr for LeaseId {
    type Err = ParseLeaseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("l-").ok_or(ParseLeaseIdError)?;
        if digits.len() != LEASE_ID_CHARS as usize {
            return Err(ParseLeaseIdError);
        }
        let value_of = |byte: u8| CROCKFORD.iter().position(|&c| c == byte);
        digits
            .bytes()
            .try_fold(0_u64, |bits, byte| {
                Some((bits << 5) | value_of(byte)? as u64)
            })
            .map(Self)
            .ok_or(ParseLeaseIdError)
    }
}

/// A number that rises with every grant, over restarts and emergencies, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(pub u64);

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// The process id, in the broker's own pid namespace.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks since boot.
    pub start_ticks: u64,
    /// The boot that `pid` and `start_ticks` belong to.
    pub boot_id: String,
    /// The owner of the process when it was registered.
    pub uid: u32,
    /// A supervisor (`gpu-manager run`) started it and expects the broker to signal it.
    pub supervised: bool,
}
