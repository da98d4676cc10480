//! Stories of the whole product: each starts the real program and tells what people and programs see of it.

mod clocks;
mod configuration;
mod crashes;
mod denials;
mod devices;
mod disconnects;
mod emergency;
mod endurance;
mod exactly_once;
mod fatal;
mod hostile;
mod kills;
mod leases;
mod linearizable;
mod live;
mod page;
mod policy;
mod records;
mod restarts;
mod run;
mod safe_start;
mod sick;
mod takeover;
