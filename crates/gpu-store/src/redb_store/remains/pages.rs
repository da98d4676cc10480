//! The rows in the pages of a file that redb itself does not open: its file format 3, as `docs/design.md` of redb
//! describes it.
//!
//! Wherever a page is pointed at its checksum is written, so each page is known to be sound by itself, whatever
//! has become of others. Nothing that is read here is believed to be within bounds.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use twox_hash::XxHash3_128;

const GOD_BYTE_AT: usize = 9;
/// Of the god byte: which slot has the last commit.
const PRIMARY_BIT: u8 = 1;
const PAGE_BYTES_AT: usize = 12;
const REGION_HEADER_PAGES_AT: usize = 16;
const REGION_PAGES_AT: usize = 20;
const SLOTS_AT: [usize; 2] = [64, 192];
const SLOT_BYTES: usize = 128;
const SLOT_ROOT_AT: usize = 8;
const SLOT_TRANSACTION_AT: usize = 104;
const SLOT_CHECKSUM_AT: usize = 112;

/// Of a page number: nothing is written there, so that a page has one number.
const RESERVED_BITS: u64 = ((1 << 19) - 1) << 40;
/// The only size of the least pages that redb writes.
const LEAST_PAGE_BYTES: usize = 4096;

const LEAF: u8 = 1;
const BRANCH: u8 = 2;
/// The kind of a table that has one value for each key.
const NORMAL_TABLE: u8 = 3;

/// The bytes of a file.
pub(super) struct Pages<'a> {
    bytes: &'a [u8],
    page_bytes: usize,
    region_header_bytes: usize,
    region_bytes: usize,
}

/// The list of tables.
#[derive(Default)]
pub(super) struct Tables<'a> {
    /// By name.
    pub(super) trees: BTreeMap<&'a str, Tree>,
    /// No other table was there.
    pub(super) complete: bool,
    /// Of which commit it is.
    pub(super) as_of: AsOf,
    /// Whether that commit was ever made the last one, as far as can be told: what was not was never answered.
    pub(super) committed: bool,
}

/// Of which commit the rows are that were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AsOf {
    /// The last one: each row that was there is read or counted.
    Last,
    /// The one that the header names as the last. Part of the header is damaged, or it has a later one that may
    /// never have been completed.
    PerhapsEarlier,
    /// The last one cannot be read, this is another: nobody knows what is missing.
    #[default]
    Earlier,
}

/// What a slot of the header says of a commit.
#[derive(Clone, Copy)]
struct Commit {
    /// It has its checksum.
    sound: bool,
    transaction: u64,
    list: Tree,
}

/// The pages of a table, by its first one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tree {
    root: Option<Pointer>,
    /// Of the keys; `None` if they differ in length.
    key_bytes: Option<usize>,
    /// How many rows it has; unknown where even that is not sure.
    pub(super) rows: Option<u64>,
}

/// Where a page is, and the checksum it must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pointer {
    page: u64,
    checksum: u128,
}

/// A row as its page has it.
pub(super) struct Row<'a> {
    pub(super) key: &'a [u8],
    pub(super) value: &'a [u8],
    /// Whether its page is as it was written.
    pub(super) sound: bool,
}

