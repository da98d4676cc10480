//! Pairs of acquire and release: by the books alone, through the broker, and over HTTP; live policy; and what
//! a store costs: starting on a full one, and what becomes of its size.
//!
//! `cargo bench -p gpu-manager-benches [-- books|broker|http|reload|recovery]`, about two minutes for all;
//! `-- growth [LEASES]` runs ten million leases, which takes a while. Durable cases write to the temporary
//! directory: `TMPDIR` chooses the disk.

mod books;
mod broker;
mod growth;
mod http;
mod recovery;
mod reload;
mod setting;

fn main() {
    // cargo passes `--bench`.
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let benches: [(&str, fn()); 5] = [
        ("books", books::bench),
        ("broker", broker::bench),
        ("http", http::bench),
        ("reload", reload::bench),
        ("recovery", recovery::bench),
    ];
    if wanted.as_deref() == Some("growth") {
        return growth::bench();
    }
    for (name, bench) in benches {
        if wanted.as_ref().is_none_or(|wanted| wanted == name) {
            bench();
        }
    }
}
