//! The rows in the pages of a file that redb itself does not open: its file format 3, as `docs/design.md` of redb
//! describes it.
//!
//! Wherever a page is pointed at its checksum is written, so each page is known to be sound by itself, whatever
//! has become of others. Nothing that is read here is believed to be within bounds.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use twox_hash::XxHash3_128;

const PAGE_BYTES_AT: usize = 12;
const REGION_HEADER_PAGES_AT: usize = 16;
const REGION_PAGES_AT: usize = 20;
const SLOTS_AT: [usize; 2] = [64, 192];
const SLOT_BYTES: usize = 128;
const SLOT_ROOT_AT: usize = 8;
const SLOT_TRANSACTION_AT: usize = 104;
const SLOT_CHECKSUM_AT: usize = 112;

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
        let page_bytes = u32_at(bytes, PAGE_BYTES_AT)?;
        let region_header_bytes = u32_at(bytes, REGION_HEADER_PAGES_AT)?.checked_mul(page_bytes)?;
        let data_bytes = u32_at(bytes, REGION_PAGES_AT)?.checked_mul(page_bytes)?;
        Some(Self {
            bytes,
            page_bytes,
            region_header_bytes,
            region_bytes: region_header_bytes.checked_add(data_bytes)?,
        })
    }

    /// The tables of the last commit whose list of them can be read.
    pub(super) fn tables(&self) -> Tables<'a> {
        let lists = self.commits().into_iter().map(|list| self.tables_in(list));
        let mut lists = lists.filter(|tables| !tables.trees.is_empty());
        lists.next().unwrap_or_default()
    }

    /// The lists of tables of the last commits, those whose own checksum is right and the later ones first.
    fn commits(&self) -> Vec<Tree> {
        let slots = SLOTS_AT.iter();
        let slots = slots.filter_map(|&at| self.bytes.get(at..at + SLOT_BYTES));
        let mut commits: Vec<_> = slots.filter_map(commit).collect();
        commits.sort_by_key(|(sound, transaction, _)| std::cmp::Reverse((*sound, *transaction)));
        commits.into_iter().map(|(_, _, list)| list).collect()
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
        }
    }

    /// Every row that can be reached, in the order of keys. Answers where in the file the damaged pages are; those
    /// that only they pointed at are not reached, unless they have the checksum they must have.
    pub(super) fn walk(&self, tree: Tree, mut each: impl FnMut(Row<'a>)) -> Vec<Range<u64>> {
        let mut damaged = Vec::new();
        let mut seen = BTreeSet::new();
        let mut to_do: Vec<Pointer> = tree.root.into_iter().collect();
        while let Some(pointer) = to_do.pop() {
            if !seen.insert(pointer.page) {
                continue;
            }
            let place = self.place(pointer.page);
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
        let order = u32::try_from(page >> 59).ok()?;
        let region = usize::try_from((page >> 20) & 0xf_ffff).ok()?;
        let index = usize::try_from(page & (0xf_ffff >> order)).ok()?;
        let page_bytes = self.page_bytes.checked_mul(1 << order)?;
        // The header of the file takes the first page.
        let start = region
            .checked_mul(self.region_bytes)?
            .checked_add(self.page_bytes + self.region_header_bytes)?
            .checked_add(index.checked_mul(page_bytes)?)?;
        Some(start..start.checked_add(page_bytes)?)
    }
}

/// Whether what a commit says of itself has its checksum, its number, and its list of tables.
fn commit(slot: &[u8]) -> Option<(bool, u64, Tree)> {
    let (written, checksum) = slot.split_at_checked(SLOT_CHECKSUM_AT)?;
    let sound = XxHash3_128::oneshot(written) == u128_at(checksum, 0)?;
    let list = Tree {
        root: Some(pointer(slot, SLOT_ROOT_AT)?),
        key_bytes: None,
        rows: None,
    };
    Some((sound, u64_at(slot, SLOT_TRANSACTION_AT)?, list))
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
        let row = move |n: usize| {
            let (key, value) = (self.key(n)?, self.value(n)?);
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
