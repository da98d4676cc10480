//! When to look after signs of a change: once it is quiet, or when that takes too long.

use std::time::{Duration, Instant};

/// Signs that no look has answered.
#[derive(Debug)]
pub(crate) struct Debounce {
    quiet: Duration,
    max_wait: Duration,
    signs: Option<Signs>,
}

#[derive(Clone, Copy, Debug)]
struct Signs {
    first: Instant,
    last: Instant,
}

impl Debounce {
    /// Due after `quiet` without a sign, or `max_wait` after the first one.
    pub(crate) fn new(quiet: Duration, max_wait: Duration) -> Self {
        Self {
            quiet,
            max_wait,
            signs: None,
        }
    }

    /// There was a sign of a change.
    pub(crate) fn sign(&mut self, now: Instant) {
        let first = self.signs.map_or(now, |signs| signs.first);
        self.signs = Some(Signs { first, last: now });
    }

    /// The signs were answered.
    pub(crate) fn clear(&mut self) {
        self.signs = None;
    }

    /// When to look, if there was a sign.
    pub(crate) fn due(&self) -> Option<Instant> {
        let Signs { first, last } = self.signs?;
        Some((last + self.quiet).min(first + self.max_wait))
    }

    /// Whether it is time to look.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.due().is_some_and(|due| due <= now)
    }

    /// Whether it does not get any quieter.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        self.signs
            .is_some_and(|signs| signs.first + self.max_wait <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_quiet_but_not_for_ever() {
        let ms = Duration::from_millis;
        let start = Instant::now();
        let mut debounce = Debounce::new(ms(200), ms(2000));
        assert_eq!(debounce.due(), None);

        debounce.sign(start);
        debounce.sign(start + ms(150));
        assert_eq!(debounce.due(), Some(start + ms(350)));
        assert!(!debounce.is_due(start + ms(349)));
        assert!(debounce.is_due(start + ms(350)));

        for tick in 2..=40 {
            debounce.sign(start + ms(tick * 100));
        }
        assert_eq!(debounce.due(), Some(start + ms(2000)));
        assert!(debounce.is_overdue(start + ms(2000)));

        debounce.clear();
        debounce.sign(start + ms(5000));
        assert_eq!(debounce.due(), Some(start + ms(5200)));
    }
}
