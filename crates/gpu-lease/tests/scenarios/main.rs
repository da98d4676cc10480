//! What the books do, as scenarios: who asks, what happens, what everybody then has.

mod capacity;
mod devices;
mod drain;
mod emergency;
mod explain;
mod fates;
mod ledger;
mod placement;
mod policy;
mod queue;
mod reclaim;
mod requests;
mod rows;
mod rules;
mod steady;
mod tenants;
mod time;
mod why;
mod world;
