//! The one loop: clock, inbox, commits, effects, readers.
