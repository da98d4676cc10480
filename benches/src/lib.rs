//! benches of the whole product.