impl<'a> Pages<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Option<Self> {
        let page_bytes = u32_at(bytes, PAGE_BYTES_AT).filter(|it| *it == LEAST_PAGE_BYTES)?;
        let region_header_bytes = u32_at(bytes, REGION_HEADER_PAGES_AT)?.checked_mul(page_bytes)?;
        let data_bytes = u32_at(bytes, REGION_PAGES_AT)?.checked_mul(page_bytes)?;
        Some(Self {
            bytes,
            page_bytes,
            region_header_bytes,
            region_bytes: region_header_bytes.checked_add(data_bytes)?,
        })
    }

    /// The tables of the commit that the header names as the last one; of the other one where no list of tables can
    /// be read there.
    pub(super) fn tables(&self) -> Tables<'a> {
        let [last, other] = self.commits();
        let of_last = last.map(|last| self.tables_in(last.list));
        if let Some(tables) = of_last.filter(|tables| !tables.trees.is_empty()) {
            let as_of = match is_last(last, other) {
                true => AsOf::Last,
                false => AsOf::PerhapsEarlier,
            };
            return tables.of(as_of);
        }
        let of_other = other.map(|other| self.tables_in(other.list));
        let mut tables = of_other.unwrap_or_default().of(AsOf::Earlier);
        // The first phase of a commit writes it there, the second one names it the last.
        tables.committed = last
            .zip(other)
            .is_none_or(|(last, other)| !other.is_later_than(&last));
        tables
    }

    /// The one that the header names as the last first.
    fn commits(&self) -> [Option<Commit>; 2] {
        let mut slots = SLOTS_AT;
        let god_byte = self.bytes.get(GOD_BYTE_AT);
        if god_byte.is_some_and(|flags| flags & PRIMARY_BIT != 0) {
            slots.reverse();
        }
        slots.map(|at| commit(self.bytes.get(at..at + SLOT_BYTES)?))
    }

    fn tables_in(&self, list: Tree) -> Tables<'a> {
        let mut trees = BTreeMap::new();
        let damaged = self.walk(list, |row| {
            let name = std::str::from_utf8(row.key).ok();
            let tree = tree(row.value, row.sound);
            trees.extend(name.zip(tree.filter(|tree| row.sound || self.is_sound(*tree))));
        });
        Tables {
            trees,
            complete: damaged.is_empty(),
            as_of: AsOf::Last,
            committed: true,
        }
    }

    /// Every row that can be reached, in the order of keys. Answers where in the file the damaged pages are; those
    /// that only they pointed at are not reached, unless they have the checksum they must have.
    pub(super) fn walk(&self, tree: Tree, mut each: impl FnMut(Row<'a>)) -> Vec<Range<u64>> {
        let mut damaged = Vec::new();
        let mut seen = BTreeSet::new();
        let mut to_do: Vec<Pointer> = tree.root.into_iter().collect();
        while let Some(pointer) = to_do.pop() {
            let place = self.place(pointer.page);
            if !seen.insert(place.as_ref().map(|place| (place.start, place.end))) {
                continue;
            }
            let node = self.node(pointer, tree.key_bytes);
            let sound = node
                .as_ref()
                .is_some_and(|node| node.checksum() == Some(pointer.checksum));
            if !sound {
                damaged.extend(place.map(|place| place.start as u64..place.end as u64));
            }
            match node {
                Some(Node::Leaf(leaf)) => leaf.rows(sound).for_each(&mut each),
                Some(Node::Branch(branch)) => {
                    let children = branch.children().into_iter().rev();
                    let is_child = |child: &Pointer| sound || self.is_page(*child, tree.key_bytes);
                    to_do.extend(children.filter(is_child));
                }
                None => {}
            }
        }
        damaged
    }

    fn is_sound(&self, tree: Tree) -> bool {
        let is_page = |root| self.is_page(root, tree.key_bytes);
        tree.root.is_none_or(is_page)
    }

    fn is_page(&self, pointer: Pointer, key_bytes: Option<usize>) -> bool {
        let node = self.node(pointer, key_bytes);
        node.is_some_and(|node| node.checksum() == Some(pointer.checksum))
    }

    fn node(&self, pointer: Pointer, key_bytes: Option<usize>) -> Option<Node<'a>> {
        Node::of(self.bytes.get(self.place(pointer.page)?)?, key_bytes)
    }

    /// Pages are numbered in each region by units of their own size, a power of two of the least.
    fn place(&self, page: u64) -> Option<Range<usize>> {
        if page & RESERVED_BITS != 0 {
            return None;
        }
        let order = u32::try_from(page >> 59).ok()?;
        let region = usize::try_from((page >> 20) & 0xf_ffff).ok()?;
        let index = usize::try_from(page & (0xf_ffff >> order)).ok()?;
        let page_bytes = self.page_bytes.checked_mul(1 << order)?;
        let end = index.checked_add(1)?.checked_mul(page_bytes)?;
        // Pages of one size do not overlap, which bounds how much there is to read.
        if end > self.region_bytes - self.region_header_bytes {
            return None;
        }
        // The header of the file takes the first page.
        let start = region
            .checked_mul(self.region_bytes)?
            .checked_add(self.page_bytes + self.region_header_bytes)?
            .checked_add(index.checked_mul(page_bytes)?)?;
        Some(start..start.checked_add(page_bytes)?)
    }
}

impl Tables<'_> {
    /// Of any commit but the last nobody knows how many rows have come since.
    fn of(mut self, as_of: AsOf) -> Self {
        self.as_of = as_of;
        if as_of != AsOf::Last {
            self.complete = false;
            self.trees.values_mut().for_each(|tree| tree.rows = None);
        }
        self
    }
}

impl Commit {
    fn is_later_than(&self, other: &Self) -> bool {
        self.transaction > other.transaction
    }
}

/// Whether what the header names as the last commit is: nothing guards the bit that says so, but slots that are as
/// they were written and in their order agree with it.
fn is_last(last: Option<Commit>, other: Option<Commit>) -> bool {
    last.zip(other)
        .is_some_and(|(last, other)| last.sound && other.sound && !other.is_later_than(&last))
}

fn commit(slot: &[u8]) -> Option<Commit> {
    let (written, checksum) = slot.split_at_checked(SLOT_CHECKSUM_AT)?;
    Some(Commit {
        sound: XxHash3_128::oneshot(written) == u128_at(checksum, 0)?,
        transaction: u64_at(slot, SLOT_TRANSACTION_AT)?,
        list: Tree {
            root: Some(pointer(slot, SLOT_ROOT_AT)?),
            key_bytes: None,
            rows: None,
        },
    })
}

