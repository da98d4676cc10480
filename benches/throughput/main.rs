//! Pairs of acquire and release: by the books alone, through the broker, and over HTTP; and live policy.
//!
//! `cargo bench -p gpu-manager-benches [-- books|broker|http|reload]`, about two minutes for all. Durable
//! cases write to the temporary directory: `TMPDIR` chooses the disk.

mod books;
mod broker;
mod http;
mod reload;
mod setting;

fn main() {
    // cargo passes `--bench`.
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let benches: [(&str, fn()); 4] = [
        ("books", books::bench),
        ("broker", broker::bench),
        ("http", http::bench),
        ("reload", reload::bench),
    ];
    for (name, bench) in benches {
        if wanted.as_ref().is_none_or(|wanted| wanted == name) {
            bench();
        }
    }
}
