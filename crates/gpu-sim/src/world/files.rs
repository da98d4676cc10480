//! Policy files as people save them: good ones that differ in what matters, and broken ones.

use std::fmt::Write;

use gpu_broker::SourceFile;

use crate::dice::Dice;

/// What a person saves may also be this.
const BROKEN: [&str; 5] = [
    "",
    "schema = 1\n[queue]\nordr = \"fifo\"\n",
    "schema = 1\n[[rule]]\nname = \"x\"\nwhen = \"request.memory >\"\ndeny = \"no\"\n",
    "schema = 2\n",
    "[[class]]\nname = \"batch\"\n[[class]]\nname = \"batch\"\n",
];

/// The policy that a world begins with.
pub(super) fn first() -> Vec<SourceFile> {
    file("schema = 1\n[reload]\nconfirm = \"never\"\n[[class]]\nname = \"batch\"\n".to_owned())
}

/// What everybody may have everything under.
pub(super) fn open() -> Vec<SourceFile> {
    let classes = "[[class]]\nname = \"batch\"\n[[class]]\nname = \"urgent\"\n";
    file(format!(
        "schema = 1\n[reload]\nconfirm = \"never\"\nheld = \"keep\"\n{classes}"
    ))
}

/// A save.
pub(super) fn some(dice: &mut Dice) -> Vec<SourceFile> {
    match dice.chance(20) {
        true => file(dice.pick(&BROKEN).to_owned()),
        false => file(good(dice)),
    }
}

fn file(text: String) -> Vec<SourceFile> {
    vec![SourceFile::new("default.toml", text)]
}

fn good(dice: &mut Dice) -> String {
    let mut text = "schema = 1\n".to_owned();
    // Writing to a string cannot fail.
    let mut line = |words: String| {
        let _ = writeln!(text, "{words}");
    };
    line("[reload]".to_owned());
    line(format!(
        "held = \"{}\"",
        dice.pick(&["drain", "drain", "keep", "force"])
    ));
    line(format!("grace = \"{}\"", dice.pick(&["0s", "2s", "30s"])));
    line(format!(
        "confirm = \"{}\"",
        dice.pick(&["never", "never", "drain", "force"])
    ));
    line(format!("on_shrink = \"{}\"", dice.pick(&["keep", "drain"])));
    line("[placement]".to_owned());
    let strategies = ["first-fit", "best-fit", "worst-fit", "spread", "pack"];
    line(format!("strategy = \"{}\"", dice.pick(&strategies)));
    line(format!(
        "reserve = \"{}\"",
        dice.pick(&["0B", "1GiB", "4GiB"])
    ));
    line(format!("load_slots = {}", dice.pick(&[1, 1, 2])));
    line("[queue]".to_owned());
    line(format!(
        "order = \"{}\"",
        dice.pick(&["fifo", "priority", "fair-share"])
    ));
    line(format!("backfill = {}", dice.chance(75)));
    line(format!("max_waiting = {}", dice.pick(&[3, 1024, 1024])));
    line("[reclaim]".to_owned());
    line(format!(
        "signal = \"{}\"",
        dice.pick(&["never", "supervised", "always"])
    ));
    line(format!("delay = \"{}\"", dice.pick(&["1s", "5s"])));
    line(format!(
        "quarantine_after = \"{}\"",
        dice.pick(&["6s", "60s"])
    ));
    for (class, priority) in [("batch", -3), ("urgent", 10)] {
        if dice.chance(90) {
            line(format!(
                "[[class]]\nname = \"{class}\"\npriority = {priority}"
            ));
            if dice.chance(20) {
                line(format!("max_hold = \"{}\"", dice.pick(&["5s", "60s"])));
            }
        }
    }
    if dice.chance(30) {
        let most = dice.pick(&[1, 2]);
        line(format!(
            "[[tenant]]\nname = \"research\"\nmatch = \"holder.user == 'ann'\"\nmax_devices = {most}"
        ));
    }
    if dice.chance(40) {
        let (what, limit) = (dice.pick(&["deny", "hold"]), dice.pick(&[4, 10]));
        line(format!(
            "[[rule]]\nname = \"big\"\nwhen = \"request.memory > GiB({limit})\"\n{what} = \"too big\""
        ));
    }
    if dice.chance(15) {
        line("[[device]]\nname = \"gpu-1\"\ncordon = \"kept for the demo\"".to_owned());
    }
    text
}
