//! Names for sets of files and for plans.

use std::fmt::Write as _;

use gpu_lease::{Fate, Plan};
use gpu_policy::SourceFile;
use sha2::{Digest, Sha256};

/// Names the bytes of a set of files, in their order, with their names.
pub(crate) fn files_hash(files: &[SourceFile]) -> String {
    let mut hash = Sha256::new();
    for file in files {
        // Lengths first: no two sets look alike.
        for part in [file.name.as_bytes(), &file.bytes] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    hex(&hash.finalize())
}

/// Names what a policy means for what is held and waits. Deadlines are no part of it: they move with
/// the time at which it is asked.
pub(super) fn plan_hash(policy: &str, plan: &Plan) -> String {
    let mut text = format!("{policy}\n");
    for held in &plan.held {
        let (id, fate, rule) = (held.id, fate_word(held.fate), &held.because.rule);
        // Writing into a string cannot fail.
        let _ = writeln!(text, "{id} {fate} {rule}");
        if held.shorten.is_some() {
            let _ = writeln!(text, "{id} shorten");
        }
    }
    for (id, refusal) in &plan.denied {
        let _ = writeln!(text, "{id} denied {}", refusal.rule);
    }
    hex(&Sha256::digest(text))
}

fn fate_word(fate: Fate) -> &'static str {
    match fate {
        Fate::Drain(_) => "drain",
        Fate::Force => "force",
        Fate::Keep => "keep",
        Fate::Shorten(_) => "shorten",
        Fate::Withdraw => "withdraw",
    }
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
    digits.collect()
}
