//! `store` on a file that is damaged: it says what is left, gives that out, and touches nothing.
#![expect(clippy::unwrap_used, reason = "a test fails where its own steps fail")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use gpu_lease::{Counters, Event, EventKind, Fence, WallMs};
use gpu_store::{Batch, EventPosition, RedbStore, Store, StoreId, StoredEvent};
use serde_json::Value;
use tempfile::TempDir;

const EVENTS: u32 = 200;

#[test]
fn a_damaged_store_is_checked_table_by_table() {
    let place = Place::with_a_flipped_bit();
    let checked = place.store("check", &[]);
    assert_eq!(checked.code, 1, "{}", checked.stdout);
    for said in [
        "store.redb: damaged\n",
        "  meta      3 readable, 0 unsure, 0 lost\n",
        "  leases    0 readable, 0 unsure, 0 lost\n",
        " unsure, 0 lost; damaged bytes ",
        "  row `1-100` of table `events`: its page is damaged",
    ] {
        assert!(checked.stdout.contains(said), "{said}: {}", checked.stdout);
    }
    must_explain(&checked.stderr);

    let checked = place.store("check", &["--json"]);
    assert_eq!(checked.code, 1);
    let said: Value = serde_json::from_str(&checked.stdout).unwrap();
    assert_eq!(said["sound"], false);
    assert!(said["damage"].as_str().unwrap().contains("is damaged"));
    let events = &said["tables"]["events"];
    let count = |what: &str| events[what].as_u64().unwrap();
    assert_eq!(count("readable") + count("unsure"), u64::from(EVENTS));
    assert!(count("unsure") > 0 && count("readable") > count("unsure"));
    assert_eq!(count("lost"), 0);
    assert!(events["damaged_bytes"][0][0].is_u64());
    place.must_be_untouched();
}

#[test]
fn what_can_be_read_of_a_damaged_store_is_dumped() {
    let place = Place::with_a_flipped_bit();
    let dumped = place.store("dump", &[]);
    assert_eq!(dumped.code, 1);
    must_explain(&dumped.stderr);
    assert!(dumped.stderr.contains("; events "), "{}", dumped.stderr);
    let rows = dumped.stdout.lines().map(serde_json::from_str);
    let rows: Vec<Value> = rows.collect::<Result<_, _>>().unwrap();
    let events: Vec<_> = rows.iter().filter(|row| row["table"] == "events").collect();
    assert_eq!(events.len(), EVENTS as usize);
    for event in events {
        let (key, text) = (event["key"].as_str().unwrap(), &event["row"]["text"]);
        assert!(text.is_null() || *text == format!("event {key}"), "{event}");
        let named = ["row", "unsure", "unreadable"];
        assert_eq!(
            named.iter().filter(|name| !event[**name].is_null()).count(),
            1
        );
    }
    place.must_be_untouched();
}

#[test]
fn rows_of_an_earlier_commit_are_not_passed_off_as_all_there_were() {
    let place = Place::with_a_damaged_header();
    for verb in ["check", "dump"] {
        let ran = place.store(verb, &[]);
        assert_eq!(ran.code, 1);
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(said.contains("as of an earlier commit: what was written after it is not there"));
        assert!(said.contains("nobody knows how many lost"), "{said}");
        assert!(!said.contains("every row could be read"), "{said}");
    }
    let checked = place.store("check", &["--json"]);
    let said: Value = serde_json::from_str(&checked.stdout).unwrap();
    assert_eq!(said["as_of"], "perhaps_earlier");
    place.must_be_untouched();
}

#[test]
fn of_a_store_of_which_nothing_is_left_that_is_said() {
    let mut place = Place::with_a_flipped_bit();
    place.bytes.truncate(5000);
    place.bytes[4096..].fill(0);
    fs::write(&place.path, &place.bytes).unwrap();
    for verb in ["check", "dump"] {
        let ran = place.store(verb, &[]);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{verb}");
        assert!(
            ran.stderr.contains("no row of it can be read"),
            "{}",
            ran.stderr
        );
        assert!(ran.stderr.contains("hint: "), "{}", ran.stderr);
    }
    place.must_be_untouched();
}

fn must_explain(stderr: &str) {
    for said in [
        "is damaged: ",
        "hint: keep this file",
        "store dump",
        "restore a copy",
    ] {
        assert!(stderr.contains(said), "{said}: {stderr}");
    }
}

struct Place {
    directory: TempDir,
    path: PathBuf,
    bytes: Vec<u8>,
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Place {
    /// A closed store with many events, one of which rotted.
    fn with_a_flipped_bit() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.redb");
        let store = RedbStore::open(&path, StoreId::from_bits(1)).unwrap();
        let mut batch = Batch::new(Counters {
            revision: 1,
            next_fence: Fence(1),
            generation: 1,
        });
        batch.events = (0..EVENTS).map(event).collect();
        store.commit(&batch).unwrap();
        drop(store);
        let mut bytes = fs::read(&path).unwrap();
        let text = b"event 1-100";
        let found = bytes.windows(text.len()).position(|part| part == text);
        bytes[found.unwrap()] ^= 1;
        fs::write(&path, &bytes).unwrap();
        Self {
            directory,
            path,
            bytes,
        }
    }

    /// The same, where the slot of the header that does not have the last commit rotted, too.
    fn with_a_damaged_header() -> Self {
        let mut place = Self::with_a_flipped_bit();
        let other = if place.bytes[9] & 1 == 0 { 192 } else { 64 };
        place.bytes[other + 104] ^= 1;
        fs::write(&place.path, &place.bytes).unwrap();
        place
    }

    fn store(&self, verb: &str, more: &[&str]) -> Ran {
        let mut program = Command::new(env!("CARGO_BIN_EXE_gpu-manager"));
        program
            .args(["store", verb, "--state-dir"])
            .arg(self.directory.path());
        let output = program.args(more).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ran {
            code: output.status.code().unwrap(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    fn must_be_untouched(&self) {
        assert!(fs::read(&self.path).unwrap() == self.bytes);
    }
}

fn event(n: u32) -> StoredEvent {
    StoredEvent {
        position: EventPosition { revision: 1, n },
        wall: WallMs(1_700_000_000_000),
        generation: 1,
        event: Event {
            kind: EventKind::PolicySwitched,
            lease: None,
            device: None,
            by: None,
            text: format!("event 1-{n}"),
        },
        user: None,
        also_on: Vec::new(),
    }
}
