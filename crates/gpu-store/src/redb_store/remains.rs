//! What can be read of a file that is damaged, and what cannot. The file is only looked at.

mod pages;

use std::ops::Range;
use std::path::Path;

use gpu_lease::LeaseId;

use super::inspect::{Look, RowKey, row_line};
use super::open::{OpenError, is_there, read_locked};
use super::tables::{EventKey, TABLES, position};
use crate::check::Fault;
use crate::store::ReadError;
use pages::{Pages, Row};

pub use pages::AsOf;

/// So many faults are named; the others are only counted.
const FAULTS_NAMED_MAX: usize = 1000;

/// A damaged file, in memory.
pub struct Remains {
    bytes: Vec<u8>,
}

/// How much of a table is left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableRemains {
    /// The table.
    pub table: &'static str,
    /// Rows that are as they were written.
    pub readable: u64,
    /// Rows in damaged pages, or of a commit that was perhaps never completed: each of them may be what was
    /// answered, or not.
    pub unsure: u64,
    /// Rows that were there and cannot be read; `None` where nobody knows how many there were.
    pub lost: Option<u64>,
    /// Where in the file its damaged pages are, in bytes.
    pub damaged: Vec<Range<u64>>,
}

/// What was looked at of a damaged file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemainsReport {
    /// Of which commit the rows are.
    pub as_of: AsOf,
    /// Every table of a store.
    pub tables: Vec<TableRemains>,
    /// Rows that are unsure, or readable and not understood.
    pub faults: Vec<Fault>,
    /// How many faults there are besides.
    pub more_faults: u64,
}

/// The faults that are named, and how many are not.
#[derive(Default)]
struct Faults {
    named: Vec<Fault>,
    more: u64,
}

impl Faults {
    fn add(&mut self, fault: impl FnOnce() -> Fault) {
        match self.named.len() < FAULTS_NAMED_MAX {
            true => self.named.push(fault()),
            false => self.more += 1,
        }
    }
}

impl Remains {
    /// Those of the file `path`, whether it is damaged or not. Nothing if no table of a store can be found in it.
    ///
    /// # Errors
    /// [`OpenError`] if it cannot be read as a file; [`OpenError::InUse`] while a broker lives.
    pub fn read(path: &Path) -> Result<Option<Self>, OpenError> {
        if !is_there(path)? {
            return Err(OpenError::Missing {
                path: path.to_owned(),
            });
        }
        let remains = Self {
            bytes: read_locked(path)?,
        };
        let mut tables = remains.check().tables.into_iter();
        let has_rows = tables.any(|left| left.readable + left.unsure > 0);
        Ok(has_rows.then_some(remains))
    }

    /// Of which commit the rows are.
    pub fn as_of(&self) -> AsOf {
        let pages = Pages::of(&self.bytes);
        pages.map(|pages| pages.tables().as_of).unwrap_or_default()
    }

    /// How much of each table is left, and what is wrong with that. What rows say of each other is not looked at:
    /// some of them are missing.
    pub fn check(&self) -> RemainsReport {
        let mut look = Look::default();
        let mut faults = Faults::default();
        let why = self.why_unsure();
        let tables = self.walk(|table, key, row, sound| {
            match sound {
                true => {
                    look.at(table, key, row);
                    let found = look.take_faults().into_iter();
                    found.for_each(|fault| faults.add(|| fault));
                }
                false => faults.add(|| Fault::new(table, key, why)),
            }
            Ok::<_, ReadError>(())
        });
        RemainsReport {
            as_of: self.as_of(),
            tables: tables.unwrap_or_default(),
            faults: faults.named,
            more_faults: faults.more,
        }
    }

