//! A second count of what is granted, apart from the books that decide.
//!
//! The books know what is free from indices and charges that they keep as they go. The ledger counts from the
//! leases alone, and is asked before anything becomes durable: a mistake of the books stops the broker, and
//! grants nothing twice. It judges what is new, so that nothing can be wrong with what is held for long.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::error::Error;
use core::fmt;

use crate::books::Books;
use crate::ids::{DeviceKey, Fence, LeaseId};
use crate::lease::{Grant, Lease};
use crate::size::Bytes;

/// What is granted of every device, and which fences were.
#[derive(Clone, Debug)]
pub struct Ledger {
    devices: BTreeMap<DeviceKey, Count>,
    /// No grant ever had this fence, or a higher one.
    next_fence: Fence,
}

/// What is granted of one device, to holders and to those that are being reclaimed from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    /// Bytes; what hostile rows add up to has room too.
    memory: u128,
    leases: usize,
    /// How many of them are there alone.
    exclusive: usize,
}

/// A lease as it was before a command, if it was known, and as it is after it.
pub type Change<'a> = (Option<&'a Lease>, &'a Lease);

/// What the books did and must never do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Breach {
    /// A fence that an earlier grant had, or one above the counter that is stored.
    Fence {
        /// Of the new grant.
        lease: LeaseId,
        /// Of the new grant.
        fence: Fence,
    },
    /// A lease that had ended is held again.
    Revived {
        /// Which one.
        lease: LeaseId,
    },
    /// A grant on a device that is not there.
    NoDevice {
        /// Of the new grant.
        lease: LeaseId,
        /// The device.
        device: DeviceKey,
    },
    /// Two leases on a device that one of them is to have alone.
    NotAlone {
        /// Of the new grant.
        lease: LeaseId,
        /// The device.
        device: DeviceKey,
    },
    /// More is granted than the device has.
    TooMuch {
        /// Of the new grant.
        lease: LeaseId,
        /// The device.
        device: DeviceKey,
        /// Bytes granted there, the new ones included.
        granted: u64,
        /// Bytes that it has.
        total: u64,
    },
    /// The books say another sum of a device than the leases on it.
    Sum {
        /// The device.
        device: DeviceKey,
        /// Bytes granted as the books say.
        books: u64,
        /// As the leases say.
        leases: u64,
    },
}

impl Ledger {
    /// What the leases of `books` add up to.
    pub fn of(books: &Books) -> Self {
        let mut ledger = Self {
            devices: BTreeMap::new(),
            next_fence: books.counters().next_fence,
        };
        for lease in books.leases() {
            if let Some(grant) = lease.grant() {
                ledger.next_fence = ledger.next_fence.max(after(grant.fence));
            }
            ledger.count(None, lease.occupying());
        }
        ledger
    }

