//! Policy files as people save them: good ones that differ in what matters, and broken ones.

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

/// Whether nobody can go by it: hours need a time zone, and nobody says one here; and no grace is longer than the
/// longest.
pub(super) fn is_broken(files: &[SourceFile]) -> bool {
    let broken = |(_, text): &(String, String)| {
        BROKEN.contains(&text.as_str())
            || text.contains("\nhours = ")
            || text.contains("\ngrace = \"30s\"\ngrace_max = \"10s\"\n")
    };
    texts(files).iter().any(broken)
}

/// Names and texts, as a store keeps them.
pub(super) fn texts(files: &[SourceFile]) -> Vec<(String, String)> {
    let text = |file: &SourceFile| String::from_utf8_lossy(&file.bytes).into_owned();
    let files = files.iter().map(|file| (file.name.clone(), text(file)));
    files.collect()
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
    let classes: String = ["batch", "urgent"].map(|name| class(dice, name)).concat();
    let parts = [
        "schema = 1\n".to_owned(),
        reload(dice),
        placement(dice),
        queue(dice),
        reclaim(dice),
        classes,
        now_and_then(dice, 30, tenant),
        now_and_then(dice, 40, rule),
        now_and_then(dice, 15, device),
    ];
    parts.concat()
}

fn now_and_then(dice: &mut Dice, percent: u64, part: fn(&mut Dice) -> String) -> String {
    match dice.chance(percent) {
        true => part(dice),
        false => String::new(),
    }
}

fn reload(dice: &mut Dice) -> String {
    let held = dice.pick(&["drain", "drain", "keep", "force"]);
    let scope = dice.weighted(&[(85, "violating"), (15, "all")]);
    let grace = dice.pick(&["0s", "2s", "30s"]);
    let most = dice.weighted(&[(80, "1h"), (20, "10s")]);
    let confirm = dice.pick(&["never", "never", "drain", "force"]);
    let on_shrink = dice.pick(&["keep", "drain"]);
    let fates = format!("held = \"{held}\"\nscope = \"{scope}\"\non_shrink = \"{on_shrink}\"\n");
    let times = format!("grace = \"{grace}\"\ngrace_max = \"{most}\"\n");
    format!("[reload]\nconfirm = \"{confirm}\"\n{fates}{times}")
}

fn placement(dice: &mut Dice) -> String {
    let strategy = dice.pick(&["first-fit", "best-fit", "worst-fit", "spread", "pack"]);
    let reserve = dice.pick(&["0B", "1GiB", "4GiB"]);
    let slots = dice.pick(&[1, 1, 2]);
    format!(
        "[placement]\nstrategy = \"{strategy}\"\nreserve = \"{reserve}\"\nload_slots = {slots}\n"
    )
}

fn queue(dice: &mut Dice) -> String {
    let order = dice.pick(&["fifo", "priority", "fair-share"]);
    let backfill = dice.chance(75);
    let most = dice.pick(&[3, 1024, 1024]);
    format!("[queue]\norder = \"{order}\"\nbackfill = {backfill}\nmax_waiting = {most}\n")
}

fn reclaim(dice: &mut Dice) -> String {
    let signal = dice.pick(&["never", "supervised", "always"]);
    let verify = dice.chance(85);
    let delay = dice.pick(&["0s", "1s", "5s", "5s", "20s"]);
    let after = dice.pick(&["2s", "6s", "60s"]);
    let times = format!("delay = \"{delay}\"\nquarantine_after = \"{after}\"\n");
    format!("[reclaim]\nverify = {verify}\nsignal = \"{signal}\"\n{times}")
}

fn class(dice: &mut Dice, name: &str) -> String {
    if dice.chance(10) {
        return String::new();
    }
    let priority = dice.pick(&[-3, 0, 10]);
    let parts = [
        format!("[[class]]\nname = \"{name}\"\npriority = {priority}\n"),
        now_and_then(dice, 20, |_| "hours = \"18:00-09:00\"\n".to_owned()),
        now_and_then(dice, 30, |dice| {
            format!("drain_grace = \"{}\"\n", dice.pick(&["0s", "3s", "60s"]))
        }),
        now_and_then(dice, 20, |dice| {
            format!("max_hold = \"{}\"\n", dice.pick(&["5s", "60s"]))
        }),
    ];
    parts.concat()
}

fn tenant(dice: &mut Dice) -> String {
    let most = dice.pick(&[
        "max_devices = 1",
        "max_devices = 2",
        "max_memory = \"12GiB\"",
    ]);
    format!("[[tenant]]\nname = \"research\"\nmatch = \"holder.user == 'ann'\"\n{most}\n")
}

fn rule(dice: &mut Dice) -> String {
    let (what, limit) = (dice.pick(&["deny", "hold"]), dice.pick(&[4, 10]));
    format!(
        "[[rule]]\nname = \"big\"\nwhen = \"request.memory > GiB({limit})\"\n{what} = \"too big\"\n"
    )
}

fn device(dice: &mut Dice) -> String {
    let what = dice.pick(&["cordon", "drain"]);
    format!("[[device]]\nname = \"gpu-1\"\n{what} = \"kept for the demo\"\n")
}
