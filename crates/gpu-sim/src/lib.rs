//! Reference model and checkers for the books.
