//! tests of the whole product.