    /// Enters what one command changed; `books` are those after it.
    ///
    /// # Errors
    /// The first thing that must not be. The ledger is of no use then, and neither are the books.
    pub fn enter(&mut self, changes: &[Change<'_>], books: &Books) -> Result<(), Breach> {
        let moved: Vec<Change<'_>> = changes.iter().copied().filter(moves).collect();
        if moved.is_empty() {
            return Ok(());
        }
        for (before, lease) in &moved {
            self.count(before.and_then(Lease::occupying), lease.occupying());
        }
        self.judge_fences(&moved, books)?;
        for (_, lease) in &moved {
            self.judge_grant(lease, books)?;
        }
        self.agrees(books)
    }

    fn count(&mut self, before: Option<&Grant>, grant: Option<&Grant>) {
        for part in before.iter().flat_map(|grant| &grant.allocations) {
            let count = self.devices.entry(part.device.clone()).or_default();
            count.memory = count.memory.saturating_sub(part.memory.into());
            count.leases = count.leases.saturating_sub(1);
            count.exclusive = count.exclusive.saturating_sub(part.exclusive.into());
        }
        for part in grant.iter().flat_map(|grant| &grant.allocations) {
            let count = self.devices.entry(part.device.clone()).or_default();
            count.memory += u128::from(part.memory);
            count.leases += 1;
            count.exclusive += usize::from(part.exclusive);
        }
    }

    fn on(&self, device: &DeviceKey) -> Count {
        self.devices.get(device).copied().unwrap_or_default()
    }

    /// Every new grant has a fence of its own, above all of before and below what is stored as the next one.
    fn judge_fences(&mut self, moved: &[Change<'_>], books: &Books) -> Result<(), Breach> {
        let mut fences = BTreeSet::new();
        for (before, lease) in moved {
            let (lease, Some(grant)) = (lease.id, lease.held()) else {
                continue;
            };
            if before.is_some_and(|before| before.end_reason().is_some()) {
                return Err(Breach::Revived { lease });
            }
            let fence = grant.fence;
            let is_new = fence >= self.next_fence && fences.insert(fence);
            if !is_new || fence >= books.counters().next_fence {
                return Err(Breach::Fence { lease, fence });
            }
        }
        if let Some(&highest) = fences.last() {
            self.next_fence = after(highest);
        }
        Ok(())
    }

    fn judge_grant(&self, lease: &Lease, books: &Books) -> Result<(), Breach> {
        let parts = lease.held().map_or(&[][..], |grant| &grant.allocations);
        let (lease, mut parts) = (lease.id, parts.iter());
        parts.try_for_each(|part| {
            let device = part.device.clone();
            let state = books.device(&device);
            let Some(state) = state.filter(|state| state.lost_since.is_none()) else {
                return Err(Breach::NoDevice { lease, device });
            };
            let count = self.on(&device);
            let (granted, total) = (count.bytes(), state.device.memory_total);
            if count.exclusive > 0 && count.leases > 1 {
                Err(Breach::NotAlone { lease, device })
            } else if granted > total {
                Err(Breach::TooMuch {
                    lease,
                    device,
                    granted,
                    total,
                })
            } else {
                Ok(())
            }
        })
    }

    fn agrees(&self, books: &Books) -> Result<(), Breach> {
        for state in books.devices() {
            let device = &state.device.key;
            let leases = self.on(device).bytes();
            if state.usage.granted != leases {
                return Err(Breach::Sum {
                    device: device.clone(),
                    books: state.usage.granted,
                    leases,
                });
            }
        }
        Ok(())
    }
}

impl Count {
    fn bytes(self) -> u64 {
        u64::try_from(self.memory).unwrap_or(u64::MAX)
    }
}

/// Whether something else is held than before: most changes are heartbeats.
fn moves((before, lease): &Change<'_>) -> bool {
    let fence = |lease: &Lease| lease.occupying().map(|grant| grant.fence);
    let is_back =
        lease.held().is_some() && before.is_some_and(|lease| lease.end_reason().is_some());
    is_back || before.and_then(fence) != fence(lease)
}

fn after(Fence(fence): Fence) -> Fence {
    Fence(fence.saturating_add(1))
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fence { lease, fence } => {
                write!(
                    f,
                    "lease {lease} would have fence {}, which is not new",
                    fence.0
                )
            }
            Self::Revived { lease } => write!(f, "lease {lease} has ended and would be held again"),
            Self::NoDevice { lease, device } => {
                write!(f, "lease {lease} would be on {device}, which is not there")
            }
            Self::NotAlone { lease, device } => {
                write!(
                    f,
                    "lease {lease} would be on {device} with another, and one of them alone"
                )
            }
            Self::TooMuch {
                lease,
                device,
                granted,
                total,
            } => write!(
                f,
                "with lease {lease}, {} of {device} would be granted, which has {}",
                Bytes(*granted),
                Bytes(*total)
            ),
            Self::Sum {
                device,
                books,
                leases,
            } => write!(
                f,
                "{} of {device} are granted as the books say, and {} as its leases say",
                Bytes(*books),
                Bytes(*leases)
            ),
        }
    }
}

impl Error for Breach {}