    fn why_unsure(&self) -> &'static str {
        let pages = Pages::of(&self.bytes);
        match pages.is_some_and(|pages| pages.tables().committed) {
            true => "its page is damaged: it may not be what was written",
            false => "its commit was perhaps never completed: it may not be what was answered",
        }
    }

    /// Every row that can be read, as [`StoreSnapshot::dump`](super::StoreSnapshot::dump) gives them out; those of
    /// damaged pages are named `unsure` in place of `row`. Answers what was left.
    ///
    /// # Errors
    /// `each` says so.
    pub fn dump<E>(
        &self,
        mut each: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<Vec<TableRemains>, E> {
        self.walk(|table, key, row, sound| {
            let name = if sound { "row" } else { "unsure" };
            each(&row_line(table, key, name, row))
        })
    }

    fn walk<E>(
        &self,
        mut each: impl FnMut(&'static str, &RowKey, &[u8], bool) -> Result<(), E>,
    ) -> Result<Vec<TableRemains>, E> {
        let pages = Pages::of(&self.bytes);
        let found = pages.as_ref().map(Pages::tables).unwrap_or_default();
        let mut said = Ok(());
        let mut tables = Vec::new();
        for table in TABLES {
            let mut left = TableRemains {
                table,
                // Some are made only when they are needed.
                lost: found.complete.then_some(0),
                ..TableRemains::default()
            };
            if let Some((pages, tree)) = pages.as_ref().zip(found.trees.get(table)) {
                left.damaged = pages.walk(*tree, |mut row| {
                    row.sound &= found.committed;
                    let Some(key) = key(table, row.key) else {
                        return;
                    };
                    left.count(&row);
                    if said.is_ok() {
                        said = each(table, &key, row.value, row.sound);
                    }
                });
                let read = left.readable + left.unsure;
                left.lost = tree.rows.map(|rows| rows.saturating_sub(read));
            }
            tables.push(left);
        }
        said.map(|()| tables)
    }
}

impl TableRemains {
    /// Whether all of it is as it was written.
    pub fn is_whole(&self) -> bool {
        self.lost == Some(0) && self.unsure == 0
    }

    fn count(&mut self, row: &Row<'_>) {
        match row.sound {
            true => self.readable += 1,
            false => self.unsure += 1,
        }
    }
}

/// The key of a row as redb writes it. Nothing for bytes that are none.
fn key(table: &str, bytes: &[u8]) -> Option<RowKey> {
    match table {
        "leases" => {
            let bits = u64::from_le_bytes(bytes.try_into().ok()?);
            Some(RowKey::Lease(LeaseId::from_bits(bits)))
        }
        "events" => Some(RowKey::Event(position(event_key(bytes)?))),
        "cordons" => {
            let [host, id] = texts(bytes, 0)?.1;
            Some(RowKey::Name(format!("{host}/{id}")))
        }
        "usage" => {
            let (hour, [user, tenant, host, id]) = texts(bytes, 8)?;
            let hour = u64::from_le_bytes(hour.try_into().ok()?);
            let name = super::read::usage_name((hour, user, tenant, host, id));
            Some(RowKey::Name(name))
        }
        _ => Some(RowKey::Name(std::str::from_utf8(bytes).ok()?.to_owned())),
    }
}

fn event_key(bytes: &[u8]) -> Option<EventKey> {
    let (revision, n) = bytes.split_at_checked(8)?;
    let revision = u64::from_le_bytes(revision.try_into().ok()?);
    Some((revision, u32::from_le_bytes(n.try_into().ok()?)))
}

/// Texts after a number of so many bytes: first the lengths of all texts but the last, then the number, then the
/// texts.
fn texts<const N: usize>(bytes: &[u8], number_bytes: usize) -> Option<(&[u8], [&str; N])> {
    let mut rest = bytes;
    let mut lengths = [0; N];
    for length in lengths.iter_mut().take(N - 1) {
        (*length, rest) = length_of(rest)?;
    }
    let (number, mut rest) = rest.split_at_checked(number_bytes)?;
    let mut texts = [""; N];
    for (n, text) in texts.iter_mut().enumerate() {
        let length = if n + 1 < N { lengths[n] } else { rest.len() };
        let (own, others) = rest.split_at_checked(length)?;
        *text = std::str::from_utf8(own).ok()?;
        rest = others;
    }
    Some((number, texts))
}

/// One byte, or after 254 two, or after 255 four.
fn length_of(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    let bytes_more = match first {
        0..=253 => return Some((usize::from(*first), rest)),
        254 => 2,
        255 => 4,
    };
    let (length, rest) = rest.split_at_checked(bytes_more)?;
    let length = length.iter().rev();
    let length = length.fold(0, |sum, byte| (sum << 8) | usize::from(*byte));
    Some((length, rest))
}
