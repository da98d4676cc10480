//! What was: a page of the history, and usage added up. Both read the store, and never enter the loop.

use axum::extract::State;
use axum::http::StatusCode;
use gpu_api::{EVENTS_PER_ANSWER_MAX, ErrorCode, HistoryQuery, Problem, UsageQuery};
use gpu_broker::{EventFilter, FoundEvents, Handle, ReadError};

use super::{Answer, Shared, json};
use crate::convert::{Place, UsageTable, event_filter, history, place};
use crate::extract::{Query, bad_request};
use crate::problem::Refusal;

pub(super) async fn events(
    State(bridge): State<Shared>,
    Query(query): Query<HistoryQuery>,
) -> Answer {
    let limit = match query.limit {
        None => EVENTS_PER_ANSWER_MAX,
        Some(limit @ 1..=EVENTS_PER_ANSWER_MAX) => limit,
        Some(_) => {
            let detail = format!("`limit` is 1 to {EVENTS_PER_ANSWER_MAX}");
            return Err(bad_request(&detail));
        }
    };
    let handle = bridge.handle.clone();
    let store = handle.store_id();
    let filter = event_filter(&query, handle.now().wall)?;
    let place = place(&query, store)?;
    let found = read(&bridge, move || {
        find(&handle, &filter, &place, limit as usize)
    })
    .await?;
    Ok(json(StatusCode::OK, &history(store, &found)))
}

pub(super) async fn usage(State(bridge): State<Shared>, Query(query): Query<UsageQuery>) -> Answer {
    let handle = bridge.handle.clone();
    let mut table = UsageTable::new(&query, handle.now().wall)?;
    let table = read(&bridge, move || {
        handle.usage(table.from(), &mut |row| table.add(row))?;
        Ok(table)
    })
    .await?;
    Ok(json(StatusCode::OK, &table.report()))
}

fn find(
    handle: &Handle,
    filter: &EventFilter,
    place: &Place,
    limit: usize,
) -> Result<FoundEvents, ReadError> {
    let after = match place {
        Place::After(position) => Some(*position),
        Place::Beginning | Place::Lost => None,
    };
    let mut found = handle.find_events(filter, after, limit)?;
    found.reset |= matches!(place, Place::Lost);
    Ok(found)
}

/// Reads the store on a thread that may wait for the disk; so many at once.
async fn read<T: Send + 'static>(
    bridge: &Shared,
    look: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
) -> Result<T, Refusal> {
    let room = bridge.record_look()?;
    let looked = tokio::task::spawn_blocking(move || {
        let _room = room;
        look()
    });
    let failed = |detail: String| {
        tracing::error!("the store cannot be read: {detail}");
        Refusal::from(Problem::new(
            ErrorCode::Internal,
            "the store cannot be read",
        ))
    };
    match looked.await {
        Ok(found) => found.map_err(|error| failed(error.to_string())),
        Err(broke_off) => Err(failed(broke_off.to_string())),
    }
}