/// What the row of a table in the list of tables says.
fn tree(definition: &[u8], sound: bool) -> Option<Tree> {
    let is_there = |at: usize| definition.get(at).map(|flag| *flag != 0);
    let key_bytes = match is_there(42)? {
        true => Some(u32_at(definition, 43)?),
        false => None,
    };
    let root = match is_there(9)? {
        true => Some(pointer(definition, 10)?),
        false => None,
    };
    // Values of ours differ in length.
    let is_ours = definition.first() == Some(&NORMAL_TABLE) && !is_there(47)?;
    is_ours.then_some(Tree {
        root,
        key_bytes,
        rows: u64_at(definition, 1).filter(|_| sound),
    })
}

enum Node<'a> {
    Branch(Branch<'a>),
    Leaf(Leaf<'a>),
}

/// Points at other pages.
struct Branch<'a> {
    page: &'a [u8],
    keys: usize,
    key_bytes: Option<usize>,
}

/// Has rows.
struct Leaf<'a> {
    page: &'a [u8],
    rows: usize,
    key_bytes: Option<usize>,
}

impl<'a> Node<'a> {
    fn of(page: &'a [u8], key_bytes: Option<usize>) -> Option<Self> {
        let count = u16::from_le_bytes(page.get(2..4)?.try_into().ok()?).into();
        match *page.first()? {
            BRANCH => Some(Self::Branch(Branch {
                page,
                keys: count,
                key_bytes,
            })),
            LEAF => Some(Self::Leaf(Leaf {
                page,
                rows: count,
                key_bytes,
            })),
            _ => None,
        }
    }

    /// Of as much of the page as is in use.
    fn checksum(&self) -> Option<u128> {
        let (page, end) = match self {
            Self::Branch(branch) => (branch.page, branch.end()?),
            Self::Leaf(leaf) => (leaf.page, leaf.value_end(leaf.rows.checked_sub(1)?)?),
        };
        Some(XxHash3_128::oneshot(page.get(..end)?))
    }
}

impl Branch<'_> {
    fn children(&self) -> Vec<Pointer> {
        let count = self.keys + 1;
        let child = |n: usize| {
            Some(Pointer {
                page: u64_at(self.page, 8 + 16 * count + 8 * n)?,
                checksum: u128_at(self.page, 8 + 16 * n)?,
            })
        };
        (0..count).map_while(child).collect()
    }

    fn end(&self) -> Option<usize> {
        let keys_at = 8 + 24 * (self.keys + 1);
        match self.key_bytes {
            Some(key_bytes) => keys_at.checked_add(key_bytes.checked_mul(self.keys)?),
            None => u32_at(self.page, keys_at + 4 * self.keys.checked_sub(1)?),
        }
    }
}

impl<'a> Leaf<'a> {
    fn rows(self, sound: bool) -> impl Iterator<Item = Row<'a>> {
        let rows = self.rows;
        // Rows do not overlap. One whose end is damaged may reach over others, but not all of them over all.
        let mut room = 2 * self.page.len();
        let row = move |n: usize| {
            let (key, value) = (self.key(n)?, self.value(n)?);
            room = room.checked_sub(key.len() + value.len())?;
            Some(Row { key, value, sound })
        };
        (0..rows).filter_map(row)
    }

    fn key(&self, n: usize) -> Option<&'a [u8]> {
        let start = match n.checked_sub(1) {
            None => self.keys_at(),
            Some(before) => self.key_end(before)?,
        };
        self.page.get(start..self.key_end(n)?)
    }

    fn value(&self, n: usize) -> Option<&'a [u8]> {
        let start = match n.checked_sub(1) {
            None => self.key_end(self.rows.checked_sub(1)?)?,
            Some(before) => self.value_end(before)?,
        };
        self.page.get(start..self.value_end(n)?)
    }

    /// Before the keys are where each of them ends, if they differ in length, and where each value does.
    fn keys_at(&self) -> usize {
        match self.key_bytes {
            Some(_) => 4 + 4 * self.rows,
            None => 4 + 8 * self.rows,
        }
    }

    fn key_end(&self, n: usize) -> Option<usize> {
        match self.key_bytes {
            Some(key_bytes) => self.keys_at().checked_add(key_bytes.checked_mul(n + 1)?),
            None => u32_at(self.page, 4 + 4 * n),
        }
    }

    fn value_end(&self, n: usize) -> Option<usize> {
        match self.key_bytes {
            Some(_) => u32_at(self.page, 4 + 4 * n),
            None => u32_at(self.page, 4 + 4 * (self.rows + n)),
        }
    }
}

fn pointer(bytes: &[u8], at: usize) -> Option<Pointer> {
    Some(Pointer {
        page: u64_at(bytes, at)?,
        checksum: u128_at(bytes, at + 8)?,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    let number = u32::from_le_bytes(array_at(bytes, at)?);
    usize::try_from(number).ok()
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array_at(bytes, at).map(u64::from_le_bytes)
}

fn u128_at(bytes: &[u8], at: usize) -> Option<u128> {
    array_at(bytes, at).map(u128::from_le_bytes)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}
