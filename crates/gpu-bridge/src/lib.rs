//! HTTP in front of the broker: listener, guard, routes, events, page.
