//! In dev mode: files of the page from a directory, and word of their changes.

use gpu_bridge::Assets;
use gpu_watch::{Event, Watch};
use tokio::sync::watch;

use super::config::Config;

/// What else than TOML is part of a page.
const FILES: [&str; 3] = ["**/*.html", "**/*.css", "**/*.js"];

/// The directories that the configuration names, and the watch that tells of their changes.
pub(super) fn open(config: &Config) -> Result<(Option<Assets>, Option<Watch>), String> {
    if config.assets.is_empty() {
        return Ok((None, None));
    }
    let watched = gpu_watch::Config {
        include: FILES.map(str::to_owned).to_vec(),
        ..gpu_watch::Config::new(config.assets.iter().cloned())
    };
    let known = gpu_watch::read_set(&watched).ok();
    let (changes, changed) = watch::channel(0);
    let sink = move |event| match event {
        Event::Changed(_) | Event::Recovered => changes.send_modify(|count| *count += 1),
        Event::Trouble(why) => tracing::warn!("assets cannot be read: {why}"),
        Event::LogOnly(_) | Event::Touched => {}
    };
    let watch = Watch::start(&watched, known.as_ref(), sink).map_err(|error| error.to_string())?;
    let assets = Assets {
        dirs: config.assets.clone(),
        changed,
    };
    Ok((Some(assets), Some(watch)))
}
